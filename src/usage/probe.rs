//! Which metrics service management knows, found out before their usage is sent.
//!
//! A report is answered with 202 before it is looked into, and a single metric that the
//! service does not have costs the whole batch (protocol section 10, captures `f09`). A question with
//! `usage[metric]=0` counts nothing, asks nothing of a limit that no usage would not ask, and is
//! refused by the name of the first metric that is unknown (section 8, captures `a07`, `a21`). So the leader
//! asks about an application that it knows, with all metrics at once, and again without
//! what was refused.
//!
//! Apart from the flush, which only asks here what it must not send. All of this is in
//! the leader's memory: the next one asks again.

use crate::authorization::Slot;
use crate::credentials::Digest;
use crate::mapping::Metrics;
use crate::service_management::MetricsAnswer;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What was found out holds for so long, while it is used.
const KNOWN_MILLISECONDS: u64 = 600_000;
/// Metrics that are unknown are asked about again after so long for each of them, for as many
/// questions are needed; but not before [`LEAST_PAUSE`].
const PAUSE_OF_ONE: u64 = 10_000;
const LEAST_PAUSE: u64 = 30_000;
/// Usage of a metric that nobody could say anything of is held back for so long at most.
const LONGEST_HOLD: u64 = 600_000;
/// Answers that say nothing of metrics, until usage is no longer held back for them.
const MOST_USELESS: u32 = 3;
/// Metrics that are kept account of: those of several configurations. More are not held back.
const MOST_METRICS: usize = 4 * Metrics::MAX;
/// Bytes of names in one question at most. Percent-encoded, with what stands around them, it stays below
/// the 10,240 bytes that the listener takes (protocol section 12).
const MOST_BYTES: usize = 2_048;
/// What a parameter has around its name, in the same measure.
const BYTES_AROUND: usize = 6;

/// What is known of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// Nobody has said. Its usage waits until then (monotonic milliseconds).
    Open { until: u64 },
    /// Service management has it. Asked again after that.
    Known { until: u64 },
    /// Service management does not have it: its usage waits.
    Unknown,
}

/// What is to be done after an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Slots with usage that may be sent now.
    pub released: BTreeSet<Slot>,
    /// Whether all that was to be asked has been answered.
    pub complete: bool,
}

/// What the leader of a service knows of its metrics.
#[derive(Debug, Default)]
pub struct Probe {
    metrics: BTreeMap<String, Standing>,
    /// Slots with usage that waits.
    held: BTreeSet<Slot>,
    /// An application to ask about.
    witness: Option<(Slot, Digest)>,
    /// The witness of the last useless answer: another is better.
    useless_witness: Option<Digest>,
    useless: u32,
    /// Nobody has used a metric of which it is not known, or not any more, since all
    /// were asked about.
    content: bool,
    /// What is to be asked: the metrics of each question.
    parts: VecDeque<Vec<String>>,
    /// The metrics of the question under way.
    asked: Option<Vec<String>>,
    not_before: u64,
    failures: u32,
}

impl Probe {
    /// Whether usage of a metric must wait now (monotonic milliseconds). `limited`: the last
    /// answer about its application had a limit of it. `alone`: its report holds nothing else.
    #[must_use]
    pub fn withholds(&self, metric: &str, limited: bool, alone: bool, now: u64) -> bool {
        match self.metrics.get(metric) {
            Some(Standing::Unknown) => true,
            Some(Standing::Known { .. }) => false,
            Some(Standing::Open { until }) => !limited && !alone && now < *until,
            None => !limited && !alone && self.metrics.len() < MOST_METRICS,
        }
    }

    /// Whether [`Probe::note`] has anything to note.
    #[must_use]
    pub fn is_news(&self, metric: &str, now: u64) -> bool {
        !matches!(self.metrics.get(metric), Some(Standing::Known { until }) if now < *until)
    }

    /// Usage of a metric was found in a record.
    pub fn note(&mut self, metric: &str, limited: bool, now: u64) {
        let standing = self.metrics.get(metric).copied();
        if standing.is_none() && self.metrics.len() >= MOST_METRICS {
            return;
        }
        let known = Standing::Known {
            until: now.saturating_add(KNOWN_MILLISECONDS),
        };
        let standing = match standing {
            // The record may be older than what was found out.
            Some(Standing::Unknown) => return,
            _ if limited => known,
            Some(standing) => {
                self.content = false;
                standing
            }
            None => {
                self.content = false;
                Standing::Open {
                    until: now.saturating_add(LONGEST_HOLD),
                }
            }
        };
        self.metrics.insert(metric.to_owned(), standing);
    }

    /// Usage in this slot waits.
    pub fn hold(&mut self, slot: Slot) {
        self.held.insert(slot);
    }

    /// The slots with usage that waits, to be looked at again.
    pub fn take_held(&mut self) -> BTreeSet<Slot> {
        std::mem::take(&mut self.held)
    }

    /// An application that could be asked about, for its usage is to be sent.
    pub fn offer(&mut self, slot: Slot, application: Digest) {
        let useless = self.useless_witness;
        let better = |(_, witness): &(Slot, Digest)| Some(*witness) == useless;
        if self.witness.as_ref().is_none_or(better) {
            self.witness = Some((slot, application));
        }
    }

