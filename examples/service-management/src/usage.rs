//! Usage as it is sent: names to values, what the values mean, and how they
//! spread over the hierarchy of metrics (`metric/collection.rb`, `usage.rb`).

use crate::dataset::Metrics;
use crate::error::ApiError;
use crate::parameters::{Parameter, Parameters};
use indexmap::IndexMap;

/// What a usage does to a counter. The numbers saturate far beyond what any
/// counter holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Amount {
    Add(u128),
    Set(u128),
}

impl Amount {
    /// Reads `12` (add) or `#12` (set), with white space around it.
    ///
    /// With white space before the `#` the backend reads a value that adds nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let space = |character: char| matches!(character, ' ' | '\t'..='\r');
        let trimmed = text.trim_matches(space);
        let digits = trimmed.strip_prefix('#').unwrap_or(trimmed);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // All digits: what does not parse is too large.
        let number = digits.parse().unwrap_or(u128::MAX);
        Some(if text.starts_with('#') {
            Self::Set(number)
        } else if trimmed.starts_with('#') {
            Self::Add(0)
        } else {
            Self::Add(number)
        })
    }

    /// The counter after this usage.
    pub const fn apply(self, current: u128) -> u128 {
        match self {
            Self::Add(number) => current.saturating_add(number),
            Self::Set(number) => number,
        }
    }

    /// Ruby's `to_i` of the value: `#12` counts for nothing.
    const fn number(self) -> u128 {
        match self {
            Self::Add(number) => number,
            Self::Set(_) => 0,
        }
    }
}

/// The usage of a request by metric, ancestors included unless it is flat.
///
/// # Errors
/// The first value that is none, or name that is not a metric's.
pub(crate) fn process(
    raw: &Parameters,
    metrics: &Metrics,
    flat: bool,
) -> Result<IndexMap<usize, Amount>, ApiError> {
    let mut sent = IndexMap::new();
    for (name, value) in raw {
        let name = String::from_utf8_lossy(name);
        let name = strip(&name);
        let text = value.text();
        let amount =
            text.as_deref()
                .and_then(Amount::parse)
                .ok_or_else(|| ApiError::UsageValueInvalid {
                    metric: name.to_owned(),
                    value: text.as_deref().map(str::to_owned),
                })?;
        let metric = metrics
            .find(name)
            .ok_or_else(|| ApiError::MetricInvalid(name.to_owned()))?;
        sent.insert(metric, amount);
    }
    if flat {
        return Ok(sent);
    }
    let mut all = sent.clone();
    for (metric, amount) in sent {
        for ancestor in metrics.ancestors(metric) {
            let known = all.get(&ancestor).map_or(0, |known| known.number());
            let amount = match amount {
                Amount::Set(_) => amount,
                Amount::Add(number) => Amount::Add(known.saturating_add(number)),
            };
            all.insert(ancestor, amount);
        }
    }
    Ok(all)
}

/// The value of a metric in a request, by its exact name; none counts as nothing.
pub(crate) fn sent(raw: &Parameters, name: &str) -> Amount {
    raw.get(name.as_bytes())
        .and_then(Parameter::text)
        .and_then(|text| Amount::parse(&text))
        .unwrap_or(Amount::Add(0))
}

/// The usage without what the backend drops before it queues a report: values
/// that are exactly `0`.
pub(crate) fn without_zeros(raw: &Parameters) -> Parameters {
    raw.iter()
        .filter(|(_, value)| **value != Parameter::Text(b"0".to_vec()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

/// Ruby's `strip`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(|character| matches!(character, '\0' | ' ' | '\t'..='\r'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decimal_numbers_to_add_or_to_set() {
        for (text, amount) in [
            ("1", Some(Amount::Add(1))),
            (" 0010\n", Some(Amount::Add(10))),
            ("#7", Some(Amount::Set(7))),
            (" #7", Some(Amount::Add(0))),
            (
                "99999999999999999999",
                Some(Amount::Add(99_999_999_999_999_999_999)),
            ),
            (&"9".repeat(60), Some(Amount::Add(u128::MAX))),
            ("", None),
            ("#", None),
            ("##5", None),
            ("# 5", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("1 2", None),
            ("١", None),
        ] {
            assert_eq!(Amount::parse(text), amount, "{text:?}");
        }
    }
}
