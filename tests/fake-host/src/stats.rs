//! Stats: values by name for the whole process, ids for each VM. Apart because ids
//! die with a VM and values do not.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::Status;

/// Counter, gauge or histogram: what a metric id carries in its lowest two bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

impl Kind {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        [Self::Counter, Self::Gauge, Self::Histogram]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

/// The values of one process. For a histogram the value is how often it was recorded.
#[derive(Default)]
pub(crate) struct Stats(Mutex<BTreeMap<(Kind, String), u64>>);

/// What the ids that one VM defined stand for.
///
/// Source: `WasmBase` of proxy-wasm-cpp-host and `Context` of Envoy: ids rise by 4 within
/// a kind, and the same name defined again is a second id of the same value.
#[derive(Default)]
pub(crate) struct Ids {
    known: BTreeMap<u32, (Kind, String)>,
    /// How many there are of each kind.
    counts: [u32; 3],
}

impl Ids {
    pub(crate) fn define(&mut self, kind: Kind, name: &str) -> u32 {
        let count = &mut self.counts[kind as usize];
        *count += 1;
        let id = *count * 4 + kind as u32;
        self.known.insert(id, (kind, name.to_owned()));
        id
    }

    pub(crate) fn get(&self, id: u32) -> Result<(Kind, String), Status> {
        let kind = Kind::from_number(id & 3).ok_or(Status::BadArgument)?;
        match self.known.get(&id) {
            Some(known) => Ok(known.clone()),
            None if kind == Kind::Histogram => Err(Status::BadArgument),
            None => Err(Status::NotFound),
        }
    }
}

impl Stats {
    fn change(&self, kind: Kind, name: &str, change: impl FnOnce(u64) -> u64) {
        let mut values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let value = values.entry((kind, name.to_owned())).or_default();
        *value = change(*value);
    }

    /// Makes the value readable, at 0, as a defined stat is in Envoy.
    pub(crate) fn define(&self, kind: Kind, name: &str) {
        self.change(kind, name, |value| value);
    }

    /// A counter takes only steps above 0, a histogram none.
    pub(crate) fn increment(&self, kind: Kind, name: &str, step: i64) -> Result<(), Status> {
        match kind {
            Kind::Counter if step > 0 => {}
            Kind::Gauge => {}
            Kind::Counter | Kind::Histogram => return Err(Status::BadArgument),
        }
        self.change(kind, name, |value| value.saturating_add_signed(step));
        Ok(())
    }

    /// Adds to a counter, sets a gauge, adds an observation to a histogram.
    pub(crate) fn record(&self, kind: Kind, name: &str, new: u64) {
        self.change(kind, name, |value| match kind {
            Kind::Counter => value.saturating_add(new),
            Kind::Gauge => new,
            Kind::Histogram => value + 1,
        });
    }

    pub(crate) fn get(&self, kind: Kind, name: &str) -> Result<u64, Status> {
        if kind == Kind::Histogram {
            return Err(Status::BadArgument);
        }
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(values.get(&(kind, name.to_owned())).copied().unwrap_or(0))
    }

    /// Every value by name.
    pub(crate) fn all(&self) -> BTreeMap<String, u64> {
        let values = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        values
            .iter()
            .map(|((_, name), value)| (name.clone(), *value))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_a_vm_s_own_and_values_the_process_s() {
        let stats = Stats::default();
        let (mut one, mut other) = (Ids::default(), Ids::default());
        other.define(Kind::Counter, "filler");
        let (a, b) = (
            one.define(Kind::Counter, "requests"),
            other.define(Kind::Counter, "requests"),
        );
        assert_ne!(a, b);
        for (ids, id) in [(&one, a), (&other, b)] {
            let (kind, name) = ids.get(id).unwrap();
            stats.increment(kind, &name, 2).unwrap();
        }
        assert_eq!(stats.get(Kind::Counter, "requests"), Ok(4));
    }

    #[test]
    fn a_counter_neither_falls_nor_stands_still() {
        let stats = Stats::default();
        let step = |step| stats.increment(Kind::Counter, "c", step);
        assert_eq!(step(0), Err(Status::BadArgument));
        assert_eq!(step(-1), Err(Status::BadArgument));
        assert_eq!(step(1), Ok(()));
    }

    #[test]
    fn an_id_that_was_never_defined_is_not_found() {
        let mut ids = Ids::default();
        let counter = ids.define(Kind::Counter, "c");
        assert_eq!(ids.get(counter + 4), Err(Status::NotFound));
        assert_eq!(ids.get(3), Err(Status::BadArgument));
    }
}
