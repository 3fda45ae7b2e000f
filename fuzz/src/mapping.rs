//! Mapping rules and paths: the compiled index against trying each rule.
//!
//! An input is text: a line `METHOD PATTERN` for each rule (with ` last` behind it for
//! the last to be tried), an empty line, and a line `METHOD TARGET` for each request.

use tollgate::config::{HostPattern, PathPrefix};
use tollgate::mapping::{Metrics, Rule, Rules, Usage};

use crate::cut;

#[path = "../../src/mapping/reference.rs"]
mod reference;
use reference::{Written, reference};

/// Most that is compared: trying each rule takes time that grows with the power of
/// placeholders.
const MOST_PLACEHOLDERS: usize = 3;
const LONGEST_TARGET: usize = 256;
const MOST_RULES: usize = 16;

/// The index finds what trying each rule finds.
///
/// # Panics
/// If it does not.
pub fn mapping(data: &[u8]) {
    let metrics =
        Metrics::new(["a", "b", "c"].map(|name| (name.to_owned(), None))).expect("metrics");
    let ids: Vec<_> = metrics.ids().collect();
    let mut rest = data;
    let mut written: Vec<Written> = Vec::new();
    let mut rules = Vec::new();
    loop {
        let (line, after) = cut(rest, b'\n');
        rest = after;
        if line.is_empty() {
            break;
        }
        let line = String::from_utf8_lossy(line);
        let (line, last) = match line.strip_suffix(" last") {
            Some(line) => (line, true),
            None => (&*line, false),
        };
        let (method, pattern) = line.split_once(' ').unwrap_or(("ANY", line));
        let number = written.len();
        let delta = u64::try_from(number).unwrap_or(0) + 1;
        let Some(id) = ids.get(number % 3) else {
            return;
        };
        let usage = vec![(*id, delta)];
        let _ = Rule::new(method, pattern, None, usage.clone(), last);
        let _ = PathPrefix::parse(pattern);
        let _ = HostPattern::parse(pattern);
        let (path, query) = pattern.split_once('?').unwrap_or((pattern, ""));
        let query: Vec<(String, String)> = query
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let Ok(rule) = Rule::new(method, path, Some(&query), usage, last) else {
            continue;
        };
        if rules.len() == MOST_RULES || path.matches('{').count() > MOST_PLACEHOLDERS {
            continue;
        }
        rules.push(rule);
        written.push(Written {
            method: method.to_owned(),
            path: path.strip_suffix('$').unwrap_or(path).to_owned(),
            anchored: path.ends_with('$'),
            query,
            delta,
            last,
        });
    }
    let compiled = Rules::compile(rules);
    for line in rest.split(|byte| *byte == b'\n').take(64) {
        let (method, target) = cut(line, b' ');
        let mut usage = Usage::new();
        let matched = compiled.matching(method, target, &mut usage);
        if target.len() > LONGEST_TARGET {
            continue;
        }
        let mut sums = [0; 3];
        for (id, delta) in usage.iter() {
            if let Some(sum) = sums.get_mut(id.index()) {
                *sum += delta;
            }
        }
        assert_eq!(
            (matched, sums),
            reference(&written, method, target),
            "{} of {written:?}",
            line.escape_ascii()
        );
    }
}
