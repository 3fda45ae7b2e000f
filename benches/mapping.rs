//! What a match costs, by the number of mapping rules.
//!
//! Prints the median of nanoseconds per match over rounds that alternate between the sizes, so that a
//! machine that speeds up or slows down does so for all of them. The first rows are requests as
//! they come; the last are paths made to hurt.
//!
//! `cargo bench --bench mapping`

use std::hint::black_box;
use std::time::Instant;

use tollgate::mapping::{Metrics, Rule, Rules, Usage};

/// Numbers of rules to compare.
const SIZES: [usize; 4] = [10, 100, 1_000, 10_000];

/// Rounds to take the median of.
const ROUNDS: usize = 101;

/// Bytes of path to match per size and round: short paths are matched more often.
const BYTES_PER_ROUND: usize = 60_000;

/// A set of rules of a given size, and one request to it.
struct Case {
    name: &'static str,
    /// Method, pattern and whether it is last, by number.
    rule: fn(usize) -> (&'static str, String, bool),
    target: fn(usize) -> String,
}

const CASES: &[Case] = &[
    Case {
        name: "resource, middle of the list",
        rule: rest,
        target: |size| {
            format!(
                "/v1/resource{}/8a7f21?user_key=0123456789abcdef",
                size / 4 * 2
            )
        },
    },
    Case {
        name: "same, path with %41 and //",
        rule: rest,
        target: |size| {
            format!(
                "/v1//resource{}/%417f21?user_key=0123456789abcdef",
                size / 4 * 2
            )
        },
    },
    Case {
        name: "no rule matches",
        rule: rest,
        target: |_| "/v2/unknown/8a7f21?user_key=0123456789abcdef".to_owned(),
    },
    Case {
        name: "one of many query values",
        rule: |number| {
            (
                "GET",
                format!("/v1/r{}?kind=k{}", number / 10, number % 10),
                false,
            )
        },
        target: |size| format!("/v1/r{}?user_key=0123456789abcdef&kind=k7", size / 20),
    },
    Case {
        name: "placeholder before each name",
        rule: |number| {
            (
                "GET",
                format!("/{{tenant}}/{{region}}/resource{number}/{{id}}$"),
                false,
            )
        },
        target: |size| format!("/acme/eu/resource{}/8a7f21", size / 2),
    },
    Case {
        name: "hostile: 8 KB in one segment",
        rule: |number| ("GET", format!("/{{a}}-{{b}}-{{c}}.x{number}$"), false),
        target: |_| format!("/{}", "-".repeat(8_000)),
    },
    Case {
        name: "hostile: 8 KB of slashes and dots",
        rule: rest,
        target: |_| "/a/..//.".repeat(1_000),
    },
];

/// Rules as a REST API has them: two for each resource.
fn rest(number: usize) -> (&'static str, String, bool) {
    let resource = number / 2 * 2;
    if number.is_multiple_of(2) {
        ("GET", format!("/v1/resource{resource}/{{id}}$"), false)
    } else {
        ("POST", format!("/v1/resource{resource}$"), false)
    }
}

fn compile(case: &Case, size: usize) -> Rules {
    let metrics = Metrics::new([("hits".to_owned(), None)]).expect("a metric");
    let hits = metrics.id("hits").expect("the metric");
    let rules = (0..size).map(|number| {
        let (method, pattern, last) = (case.rule)(number);
        Rule::new(method, &pattern, None, vec![(hits, 1)], last).expect("a rule")
    });
    Rules::compile(rules.collect())
}

/// Nanoseconds per match.
fn measure(rules: &Rules, target: &str, usage: &mut Usage) -> f64 {
    let times = (BYTES_PER_ROUND / target.len()).max(1);
    let start = Instant::now();
    for _ in 0..times {
        usage.clear();
        black_box(rules.matching(b"GET", black_box(target.as_bytes()), usage));
    }
    start.elapsed().as_nanos() as f64 / times as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    println!("median ns per match, {ROUNDS} alternating rounds\n");
    print!("{:<34}", "rules");
    for size in SIZES {
        print!("{size:>9}");
    }
    println!("{:>14}", "1000 : 10");

    let mut usage = Usage::new();
    for case in CASES {
        let subjects = SIZES.map(|size| (compile(case, size), (case.target)(size)));
        let mut times = SIZES.map(|_| Vec::with_capacity(ROUNDS));
        for _ in 0..ROUNDS {
            for ((rules, target), times) in subjects.iter().zip(&mut times) {
                times.push(measure(rules, target, &mut usage));
            }
        }
        let medians = times.map(median);
        print!("{:<34}", case.name);
        for median in medians {
            print!("{median:>9.0}");
        }
        println!("{:>14.2}", medians[2] / medians[0]);
    }
}
