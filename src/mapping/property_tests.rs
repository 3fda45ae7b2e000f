//! The compiled rules against a matcher that is too simple to be wrong.
//!
//! Apart from the unit tests because proptest does not run in the browser's wasm.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "clippy.toml's leave for tests does not reach a module behind `all(test, ...)`"
)]

use proptest::prelude::*;

use super::reference::{Written, reference};
use super::{MetricId, Metrics, Rule, Rules, Usage};

fn compiled(rules: &[Written], metrics: &[MetricId]) -> Rules {
    let rules = rules.iter().enumerate().map(|(number, rule)| {
        let anchor = if rule.anchored { "$" } else { "" };
        let pattern = format!("{}{anchor}", rule.path);
        let usage = vec![(metrics[number % 3], rule.delta)];
        Rule::new(&rule.method, &pattern, Some(&rule.query), usage, rule.last).unwrap()
    });
    Rules::compile(rules.collect())
}

fn agree(rules: &[Written], method: &str, target: &[u8]) -> Result<(), TestCaseError> {
    let names = ["a", "b", "c"].map(|name| (name.to_owned(), None));
    let metrics = Metrics::new(names).unwrap();
    let ids: Vec<_> = metrics.ids().collect();
    let mut usage = Usage::new();
    let matched = compiled(rules, &ids).matching(method.as_bytes(), target, &mut usage);
    let mut sums = [0; 3];
    for (id, delta) in usage.iter() {
        sums[id.index()] += delta;
    }
    prop_assert_eq!((matched, sums), reference(rules, method.as_bytes(), target));
    Ok(())
}

/// Few pieces, so that patterns and paths often meet.
const PIECES: &[&str] = &[
    "a", "a", "b", "ab", "/", "/", "/", ".", "..", "/../", "%61", "%2F", "%2f", "%25", "%", "2F",
    "%00", "%01", "%2e", "é", "%C3%a9", "+", "$x", "{}",
];

fn a_path(placeholders: usize) -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(PIECES),
        placeholders as u32 => Just("{x}"),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| format!("/{}", pieces.concat()))
}

fn a_method() -> impl Strategy<Value = &'static str> {
    prop_oneof![4 => Just("GET"), 1 => Just("POST")]
}

fn a_rule() -> impl Strategy<Value = Written> {
    let value = prop::sample::select(&["", "1", "a b", "{x}", "/"][..]);
    let query = prop_oneof![
        3 => Just(vec![]),
        1 => prop::collection::btree_map("[kl]", value, 1..3)
            .prop_map(|map| map.into_iter().map(|(k, v)| (k, v.to_owned())).collect()),
    ];
    let method = prop_oneof![a_method(), Just("ANY")];
    (
        method,
        a_path(2),
        any::<bool>(),
        query,
        1..100_u64,
        prop::bool::weighted(0.2),
    )
        .prop_map(|(method, path, anchored, query, delta, last)| Written {
            method: method.to_owned(),
            path,
            anchored,
            query,
            delta,
            last,
        })
}

fn a_query() -> impl Strategy<Value = String> {
    const PAIRS: &[&str] = &[
        "k=1", "k=a+b", "l=a%20b", "k", "l=", "l=%2f", "%6b=1", "m=1", "", "l=%",
    ];
    prop_oneof![
        Just(String::new()),
        prop::collection::vec(prop::sample::select(PAIRS), 0..4)
            .prop_map(|pairs| format!("?{}", pairs.join("&"))),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn the_index_finds_what_trying_each_rule_finds(
        rules in prop::collection::vec(a_rule(), 0..12),
        method in a_method(),
        path in a_path(0),
        query in a_query(),
    ) {
        agree(&rules, method, format!("{path}{query}").as_bytes())?;
    }

    #[test]
    fn a_request_made_from_a_rule_is_priced_as_by_trying_each(
        rules in prop::collection::vec(a_rule(), 1..12),
        chosen in any::<prop::sample::Index>(),
        filling in prop::sample::select(&["a", "b", "ab", "aba", "é", "%25", "x/y", "%2F"][..]),
        rest in prop::sample::select(&["", "", "a", "/", "/b"][..]),
        query in a_query(),
    ) {
        let path = chosen.get(&rules).path.replace("{x}", filling);
        agree(&rules, "GET", format!("{path}{rest}{query}").as_bytes())?;
    }

    #[test]
    fn any_bytes_are_priced_as_by_trying_each_rule(
        rules in prop::collection::vec(a_rule(), 0..6),
        bytes in prop::collection::vec(any::<u8>(), 0..24),
        leading_slash in any::<bool>(),
    ) {
        let target = if leading_slash { [b"/", &bytes[..]].concat() } else { bytes };
        agree(&rules, "GET", &target)?;
    }
}
