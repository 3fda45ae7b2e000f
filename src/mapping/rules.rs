//! Mapping rules, checked one by one and compiled together.
//!
//! Apart from the index, which finds the patterns that match: here is what a match means,
//! in which order, and what it costs.

use memchr::memchr;
use smallvec::SmallVec;
use thiserror::Error;

use super::index::Index;
use super::pattern::{Pattern, PatternError};
use super::query::{self, Constraint, Expected, Names, Parameters};
use super::{MetricId, Usage, canonical};

/// The largest delta of a rule.
///
/// The backend keeps counters as signed 64-bit integers and breaks beyond; this
/// leaves room for millions of the costliest requests in the longest period.
pub const MAX_DELTA: u64 = 1_000_000_000_000;

/// Why a mapping rule is refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// The method is no HTTP method.
    #[error("method {method:?} is not an HTTP method (RFC 9110, section 9.1), nor ANY")]
    Method {
        /// The method.
        method: String,
    },
    /// The pattern is no path.
    #[error("pattern {pattern:?} does not start with /")]
    NoLeadingSlash {
        /// The pattern.
        pattern: String,
    },
    /// The pattern's braces are not those of placeholders.
    #[error(
        "pattern {pattern:?}: each {{ needs its }} in the same segment, and no other brace between; \
         a literal brace is written %7B or %7D"
    )]
    Braces {
        /// The pattern.
        pattern: String,
    },
    /// The pattern's query ends with what looks like the anchor.
    #[error(
        "pattern {pattern:?}: $ ends the path, so it stands before the ?; \
         a literal $ at the end is written %24"
    )]
    AnchorInQuery {
        /// The pattern.
        pattern: String,
    },
    /// A query parameter is constrained twice.
    #[error("pattern {pattern:?}: query parameter {name:?} is constrained twice")]
    RepeatedParameter {
        /// The pattern.
        pattern: String,
        /// The parameter's name, decoded.
        name: String,
    },
    /// The rule counts nothing and does not say that it means to.
    #[error(
        "pattern {pattern:?}: a rule that counts nothing must be `last`, to say that these requests are free"
    )]
    NoUsage {
        /// The pattern.
        pattern: String,
    },
    /// A delta is 0.
    #[error("pattern {pattern:?}: a delta of 0 counts nothing")]
    ZeroDelta {
        /// The pattern.
        pattern: String,
        /// The metric.
        metric: MetricId,
    },
    /// A delta is above [`MAX_DELTA`].
    #[error(
        "pattern {pattern:?}: a delta of {delta} is above {MAX_DELTA}; \
         the backend's counters break beyond 64-bit integers"
    )]
    LargeDelta {
        /// The pattern.
        pattern: String,
        /// The metric.
        metric: MetricId,
        /// The delta.
        delta: u64,
    },
}

/// One mapping rule. What its parts mean is said in [`crate::mapping`].
///
/// Its pattern is well-formed, no parameter is constrained twice, its deltas lie
/// between 1 and [`MAX_DELTA`], and it has one, or is last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `None` is any.
    method: Option<Box<[u8]>>,
    pattern: Pattern,
    constraints: Vec<Constraint>,
    usage: Vec<(MetricId, u64)>,
    last: bool,
}

