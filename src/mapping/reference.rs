//! Mapping by trying each rule, too simple to be wrong.
//!
//! It shares no code with what it checks: it has its own decoding, its own segments and
//! plain backtracking, one rule at a time. Apart from the properties because the fuzz
//! target `mapping` has it too, by its path.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "of tests and the fuzz target only, and to be read"
)]

/// A unit of comparison: a byte, or something that is no byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Symbol {
    Byte(u8),
    EncodedSlash,
    Placeholder,
}

/// A rule as it is written.
#[derive(Clone, Debug)]
pub struct Written {
    pub method: String,
    /// The pattern, without its query and without the `$` at its end.
    pub path: String,
    pub anchored: bool,
    /// Constraints as plain names and values.
    pub query: Vec<(String, String)>,
    pub delta: u64,
    pub last: bool,
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

fn has_placeholder(expected: &str) -> bool {
    let bytes = expected.as_bytes();
    let braces = (0..bytes.len()).filter(|at| bytes[*at] == b'{');
    braces.into_iter().any(|at| {
        let name = &bytes[at + 1..];
        let length = name.iter().position(|byte| {
            let letter = byte.is_ascii_alphanumeric() || *byte == b'_' || *byte == b'-';
            !letter
        });
        length.is_some_and(|length| length > 0 && name[length] == b'}')
    })
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
        found.is_some_and(|(_, value)| has_placeholder(expected) || value == expected.as_bytes())
    })
}

/// Which rules match, and what they cost; rule number `n` counts on metric `n % 3`.
pub fn reference(rules: &[Written], method: &[u8], target: &[u8]) -> (bool, [u64; 3]) {
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