    /// The application to ask about now, if there is anything to ask.
    pub fn due(&mut self, metrics: &Metrics, now: u64) -> Option<(Slot, Digest)> {
        if self.asked.is_some() || now < self.not_before {
            return None;
        }
        let witness = self.witness?;
        if self.parts.is_empty() && (!self.content || !self.held.is_empty()) {
            self.plan(metrics, now);
        }
        (!self.parts.is_empty()).then_some(witness)
    }

    /// The application that was [`due`](Self::due) is no longer there.
    pub fn has_gone(&mut self) {
        self.witness = None;
    }

    /// The metrics to ask about, now that the question is asked.
    pub fn ask(&mut self) -> Vec<String> {
        let part = self.parts.pop_front().unwrap_or_default();
        self.asked = Some(part.clone());
        part
    }

    /// Everything of which it is not known comes into as few questions as it fits in; what
    /// was unknown last time behind the rest, which somebody may wait for.
    fn plan(&mut self, metrics: &Metrics, now: u64) {
        for metric in metrics.ids() {
            if self.metrics.len() < MOST_METRICS {
                let open = Standing::Open {
                    until: now.saturating_add(LONGEST_HOLD),
                };
                let name = metrics.name(metric).to_owned();
                self.metrics.entry(name).or_insert(open);
            }
        }
        let mut open = Vec::new();
        let mut unknown = Vec::new();
        for (metric, standing) in &self.metrics {
            match standing {
                Standing::Known { until } if now < *until => {}
                Standing::Unknown => unknown.push(metric.clone()),
                Standing::Known { .. } | Standing::Open { .. } => open.push(metric.clone()),
            }
        }
        for names in [open, unknown] {
            let mut part = Vec::new();
            let mut bytes = 0_usize;
            for name in names {
                let more = name.len().saturating_add(BYTES_AROUND);
                bytes = bytes.saturating_add(more);
                if bytes > MOST_BYTES {
                    self.parts.push_back(std::mem::take(&mut part));
                    bytes = more;
                }
                part.push(name);
            }
            if !part.is_empty() {
                self.parts.push_back(part);
            }
        }
        self.content = true;
    }

    /// Takes in the answer to the question about these metrics. `pause`: how long to wait
    /// after a failure, by the number of failures before.
    pub fn answered(
        &mut self,
        metrics: &[String],
        answer: MetricsAnswer,
        now: u64,
        pause: impl Fn(u32) -> u64,
    ) -> Found {
        // Another one may be under way, if this VM has led before.
        let Some(asked) = self.asked.take_if(|asked| asked == metrics) else {
            return Found::default();
        };
        let mut found = Found::default();
        match answer {
            MetricsAnswer::AllKnown => {
                let known = Standing::Known {
                    until: now.saturating_add(KNOWN_MILLISECONDS),
                };
                self.metrics
                    .extend(asked.into_iter().map(|metric| (metric, known)));
                found.released = std::mem::take(&mut self.held);
            }
            MetricsAnswer::Unknown(named) => self.refused(asked, named),
            MetricsAnswer::Useless => {
                self.useless = self.useless.saturating_add(1);
                self.useless_witness = self.witness.map(|(_, application)| application);
                if self.useless >= MOST_USELESS {
                    self.open_all(now);
                    found.released = std::mem::take(&mut self.held);
                }
                self.try_again(now, pause);
                return found;
            }
            MetricsAnswer::Failed => {
                self.try_again(now, pause);
                return found;
            }
        }
        self.failures = 0;
        self.useless = 0;
        if self.parts.is_empty() {
            found.complete = true;
            let unknown = u64::try_from(self.unknown().count()).unwrap_or(u64::MAX);
            let pause = unknown.saturating_mul(PAUSE_OF_ONE).max(LEAST_PAUSE);
            self.not_before = now.saturating_add(if unknown > 0 { pause } else { 0 });
        }
        found
    }

    /// One of these metrics is unknown; the others are asked about again.
    fn refused(&mut self, mut asked: Vec<String>, named: Option<String>) {
        let named = match named {
            Some(named) => asked.iter().position(|metric| *metric == named),
            None => (asked.len() == 1).then_some(0),
        };
        match named {
            Some(named) => {
                let metric = asked.remove(named);
                self.metrics.insert(metric, Standing::Unknown);
                if !asked.is_empty() {
                    self.parts.push_front(asked);
                }
            }
            None => {
                let half = asked.split_off(asked.len() / 2);
                for part in [half, asked] {
                    if !part.is_empty() {
                        self.parts.push_front(part);
                    }
                }
            }
        }
    }

    /// Usage of which nothing was said is not held back any longer.
    fn open_all(&mut self, now: u64) {
        for standing in self.metrics.values_mut() {
            if let Standing::Open { until } = standing {
                *until = now;
            }
        }
    }

    fn try_again(&mut self, now: u64, pause: impl Fn(u32) -> u64) {
        self.parts.clear();
        self.content = false;
        self.not_before = now.saturating_add(pause(self.failures));
        self.failures = self.failures.saturating_add(1);
    }

    /// The metrics that service management does not have.
    pub fn unknown(&self) -> impl Iterator<Item = &str> {
        let metrics = self.metrics.iter();
        metrics
            .filter(|(_, standing)| **standing == Standing::Unknown)
            .map(|(metric, _)| metric.as_str())
    }

    /// Forgets everything. The slots whose usage waited.
    pub fn reset(&mut self) -> BTreeSet<Slot> {
        std::mem::take(self).held
    }
}

#[cfg(test)]
#[path = "probe_tests.rs"]
mod tests;