impl Rule {
    /// A checked rule.
    ///
    /// `query` are the constraints on the query, as plain names and values; with `None` they are
    /// read from the pattern's own `?…`, which otherwise is ignored.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with the pattern it is wrong with.
    pub fn new(
        method: &str,
        pattern: &str,
        query: Option<&[(String, String)]>,
        usage: Vec<(MetricId, u64)>,
        last: bool,
    ) -> Result<Self, RuleError> {
        let named = || pattern.to_owned();
        if method.is_empty() || !method.bytes().all(is_token) {
            return Err(RuleError::Method {
                method: method.to_owned(),
            });
        }

        let (path, own_query) = pattern.split_once('?').unwrap_or((pattern, ""));
        let parsed = Pattern::parse(path).map_err(|error| match error {
            PatternError::NoLeadingSlash => RuleError::NoLeadingSlash { pattern: named() },
            PatternError::Braces => RuleError::Braces { pattern: named() },
        })?;
        let constraints = match query {
            Some(parameters) => query::from_parameters(parameters),
            None if own_query.ends_with('$') => {
                return Err(RuleError::AnchorInQuery { pattern: named() });
            }
            None => query::from_query(own_query),
        };
        let mut names: Vec<_> = constraints.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        let twice = names.iter().zip(names.iter().skip(1));
        if let Some((name, _)) = twice.into_iter().find(|(one, next)| one == next) {
            return Err(RuleError::RepeatedParameter {
                pattern: named(),
                name: String::from_utf8_lossy(name).into_owned(),
            });
        }

        if usage.is_empty() && !last {
            return Err(RuleError::NoUsage { pattern: named() });
        }
        for (metric, delta) in &usage {
            match *delta {
                0 => {
                    return Err(RuleError::ZeroDelta {
                        pattern: named(),
                        metric: *metric,
                    });
                }
                delta if delta > MAX_DELTA => {
                    return Err(RuleError::LargeDelta {
                        pattern: named(),
                        metric: *metric,
                        delta,
                    });
                }
                _ => {}
            }
        }

        Ok(Self {
            method: (method != "ANY").then(|| method.as_bytes().into()),
            pattern: parsed,
            constraints,
            usage,
            last,
        })
    }
}

/// Whether a byte may stand in a method (RFC 9110, section 5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A service's mapping rules, ready to match requests.
///
/// Entries are in the order of the rules, and the index numbers them by it.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    index: Index,
    methods: Vec<Box<[u8]>>,
    names: Names,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Place in `Rules::methods`; `None` is any.
    method: Option<usize>,
    /// Places in `Rules::names`.
    constraints: Box<[(usize, Expected)]>,
    usage: Box<[(MetricId, u64)]>,
    last: bool,
}

impl Rules {
    /// Compiles rules; their order is that in which they are tried.
    #[must_use]
    pub fn compile(rules: Vec<Rule>) -> Self {
        let index = Index::new(rules.iter().map(|rule| &rule.pattern));
        let mut methods: Vec<_> = rules
            .iter()
            .filter_map(|rule| rule.method.clone())
            .collect();
        methods.sort_unstable();
        methods.dedup();
        let names = Names::new(
            rules
                .iter()
                .flat_map(|rule| rule.constraints.iter().map(|(name, _)| name.clone())),
        );
        let entries = rules
            .into_iter()
            .map(|rule| Entry {
                method: rule
                    .method
                    .and_then(|method| methods.binary_search(&method).ok()),
                constraints: rule
                    .constraints
                    .into_iter()
                    .filter_map(|(name, expected)| Some((names.place(&name)?, expected)))
                    .collect(),
                usage: rule.usage.into_boxed_slice(),
                last: rule.last,
            })
            .collect();
        Self {
            index,
            methods,
            names,
            entries,
        }
    }

