//! Durations as people write them: `"500ms"`, `"10s"`, `"10m"`, `"1h"`, `"1d"`.
//!
//! Apart because the form is Tollgate's own: one whole number and one unit, so that
//! there is one way to write each duration and no question what `1m30` means.

use std::time::Duration;

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1_000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// Reads a whole number of one unit; nothing else, and nothing that overflows u64
/// milliseconds.
pub(super) fn parse(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let (_, milliseconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let count: u64 = number.parse().ok()?;
    count.checked_mul(*milliseconds).map(Duration::from_millis)
}

/// Writes a duration of whole milliseconds in its largest exact unit.
pub(super) fn shown(duration: Duration) -> String {
    let milliseconds = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    UNITS
        .iter()
        .rev()
        .find(|(_, unit)| milliseconds >= *unit && milliseconds.checked_rem(*unit) == Some(0))
        .and_then(|(name, unit)| {
            let count = milliseconds.checked_div(*unit)?;
            Some(format!("{count}{name}"))
        })
        .unwrap_or_else(|| "0s".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn each_unit_is_read_and_written() {
        for (text, milliseconds) in [
            ("500ms", 500),
            ("10s", 10_000),
            ("10m", 600_000),
            ("1h", 3_600_000),
            ("1d", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Some(Duration::from_millis(milliseconds)));
            assert_eq!(shown(Duration::from_millis(milliseconds)), text);
        }
        assert_eq!(shown(Duration::from_millis(1_500)), "1500ms");
    }

    #[test]
    fn anything_but_one_whole_number_and_one_unit_is_refused() {
        for text in [
            "",
            "s",
            "10",
            "-1s",
            "+1s",
            "1.5s",
            "1m30s",
            "1 s",
            " 1s",
            "1s ",
            "1S",
            "1us",
            "1sec",
            "\u{661}s",
            "18446744073709551616ms",
            "18446744073709551615s",
        ] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
