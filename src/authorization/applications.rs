//! What this process knows of its applications: the decision about a request, and
//! what becomes of an answer of service management.
//!
//! Apart from the table so that the rules of freshness stand in one place: fresh
//! records decide, stale ones decide and are refreshed behind, everything else asks.

use super::accuracy::Accuracy;
use super::marks::{Mark, Marks};
use super::record::{Freshness, Look, Record, Refusal, State};
use super::strangers::Strangers;
use super::table::{Change, Slot, Table, TableError};
use crate::credentials::{Digest, Kind};
use crate::mapping::{Metrics, Usage};
use crate::moment::Moment;
use crate::service_management::{Application, Authorization, Denial};
use crate::shared_data::SharedData;

/// How long answers are relied on, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Lifetimes {
    /// An authorization decides by itself.
    pub ttl: u64,
    /// A denial is remembered.
    pub negative_ttl: u64,
    /// After its `ttl`, an authorization still decides while a refresh is tried.
    pub stale_if_error: u64,
    /// How limits are shared with other gateways.
    pub accuracy: Accuracy,
}

/// One application of one service, as it is known by. `Debug` does not show the credential.
#[derive(Clone, Copy)]
pub struct Identity<'a> {
    /// Where its record is looked for.
    pub digest: Digest,
    /// The service, in one cluster and authority.
    pub scope: u64,
    /// What kind of credential it is known by.
    pub kind: Kind,
    /// The credential as it must be reported.
    pub value: &'a [u8],
}

/// An application as service management is asked and told about it.
#[must_use]
pub const fn application(kind: Kind, value: &[u8]) -> Application<'_> {
    match kind {
        Kind::UserKey => Application::UserKey(value),
    }
}

/// The decision about one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass, and has been counted.
    Admitted {
        /// Whether it was decided on an answer older than its `ttl`.
        stale: bool,
    },
    /// It may not pass.
    Refused(Refusal),
    /// Service management must be asked first.
    Unknown,
}

/// What became of an answer.
#[derive(Debug)]
pub enum Learned {
    /// It is remembered: decide again.
    Remembered,
    /// No slot may give way: decide on this record, which nobody else sees, and
    /// report its usage at once.
    Uncached(Box<Record>),
    /// The answer names more metrics than a record holds.
    TooManyMetrics,
}

/// The records and the strangers of this process, as one VM sees them.
pub struct Applications {
    table: Table,
    strangers: Strangers,
}

impl Applications {
    /// Opens the tables of this process, with room for so many applications.
    pub fn open(data: &impl SharedData, capacity: u32) -> Self {
        Self {
            table: Table::open(data, capacity),
            strangers: Strangers::new(capacity),
        }
    }

    /// The slots, for the flush and the refresh.
    pub const fn table(&mut self) -> &mut Table {
        &mut self.table
    }

    /// Number of slots.
    #[must_use]
    pub const fn slots(&self) -> u32 {
        self.table.slots()
    }

    /// Decides about a request that costs `usage` and counts it if it may pass.
    ///
    /// # Errors
    /// Shared data is contended beyond reason or not available: refuse, for nobody
    /// knows whether the request was counted. It was not.
    pub fn decide(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        usage: &Usage,
        metrics: &Metrics,
        now: Moment,
    ) -> Result<Verdict, TableError> {
        if !self.table.has_hint(application.digest)
            && let Some(denial) = self.strangers.find(data, application.digest, now)
        {
            return Ok(Verdict::Refused(Refusal::Denied(denial)));
        }
        let seen = self.table.change(data, application.digest, |record| {
            let freshness = record.freshness(now);
            if freshness == Freshness::Expired {
                return Change::Keep(None);
            }
            let stale = freshness == Freshness::Stale;
            let refresh = stale && !record.refresh_marked;
            record.refresh_marked |= refresh;
            let first = !record.has_pending();
            match record.admit(usage, metrics, now) {
                Ok(()) => Change::Write(Some(Seen {
                    verdict: Verdict::Admitted { stale },
                    dirty: first,
                    refresh,
                    urgent: record.take_urgent(),
                })),
                Err(refusal) => {
                    let seen = Some(Seen {
                        verdict: Verdict::Refused(refusal),
                        dirty: false,
                        refresh,
                        urgent: refusal == Refusal::Early,
                    });
                    if refresh {
                        Change::Write(seen)
                    } else {
                        Change::Keep(seen)
                    }
                }
            }
        })?;
        let Some((slot, Some(seen))) = seen else {
            return Ok(Verdict::Unknown);
        };
        if seen.dirty {
            self.marks(Mark::Dirty, application.scope).set(data, slot);
        }
        if seen.refresh {
            self.marks(Mark::Stale, application.scope).set(data, slot);
        }
        if seen.urgent {
            self.marks(Mark::Urgent, application.scope).set(data, slot);
        }
        Ok(seen.verdict)
    }