    /// Adds to `usage` what a request with this method and target (path and query, as in
    /// `:path`) costs, and says whether any rule matched. What was in `usage` stays.
    ///
    /// The two differ: a request may match and be free.
    pub fn matching(&self, method: &[u8], target: &[u8], usage: &mut Usage) -> bool {
        let (path, query) = memchr(b'?', target)
            .and_then(|mark| target.split_at_checked(mark))
            .unwrap_or((target, b""));
        let Some(path) = canonical::path(path) else {
            return false;
        };

        let method = self.methods.iter().position(|known| **known == *method);
        let mut candidates: SmallVec<[usize; 16]> = SmallVec::new();
        self.index.find(&path, |number| {
            let entry = self.entries.get(number);
            if entry.is_some_and(|entry| entry.method.is_none() || entry.method == method) {
                candidates.push(number);
            }
        });
        if candidates.len() > 1 {
            candidates.sort_unstable();
        }

        let mut parameters = None;
        let mut matched = false;
        for entry in candidates
            .iter()
            .filter_map(|number| self.entries.get(*number))
        {
            if !entry.constraints.is_empty() {
                let parameters = parameters.get_or_insert_with(|| {
                    Parameters::parse(&self.names, query.strip_prefix(b"?").unwrap_or(query))
                });
                let mut constraints = entry.constraints.iter();
                if !constraints.all(|(name, expected)| parameters.satisfy(*name, expected)) {
                    continue;
                }
            }
            matched = true;
            for (metric, delta) in &entry.usage {
                usage.add(*metric, *delta);
            }
            if entry.last {
                break;
            }
        }
        matched
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Metrics;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn metrics() -> Metrics {
        Metrics::new(["a", "b", "c"].map(|name| (name.to_owned(), None))).unwrap()
    }

    fn metric(name: &str) -> MetricId {
        metrics().id(name).unwrap()
    }

    fn rule(method: &str, pattern: &str, usage: &[(&str, u64)], last: bool) -> Rule {
        let usage = usage.iter().map(|(name, delta)| (metric(name), *delta));
        Rule::new(method, pattern, None, usage.collect(), last).unwrap()
    }

    /// What a request costs, as text; `None` if no rule matched.
    fn cost(rules: &Rules, method: &str, target: &str) -> Option<String> {
        let mut usage = Usage::new();
        let matched = rules.matching(method.as_bytes(), target.as_bytes(), &mut usage);
        let metrics = metrics();
        let deltas = usage
            .iter()
            .map(|(id, delta)| format!("{}={delta}", metrics.name(id)));
        matched.then(|| deltas.collect::<Vec<_>>().join(" "))
    }

    /// Every row of the table: rules, requests, and whether they match.
    #[test]
    fn patterns_mean_what_the_table_says() {
        let table = include_str!("../../tests/data/mapping-rules.tsv");
        let mut rows = 0;
        for (number, line) in table.lines().enumerate().skip(1) {
            let columns: Vec<_> = line.split('\t').collect();
            let [
                rule_method,
                pattern,
                parameters,
                method,
                target,
                _,
                expected,
                _,
            ] = columns[..]
            else {
                panic!("line {} has {} columns", number + 1, columns.len());
            };
            let parameters: std::collections::BTreeMap<String, String> = match parameters {
                "" => Default::default(),
                json => serde_json::from_str(json).unwrap(),
            };
            let parameters: Vec<_> = parameters.into_iter().collect();
            let usage = vec![(metric("a"), 1)];
            let rule = Rule::new(rule_method, pattern, Some(&parameters), usage, false).unwrap();
            let rules = Rules::compile(vec![rule]);
            let matched = cost(&rules, method, target).is_some();
            let outcome = if matched { "match" } else { "nomatch" };
            assert_eq!(outcome, expected, "line {}: {line}", number + 1);
            rows += 1;
        }
        assert_eq!(rows, 90);
    }

    #[test]
    fn all_matching_rules_add_up_in_their_order() {
        let rules = Rules::compile(vec![
            rule("GET", "/x/y", &[("b", 1)], false),
            rule("POST", "/x/y", &[("c", 10)], false),
            rule("ANY", "/", &[("a", 2)], false),
            rule("GET", "/x/{y}$", &[("b", 3), ("a", 1)], false),
        ]);
        assert_eq!(cost(&rules, "GET", "/x/y").as_deref(), Some("b=4 a=3"));
        assert_eq!(cost(&rules, "POST", "/x/y").as_deref(), Some("c=10 a=2"));
        assert_eq!(cost(&rules, "GET", "/z").as_deref(), Some("a=2"));
    }

    #[test]
    fn a_matching_last_rule_ends_the_search_and_another_does_not() {
        let rules = Rules::compile(vec![
            rule("ANY", "/", &[("a", 1)], false),
            rule("GET", "/x?k=1", &[("b", 1)], true),
            rule("POST", "/x", &[("b", 1)], true),
            rule("ANY", "/x", &[("c", 1)], false),
        ]);
        assert_eq!(cost(&rules, "GET", "/x?k=1").as_deref(), Some("a=1 b=1"));
        assert_eq!(cost(&rules, "GET", "/x?k=2").as_deref(), Some("a=1 c=1"));
        assert_eq!(cost(&rules, "POST", "/x").as_deref(), Some("a=1 b=1"));
    }

    #[test]
    fn a_free_request_matches_and_costs_nothing() {
        let rules = Rules::compile(vec![
            rule("ANY", "/health$", &[], true),
            rule("ANY", "/", &[("a", 1)], false),
        ]);
        assert_eq!(cost(&rules, "GET", "/health").as_deref(), Some(""));
        assert_eq!(cost(&rules, "GET", "/healthy").as_deref(), Some("a=1"));
    }

    #[test]
    fn without_rules_nothing_matches() {
        assert_eq!(cost(&Rules::default(), "GET", "/"), None);
        assert_eq!(cost(&Rules::compile(vec![]), "GET", "/"), None);
    }

    #[test]
    fn usage_adds_to_what_was_there() {
        let rules = Rules::compile(vec![rule("GET", "/", &[("a", 1)], false)]);
        let mut usage = Usage::new();
        usage.add(metric("a"), 5);
        assert!(rules.matching(b"GET", b"/", &mut usage));
        assert_eq!(usage.iter().collect::<Vec<_>>(), [(metric("a"), 6)]);
    }

    #[test]
    fn a_pattern_matched_in_several_ways_counts_once() {
        let rules = Rules::compile(vec![
            rule("GET", "/{x}a", &[("a", 1)], false),
            rule("GET", "/{x}a{y}", &[("b", 1)], false),
            rule("GET", "/{x}{y}", &[("c", 1)], false),
        ]);
        assert_eq!(cost(&rules, "GET", "/aaaa").as_deref(), Some("a=1 b=1 c=1"));
    }

    #[test]
    fn constraints_come_from_the_pattern_only_if_none_are_given() {
        let usage = || vec![(metric("a"), 1)];
        let pattern = "/x?k={v}&l=a+b";
        let own = Rule::new("GET", pattern, None, usage(), false).unwrap();
        let own = Rules::compile(vec![own]);
        assert!(cost(&own, "GET", "/x?l=a%20b&k").is_some());
        assert!(cost(&own, "GET", "/x?k=1").is_none());
        let none = Rule::new("GET", pattern, Some(&[]), usage(), false).unwrap();
        assert!(cost(&Rules::compile(vec![none]), "GET", "/x").is_some());
        let given = [("m".to_owned(), "a+b".to_owned())];
        let given = Rule::new("GET", pattern, Some(&given), usage(), false).unwrap();
        let given = Rules::compile(vec![given]);
        assert!(cost(&given, "GET", "/x?m=a%2Bb").is_some());
        assert!(cost(&given, "GET", "/x?m=a+b").is_none());
    }

    #[test]
    fn a_second_question_mark_belongs_to_the_query() {
        let rules = Rules::compile(vec![rule("GET", "/x?k=?", &[("a", 1)], false)]);
        assert!(cost(&rules, "GET", "/x?k=?").is_some());
        assert!(cost(&rules, "GET", "/x??k=?").is_none());
    }

    #[test]
    fn a_refused_rule_says_what_is_wrong_with_it() {
        let a = metric("a");
        let refused = |method: &str, pattern: &str, usage: Vec<(MetricId, u64)>| {
            Rule::new(method, pattern, None, usage, false)
                .unwrap_err()
                .to_string()
        };
        let one = || vec![(a, 1)];
        for (error, says) in [
            (refused("", "/", one()), "not an HTTP method"),
            (refused("GET ", "/", one()), "\"GET \" is not"),
            (refused("GET", "x", one()), "does not start with /"),
            (refused("GET", "?x=1", one()), "does not start with /"),
            (refused("GET", "/{x", one()), "each { needs its }"),
            (refused("GET", "/{x?}", one()), "each { needs its }"),
            (refused("GET", "/x?k=1$", one()), "before the ?"),
            (refused("GET", "/x?k=1&%6b=2", one()), "parameter \"k\""),
            (refused("GET", "/x", vec![]), "must be `last`"),
            (refused("GET", "/x", vec![(a, 0)]), "delta of 0"),
            (refused("GET", "/x", vec![(a, MAX_DELTA + 1)]), "64-bit"),
        ] {
            assert!(error.contains(says), "{error:?} does not say {says:?}");
        }
        assert!(Rule::new("GET", "/x", None, vec![(a, MAX_DELTA)], false).is_ok());
    }

    /// With backtracking over all splits, this would not end in a lifetime.
    #[test]
    fn a_path_that_almost_matches_many_placeholders_ends() {
        let pattern = format!("/{}b$", "{x}a".repeat(200));
        let rules = Rules::compile(vec![rule("GET", &pattern, &[("a", 1)], false)]);
        let path = format!("/{}", "a".repeat(4000));
        assert_eq!(cost(&rules, "GET", &path), None);
        assert!(cost(&rules, "GET", &format!("{path}b")).is_some());
    }
}
