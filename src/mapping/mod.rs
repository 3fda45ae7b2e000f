//! What a request costs: its method and target are matched against a service's
//! mapping rules, and what the matching rules say is its usage.
//!
//! This room reads bytes and returns numbers. It has no I/O, and no request can
//! make it panic.
//!
//! # A rule
//!
//! A [`Rule`] has a method, a pattern, perhaps constraints on the query, a usage,
//! and a flag `last`. Rules are tried in the order in which they are configured.
//! **All** rules that match add up; a matching rule with `last` ends the search, so the
//! rules after it count nothing for this request. A request that no rule matches
//! has no price: the filter answers it with 404.
//!
//! # Method
//!
//! Compared exactly, case included. `ANY`, in capitals, matches every method.
//!
//! # Path
//!
//! A pattern starts with `/`. What stands before its first `?` is about the path:
//!
//! | in the pattern | matches |
//! |---|---|
//! | `{name}` | one or more characters within one segment: never `/`, never an encoded `/`, never NUL. The name only documents. |
//! | `$` as the last character | the end of the path |
//! | anything else | itself, case included: `.`, `*`, `+`, `(` mean nothing special, `{}` and a `$` elsewhere stand for themselves |
//!
//! - Without `$`, a pattern matches every path that **begins** with it: `/foo` also
//!   matches `/foobar` and `/foo/bar`; `/` matches everything.
//! - A placeholder may be part of a segment, and there may be several in one:
//!   `/{file}.json$` matches `/a.b.json`.
//! - `{` and `}` must pair up within a segment. For a literal brace write `%7B` or `%7D`, for
//!   a literal `$` at the end `%24`.
//!
//! Pattern and path are compared in one canonical form:
//!
//! - Percent-encoding does not matter: `%41` is `A`, `%c3%a9` is `%C3%A9` is a raw `é`, a space is
//!   `%20`. Decoding happens once: `%2525` is the text `%25`. A `%` that starts no escape is a
//!   literal `%`. The one exception is `%2F` (or `%2f`): it equals itself and never `/`, for an
//!   API may well take the two for different things.
//! - Repeated slashes are one slash.
//! - Segments `.` and `..` are resolved as in RFC 3986, section 5.2.4 (never above the root), also if
//!   they were encoded. A slash at the end is kept: `/foo$` does not match `/foo/`. The last segment of
//!   a pattern without `$` is the beginning of a segment, so there dots are just dots: `/.` matches
//!   `/.well-known`.
//!
//! A target that does not start with `/` (`*`, for instance) matches no rule.
//!
//! # Query
//!
//! Constraints are names with a value each. They are either given next to the
//! pattern, as 3scale's `querystring_parameters` are, and then the pattern's own
//! `?…` is ignored; or, if none are given, read from the pattern's `?…`.
//!
//! - The request's query must have each name, case included. Other parameters and
//!   their order do not matter.
//! - A value that contains a placeholder (`{name}` of ASCII letters, digits, `_` and `-`) accepts
//!   every value, also none. So does `a{x}b`: what surrounds a placeholder is not compared. Any other
//!   value must be equal.
//! - If the request repeats a name, the last value counts.
//! - Query strings are form-encoded: `+` is a space, `%2F` is `/`, a bad escape is a literal `%`,
//!   `k` is `k=`. So is the `?…` of a pattern; values given next to the pattern are plain text.
//!
//! # Usage
//!
//! A rule adds its deltas to [`Usage`], metric by metric. Deltas lie between 1 and
//! [`MAX_DELTA`]. A rule without any is refused unless it is `last`: then it says on purpose that these
//! requests are free. The usage of a method is also usage of its ancestors
//! ([`Metrics::ancestors`]); that is for the limits to take into account, here only the metrics that
//! rules name are counted.
//!
//! # Cost
//!
//! [`Rules::compile`] builds one index of all patterns, so a match costs about one walk along the
//! path, however many rules there are, plus a little for each rule that matches. No path can
//! make it worse than its length times the number of placeholders that it may enter.
//! Nothing is allocated for a path in canonical form as long as few rules match, and few have
//! several placeholders in one segment.

mod canonical;
mod index;
mod metrics;
mod pattern;
#[cfg(all(test, not(target_family = "wasm")))]
mod property_tests;
mod query;
#[cfg(all(test, not(target_family = "wasm")))]
mod reference;
mod rules;
mod usage;

pub(crate) use canonical::path as canonical_path;
pub use metrics::{MetricId, Metrics, MetricsError};
pub use rules::{MAX_DELTA, Rule, RuleError, Rules};
pub use usage::Usage;
