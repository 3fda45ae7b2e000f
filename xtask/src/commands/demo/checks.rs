//! What the demo says and whether it held: a failed check is told at once, and the
//! others still run.

use std::fmt::Display;
use std::io::{IsTerminal, Write, stdout};
use std::time::Instant;

use anyhow::{Result, bail};

/// Where what was seen begins, in columns, so that figures stand below each other.
const SEEN_FROM: usize = 42;

/// Prints a line. Nobody may be reading any more (`| head`), which is no reason to
/// leave Envoy behind.
pub fn say(line: impl Display) {
    let _ = writeln!(stdout(), "{line}");
}

/// The results so far. Every check is printed with what was seen.
pub struct Checks {
    out: Box<dyn Write>,
    colours: bool,
    start: Instant,
    part: String,
    passed: usize,
    failed: Vec<String>,
}

impl Checks {
    /// None yet. Colours are for terminals whose user has not said `NO_COLOR`.
    pub fn new() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            out: Box::new(stdout()),
            colours: stdout().is_terminal() && !refused,
            start: Instant::now(),
            part: String::new(),
            passed: 0,
            failed: Vec::new(),
        }
    }

    /// Prints the headline of a part of the story.
    pub fn headline(&mut self, text: &str) {
        text.clone_into(&mut self.part);
        self.say(&format!("\n{}", self.painted("1", text)));
    }

    /// Prints a line that claims nothing.
    pub fn remark(&mut self, text: impl Display) {
        self.say(&format!("  {} {text}", self.painted("2", "·")));
    }

    /// What was seen must be what was expected.
    pub fn equal<T: PartialEq + Display>(&mut self, what: &str, expected: T, seen: T) {
        let holds = expected == seen;
        self.holds(what, expected, seen, holds);
    }

    /// What was seen must be right, which the caller judges; `expected` is for the
    /// message if it is not.
    pub fn holds(&mut self, what: &str, expected: impl Display, seen: impl Display, holds: bool) {
        if holds {
            self.passed += 1;
            let what = format!("{what}:");
            let mark = self.painted("32", "✓");
            self.say(&format!("  {mark} {what:<SEEN_FROM$} {seen}"));
        } else {
            let what = what.trim_start();
            let failure = format!("{what}: expected {expected}, saw {seen}");
            let (mark, told) = (self.painted("31", "✗"), self.painted("31", &failure));
            self.say(&format!("  {mark} {told}"));
            self.failed.push(format!("{}: {failure}", self.part));
        }
    }

    /// Prints the sum, and fails with all that failed.
    pub fn verdict(&mut self) -> Result<()> {
        let total = self.passed + self.failed.len();
        if self.failed.is_empty() {
            let seconds = self.start.elapsed().as_secs_f64();
            let sum = format!("All {total} checks held, in {seconds:.1} s.");
            self.say(&format!("\n{}", self.painted("32", &sum)));
            return Ok(());
        }
        bail!(
            "{} of {total} checks failed:\n  {}",
            self.failed.len(),
            self.failed.join("\n  ")
        )
    }

    fn say(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }

    /// The text in a colour or style (a code of ECMA-48, SGR).
    fn painted(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checks(colours: bool) -> Checks {
        Checks {
            out: Box::new(std::io::sink()),
            colours,
            start: Instant::now(),
            part: String::new(),
            passed: 0,
            failed: Vec::new(),
        }
    }

    #[test]
    fn a_failure_does_not_hide_the_next_and_both_say_what_was_seen() {
        let mut checks = checks(false);
        checks.headline("Part");
        checks.equal("admitted", 5, 6);
        checks.equal("refused", 1, 1);
        checks.holds("in time", "1 to 3", 4, false);
        assert_eq!(
            checks.verdict().unwrap_err().to_string(),
            "2 of 3 checks failed:\n  Part: admitted: expected 5, saw 6\n  Part: in time: expected 1 to 3, saw 4"
        );
    }

    #[test]
    fn without_a_failure_the_verdict_is_good() {
        let mut checks = checks(true);
        checks.equal("admitted", 5, 5);
        assert!(checks.verdict().is_ok());
    }

    #[test]
    fn colours_are_for_terminals() {
        assert_eq!(checks(false).painted("31", "no"), "no");
        assert_eq!(checks(true).painted("31", "no"), "\x1b[31mno\x1b[0m");
    }
}
