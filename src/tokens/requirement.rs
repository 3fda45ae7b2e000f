//! What a token must allow, for the requests of a mapping rule.
//!
//! Apart from the claims because requirements come from the operator, and what they come to
//! for a token is found out once and remembered with it, as a bit each.

use super::claims::{ClaimPath, Claims, values};

/// Everything that the token of a request must have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requirement {
    /// Scopes, all of them.
    pub scopes: Vec<Box<str>>,
    /// Conditions on claims, all of them.
    pub claims: Vec<ClaimCondition>,
}

/// What a claim must hold. Values are compared as texts; a claim that is no list is a list of one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimCondition {
    /// Where the claim is.
    pub path: ClaimPath,
    /// At least one of these, if there are any.
    pub any_of: Vec<Box<str>>,
    /// Every one of these.
    pub all_of: Vec<Box<str>>,
}

/// Which of a service's requirements a token meets, or which a request has: the bit of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requirements(u64);

impl Requirements {
    /// How many a service may have.
    pub const MOST: usize = 63;

    /// The same, and that of this number.
    #[must_use]
    pub fn with(self, number: usize) -> Self {
        let bit = u32::try_from(number)
            .ok()
            .and_then(|number| 1_u64.checked_shl(number));
        Self(self.0 | bit.unwrap_or(0))
    }

    /// Whether all of these are among them.
    #[must_use]
    pub const fn has_all(self, wanted: Self) -> bool {
        wanted.0 & !self.0 == 0
    }
}

impl Requirement {
    /// Whether these claims have it all.
    #[must_use]
    pub fn is_met_by(&self, claims: &Claims) -> bool {
        self.scopes.iter().all(|scope| claims.has_scope(scope))
            && self
                .claims
                .iter()
                .all(|condition| condition.is_met_by(claims))
    }
}

impl ClaimCondition {
    fn is_met_by(&self, claims: &Claims) -> bool {
        let Some(claim) = claims.at(&self.path) else {
            return false;
        };
        let has = |wanted: &str| values(claim).any(|value| value == wanted);
        (self.any_of.is_empty() || self.any_of.iter().any(|wanted| has(wanted)))
            && self.all_of.iter().all(|wanted| has(wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn texts(texts: &[&str]) -> Vec<Box<str>> {
        texts.iter().map(|text| (*text).into()).collect()
    }

    fn met(any_of: &[&str], all_of: &[&str], claims: &str) -> bool {
        let requirement = Requirement {
            scopes: Vec::new(),
            claims: vec![ClaimCondition {
                path: ClaimPath::new(["realm_access", "roles"]).unwrap(),
                any_of: texts(any_of),
                all_of: texts(all_of),
            }],
        };
        let claims = format!(r#"{{"realm_access":{{"roles":{claims}}}}}"#);
        requirement.is_met_by(&Claims::parse(claims.as_bytes()).unwrap())
    }

    #[test]
    fn any_of_takes_one_and_all_of_takes_every_one() {
        assert!(met(&["a", "b"], &[], r#"["x","b"]"#));
        assert!(!met(&["a", "b"], &[], r#"["x"]"#));
        assert!(met(&[], &["a", "b"], r#"["b","c","a"]"#));
        assert!(!met(&[], &["a", "b"], r#"["a"]"#));
        assert!(met(&["c"], &["a"], r#"["a","c"]"#));
        assert!(!met(&["c"], &["a"], r#"["a"]"#));
    }

    #[test]
    fn a_claim_that_is_no_list_is_a_list_of_one() {
        assert!(met(&["a"], &["a"], r#""a""#));
        assert!(met(&["true"], &[], "true"));
        assert!(met(&["7"], &[], "7"));
        for other in [r#""a b""#, r#"{"a":true}"#, "null", r#"[["a"]]"#, "[]"] {
            assert!(!met(&["a"], &[], other), "{other}");
        }
    }

    #[test]
    fn all_scopes_are_needed() {
        let requirement = Requirement {
            scopes: texts(&["read", "write"]),
            claims: Vec::new(),
        };
        let met = |claims: &str| requirement.is_met_by(&Claims::parse(claims.as_bytes()).unwrap());
        assert!(met(r#"{"scope":"write read"}"#));
        assert!(!met(r#"{"scope":"read"}"#));
        assert!(!met("{}"));
    }

    #[test]
    fn a_set_has_all_of_a_smaller_one() {
        let some = Requirements::default().with(0).with(62);
        assert!(some.has_all(Requirements::default()));
        assert!(some.has_all(Requirements::default().with(62)));
        assert!(!some.has_all(Requirements::default().with(1)));
        assert!(!Requirements::default().has_all(Requirements::default().with(63)));
    }
}
