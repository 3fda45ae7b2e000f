//! The compiled rules against a matcher that is too simple to be wrong.
//!
//! Apart from the unit tests because proptest does not run in the browser's wasm. The
//! reference shares no code with what it checks: it has its own decoding, its own
//! segments and plain backtracking, one rule at a time.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "clippy.toml's leave for tests does not reach a module behind `all(test, ...)`"
)]

use proptest::prelude::*;

use super::{MetricId, Metrics, Rule, Rules, Usage};

/// A unit of comparison: a byte, or something that is no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbol {
    Byte(u8),
    EncodedSlash,
    Placeholder,
}

/// A rule as it is written.
#[derive(Clone, Debug)]
struct Written {
    method: String,
    path: String,
    anchored: bool,
    query: Vec<(String, String)>,
    delta: u64,
    last: bool,
}

fn hex(byte: Option<&u8>) -> Option<u8> {
    char::from(*byte?).to_digit(16).map(|digit| digit as u8)
}

fn symbols(text: &[u8], is_pattern: bool) -> Vec<Symbol> {
    let mut symbols = Vec::new();
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        if is_pattern && *byte == b'{' && text.get(at + 1) != Some(&b'}') {
            symbols.push(Symbol::Placeholder);
            at += text[at..].iter().position(|byte| *byte == b'}').unwrap() + 1;
            continue;
        }
        match (byte, hex(text.get(at + 1)), hex(text.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                symbols.push(match high * 16 + low {
                    b'/' => Symbol::EncodedSlash,
                    byte => Symbol::Byte(byte),
                });
                at += 3;
            }
            _ => {
                symbols.push(Symbol::Byte(*byte));
                at += 1;
            }
        }
    }
    symbols
}

fn normalized(symbols: &[Symbol], end_is_open: bool) -> Vec<Symbol> {
    const DOT: Symbol = Symbol::Byte(b'.');
    const SLASH: Symbol = Symbol::Byte(b'/');
    let mut segments: Vec<_> = symbols.split(|symbol| *symbol == SLASH).collect();
    let last = segments.pop().unwrap();
    segments.retain(|segment| !segment.is_empty());
    segments.push(last);
    let count = segments.len();
    let mut kept: Vec<&[Symbol]> = Vec::new();
    for (number, segment) in segments.into_iter().enumerate() {
        let is_last = number + 1 == count;
        let is_dots = matches!(segment, [DOT] | [DOT, DOT]) && !(is_last && end_is_open);
        if is_dots && segment.len() == 2 {
            kept.pop();
        }
        if !is_dots {
            kept.push(segment);
        } else if is_last {
            kept.push(&[]);
        }
    }
    kept.iter()
        .flat_map(|segment| [&[SLASH], *segment].concat())
        .collect()
}

fn path_matches(pattern: &[Symbol], anchored: bool, path: &[Symbol]) -> bool {
    let stops = [Symbol::Byte(b'/'), Symbol::EncodedSlash, Symbol::Byte(0)];
    match (pattern, path) {
        ([], []) => true,
        ([], _) => !anchored,
        (_, []) => false,
        ([Symbol::Placeholder, after @ ..], [first, rest @ ..]) => {
            !stops.contains(first)
                && (path_matches(after, anchored, rest) || path_matches(pattern, anchored, rest))
        }
        ([expected, after @ ..], [first, rest @ ..]) => {
            expected == first && path_matches(after, anchored, rest)
        }
    }
}

fn form_decoded(text: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = text
        .iter()
        .map(|byte| if *byte == b'+' { b' ' } else { *byte })
        .collect();
    symbols(&spaced, false)
        .into_iter()
        .map(|symbol| match symbol {
            Symbol::Byte(byte) => byte,
            _ => b'/',
        })
        .collect()
}

fn query_matches(constraints: &[(String, String)], query: &[u8]) -> bool {
    let pairs: Vec<(Vec<u8>, Vec<u8>)> = query
        .split(|byte| *byte == b'&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let equals = pair.iter().position(|byte| *byte == b'=');
            let name = &pair[..equals.unwrap_or(pair.len())];
            let value = equals.map_or(&b""[..], |equals| &pair[equals + 1..]);
            (form_decoded(name), form_decoded(value))
        })
        .collect();
    constraints.iter().all(|(name, expected)| {
        let found = pairs.iter().rfind(|pair| pair.0 == name.as_bytes());
        found.is_some_and(|(_, value)| expected.contains("{x}") || value == expected.as_bytes())
    })
}

/// Which rules match, and what they cost; rule number `n` counts on metric `n % 3`.
fn reference(rules: &[Written], method: &[u8], target: &[u8]) -> (bool, [u64; 3]) {
    let mark = target.iter().position(|byte| *byte == b'?');
    let path = &target[..mark.unwrap_or(target.len())];
    let query = mark.map_or(&b""[..], |mark| &target[mark + 1..]);
    let mut matched = false;
    let mut sums = [0; 3];
    if !path.starts_with(b"/") {
        return (matched, sums);
    }
    let path = normalized(&symbols(path, false), false);
    for (number, rule) in rules.iter().enumerate() {
        let pattern = normalized(&symbols(rule.path.as_bytes(), true), !rule.anchored);
        if (rule.method == "ANY" || rule.method.as_bytes() == method)
            && path_matches(&pattern, rule.anchored, &path)
            && query_matches(&rule.query, query)
        {
            matched = true;
            sums[number % 3] += rule.delta;
            if rule.last {
                break;
            }
        }
    }
    (matched, sums)
}

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