    /// The marks of this kind for a service.
    #[must_use]
    pub const fn marks(&self, mark: Mark, scope: u64) -> Marks {
        Marks::new(mark, scope, self.table.slots())
    }

    /// Remembers that service management knows the application and what it may do.
    ///
    /// # Errors
    /// `Unavailable`: shared data is contended beyond reason or not available.
    pub fn learn(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        authorization: &Authorization,
        metrics: &Metrics,
        now: Moment,
        lifetimes: &Lifetimes,
    ) -> Result<Learned, TableError> {
        let take_in = |record: &mut Record| {
            record.refresh(
                authorization,
                metrics,
                now,
                lifetimes.ttl,
                lifetimes.stale_if_error,
            )?;
            record.renew_grants(authorization, lifetimes.accuracy, now);
            Ok::<(), Refusal>(())
        };
        let mut new = new_record(application);
        if take_in(&mut new).is_err() {
            return Ok(Learned::TooManyMetrics);
        }
        let mut fits = true;
        let learned = self.put(data, new, now, |record| {
            fits = take_in(record).is_ok();
        })?;
        if !fits {
            return Ok(Learned::TooManyMetrics);
        }
        self.strangers.forget(data, application.digest, now);
        Ok(learned)
    }

    /// Remembers that service management denies the application.
    ///
    /// # Errors
    /// As [`Applications::learn`].
    pub fn learn_denial(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        denial: Denial,
        now: Moment,
        lifetimes: &Lifetimes,
    ) -> Result<(), TableError> {
        let known = self.table.change(data, application.digest, |record| {
            record.deny(
                denial,
                now,
                lifetimes.negative_ttl,
                lifetimes.stale_if_error,
            );
            Change::Write(())
        })?;
        if known.is_none() {
            self.strangers.remember(
                data,
                application.digest,
                denial,
                now,
                lifetimes.negative_ttl,
            );
        }
        Ok(())
    }

    /// Lets an application in that nobody could say anything about, for a while.
    /// Its usage is kept and reported alone.
    ///
    /// # Errors
    /// As [`Applications::learn`].
    pub fn let_in_unheard(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        now: Moment,
        for_milliseconds: u64,
    ) -> Result<Learned, TableError> {
        let mut new = new_record(application);
        new.let_in_unheard(now, for_milliseconds);
        self.put(data, new, now, |record| {
            record.let_in_unheard(now, for_milliseconds);
        })
    }

    fn put(
        &mut self,
        data: &impl SharedData,
        new: Record,
        now: Moment,
        merge: impl FnMut(&mut Record),
    ) -> Result<Learned, TableError> {
        match self.table.put(data, &new, now, merge) {
            Ok(_slot) => Ok(Learned::Remembered),
            Err(TableError::Full) => Ok(Learned::Uncached(Box::new(new))),
            Err(TableError::Unavailable) => Err(TableError::Unavailable),
        }
    }

    /// Takes in an answer about the application that a slot was asked about. Does
    /// nothing if the slot has gone to somebody else.
    ///
    /// # Errors
    /// As [`Applications::learn`].
    pub fn refresh(
        &mut self,
        data: &impl SharedData,
        (slot, digest): (Slot, Digest),
        answer: Result<&Authorization, Denial>,
        metrics: &Metrics,
        now: Moment,
        lifetimes: &Lifetimes,
    ) -> Result<Look, TableError> {
        let seen = self.table.change_slot(data, slot, |record| {
            if record.digest != digest {
                return None;
            }
            let mut look = Look::default();
            match answer {
                Ok(authorization) => {
                    let _ = record.refresh(
                        authorization,
                        metrics,
                        now,
                        lifetimes.ttl,
                        lifetimes.stale_if_error,
                    );
                    look = record.renew_grants(authorization, lifetimes.accuracy, now);
                }
                Err(denial) => {
                    record.deny(
                        denial,
                        now,
                        lifetimes.negative_ttl,
                        lifetimes.stale_if_error,
                    );
                }
            }
            Some(Change::Write(look))
        })?;
        Ok(seen.unwrap_or_default())
    }
}

/// What one run of a decision saw.
#[derive(Clone, Copy)]
struct Seen {
    verdict: Verdict,
    dirty: bool,
    refresh: bool,
    urgent: bool,
}

fn new_record(application: &Identity<'_>) -> Record {
    let mut record = Record::vacant();
    record.state = State::Live;
    record.digest = application.digest;
    record.scope = application.scope;
    record.kind = application.kind;
    record.identity = application.value.to_vec();
    record
}
