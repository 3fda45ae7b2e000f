//! Faults that tests ask for: what goes wrong, where, and how often.

use crate::backend::Endpoint;
use serde::{Deserialize, Serialize};

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The call is handled, and its answer held back for so many milliseconds.
    DelayMs(u64),
    /// The call is not handled; the answer has this status.
    Status(u16),
    /// The call is handled; the answer has this status all the same.
    StatusAfter(u16),
    /// The call is neither handled nor answered.
    Hang,
    /// The call is not handled; the connection is reset.
    ResetBefore,
    /// The call is handled; the connection is reset instead of an answer.
    ResetAfter,
    /// What the call reports is applied so many milliseconds late.
    LagMs(u64),
}

/// Which calls a fault befalls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultScope {
    /// Authorize and authrep, with and without `oauth_`.
    Authorize,
    /// Reports.
    Report,
    /// Every call.
    Any,
}

/// A fault, where it happens, and how many times (none: until it is taken away).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultRule {
    /// Which calls.
    pub endpoint: FaultScope,
    /// What goes wrong.
    pub fault: Fault,
    /// How many times yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

impl FaultRule {
    /// A fault that stays until it is taken away.
    #[must_use]
    pub const fn always(endpoint: FaultScope, fault: Fault) -> Self {
        Self {
            endpoint,
            fault,
            times: None,
        }
    }

    /// A fault that befalls the next so many calls.
    #[must_use]
    pub const fn times(endpoint: FaultScope, fault: Fault, times: u32) -> Self {
        Self {
            endpoint,
            fault,
            times: Some(times),
        }
    }
}

/// The fault of a call: that of the first rule that covers it and is not used up.
pub(crate) fn take(rules: &mut [FaultRule], endpoint: Endpoint) -> Option<Fault> {
    let rule = rules
        .iter_mut()
        .find(|rule| rule.times != Some(0) && covers(rule.endpoint, endpoint))?;
    rule.times = rule.times.map(|times| times.saturating_sub(1));
    Some(rule.fault)
}

const fn covers(scope: FaultScope, endpoint: Endpoint) -> bool {
    match scope {
        FaultScope::Any => true,
        FaultScope::Report => matches!(endpoint, Endpoint::Report),
        FaultScope::Authorize => matches!(
            endpoint,
            Endpoint::Authorize
                | Endpoint::Authrep
                | Endpoint::OauthAuthorize
                | Endpoint::OauthAuthrep
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_rule_that_is_not_used_up_decides() {
        let mut rules = [
            FaultRule::times(FaultScope::Report, Fault::Hang, 2),
            FaultRule::always(FaultScope::Any, Fault::Status(500)),
        ];
        let mut next = |endpoint| take(&mut rules, endpoint);
        assert_eq!(next(Endpoint::Report), Some(Fault::Hang));
        assert_eq!(next(Endpoint::Authrep), Some(Fault::Status(500)));
        assert_eq!(next(Endpoint::Report), Some(Fault::Hang));
        assert_eq!(next(Endpoint::Report), Some(Fault::Status(500)));
    }

    #[test]
    fn rules_are_read_from_json_as_the_readme_writes_them() {
        let text = r#"[{"endpoint":"report","fault":"reset_after","times":2},
            {"endpoint":"any","fault":{"delay_ms":50}}]"#;
        let rules: Vec<FaultRule> = serde_json::from_str(text).unwrap();
        let expected = [
            FaultRule::times(FaultScope::Report, Fault::ResetAfter, 2),
            FaultRule::always(FaultScope::Any, Fault::DelayMs(50)),
        ];
        assert_eq!(rules, expected);
    }
}
