//! What this process knows of its applications: the decision about a request, and
//! what becomes of an answer of service management.
//!
//! Apart from the table so that the rules of freshness stand in one place: fresh
//! records decide, stale ones decide and are refreshed behind, everything else asks.

use super::accepted::Accepted;
use super::accuracy::Accuracy;
use super::budget::Caller;
use super::in_place;
use super::keys::{ColdValues, KeyList, Keys};
use super::marks::{Mark, Marks};
use super::pauses;
use super::quota::Quota;
use super::record::{Freshness, Look, Record, Refusal, State};
use super::shown::{
    Asked, KeyStanding, Memory, Referrer, Remembered, Shown, is_good, key_digest, key_standing,
};
use super::strangers::Strangers;
use super::table::{Change, Slot, Table, TableError};
use crate::credentials::{Digest, Kind, Part};
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
    /// What is shown besides.
    pub shown: Shown<'a>,
    /// Whether the caller is told what is left of the limits.
    pub tells: bool,
}

/// An application as service management is asked and told about it; told without a key.
#[must_use]
pub fn application<'a>(kind: Kind, value: &'a [u8], app_key: Option<&'a str>) -> Application<'a> {
    match kind {
        Kind::UserKey => Application::UserKey(value),
        Kind::AppId => Application::AppId {
            id: value,
            key: app_key.map(str::as_bytes),
        },
    }
}

/// Looks at a record until its list of keys is read: others may change it meanwhile.
const MOST_LOOKS: usize = 4;

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

/// Whether nothing but the record decides about a request, and the caller is told nothing.
fn is_plain(application: &Identity<'_>) -> bool {
    application.shown.referrer == Referrer::Ignored && !application.tells
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
    accepted: Accepted,
    cold: ColdValues,
    quota: Option<Quota>,
    acceptance_ends: u64,
}

impl Applications {
    /// Opens the tables of this process, with room for so many applications.
    pub fn open(data: &impl SharedData, capacity: u32) -> Self {
        Self {
            table: Table::open(data, capacity),
            strangers: Strangers::new(capacity),
            accepted: Accepted::new(capacity),
            cold: ColdValues::default(),
            quota: None,
            acceptance_ends: u64::MAX,
        }
    }

    /// What the caller of the last decision is to be told: what is left of the limit that
    /// matters most, if one does and the caller is told at all.
    pub const fn take_quota(&mut self) -> Option<Quota> {
        self.quota.take()
    }

    /// Until when the key and the referrer may be relied on that the last decision was about
    /// (monotonic milliseconds), as far as the record does not tell: `u64::MAX` where it does.
    /// From then on whoever shows them is asked about first.
    #[must_use]
    pub const fn acceptance_ends(&self) -> u64 {
        self.acceptance_ends
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
        let Identity {
            digest,
            kind,
            shown,
            ..
        } = *application;
        self.quota = None;
        self.acceptance_ends = u64::MAX;
        if is_plain(application) {
            let cold = &self.cold;
            let good = |keys| {
                key_digest(kind, digest, &shown)
                    .is_none_or(|key| is_good(keys, digest, &shown, key, cold))
            };
            let usual = |bytes: &mut [u8]| {
                in_place::admit(bytes, digest, usage, metrics, now, good).then_some(())
            };
            if self
                .table
                .change_unread(data, digest, now, usual)?
                .is_some()
            {
                return Ok(Verdict::Admitted { stale: false });
            }
        }
        self.decide_as(data, application, usage, metrics, now, true)
    }

    /// Decides about a request when nobody answers: also on what was accepted a long while
    /// ago. [`Verdict::Unknown`] if even so nothing is known.
    ///
    /// # Errors
    /// As [`Applications::decide`].
    pub fn decide_unanswered(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        usage: &Usage,
        metrics: &Metrics,
        now: Moment,
    ) -> Result<Verdict, TableError> {
        self.decide_as(data, application, usage, metrics, now, false)
    }

    #[inline(never)]
    fn decide_as(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        usage: &Usage,
        metrics: &Metrics,
        now: Moment,
        may_ask: bool,
    ) -> Result<Verdict, TableError> {
        self.quota = None;
        self.acceptance_ends = u64::MAX;
        let Identity { digest, shown, .. } = *application;
        let hinted = self.table.has_hint(digest);
        if !hinted && let Some(denial) = self.strangers.find(data, digest, now) {
            return Ok(Verdict::Refused(Refusal::Denied(denial)));
        }
        let key = key_digest(application.kind, digest, &shown);
        let referrer = match shown.referrer {
            Referrer::Ignored => Remembered::Accepted,
            Referrer::Named(referrer) => {
                let referrer = digest.with(Part::Referrer, referrer);
                self.memory(now, may_ask).find(data, referrer)
            }
        };
        let is_plain = is_plain(application);
        let mut accepted = false;
        for _ in 0..MOST_LOOKS {
            let cold = &self.cold;
            let usual = |bytes: &mut [u8]| {
                let good = |keys| key.is_none_or(|key| is_good(keys, digest, &shown, key, cold));
                (is_plain && in_place::admit(bytes, digest, usage, metrics, now, good)).then_some(
                    Reached::Decided(Seen {
                        verdict: Verdict::Admitted { stale: false },
                        dirty: false,
                        refresh: false,
                        urgent: false,
                        quota: None,
                    }),
                )
            };
            let seen = self.table.change_in_place(data, digest, usual, |record| {
                let freshness = record.freshness(now);
                if freshness == Freshness::Expired {
                    return Change::Keep(Reached::Nothing);
                }
                if record.denial.is_none() {
                    match key.map(|key| key_standing(record, &shown, key, cold)) {
                        None | Some(KeyStanding::Good) => {}
                        Some(KeyStanding::Unknown) if accepted => {}
                        Some(standing) => return Change::Keep(Reached::AtKey(standing)),
                    }
                    match referrer {
                        Remembered::Accepted => {}
                        _ if record.keys == Keys::Unheard => {}
                        Remembered::Refused(denial) => {
                            return Change::Keep(Reached::Refused(Refusal::Denied(denial)));
                        }
                        Remembered::Nothing => return Change::Keep(Reached::AtReferrer),
                    }
                }
                let stale = freshness == Freshness::Stale;
                let refresh = stale && !record.refresh_marked;
                record.refresh_marked |= refresh;
                let first = !record.has_pending();
                match record.admit(usage, metrics, now) {
                    Ok(()) => Change::Write(Reached::Decided(Seen {
                        verdict: Verdict::Admitted { stale },
                        dirty: first,
                        refresh,
                        urgent: record.take_urgent(),
                        quota: quota_to_tell(application, record, Ok(())),
                    })),
                    Err(refusal) => {
                        let seen = Reached::Decided(Seen {
                            verdict: Verdict::Refused(refusal),
                            dirty: false,
                            refresh,
                            urgent: refusal == Refusal::Early,
                            quota: quota_to_tell(application, record, Err(refusal)),
                        });
                        if refresh {
                            Change::Write(seen)
                        } else {
                            Change::Keep(seen)
                        }
                    }
                }
            })?;
            match seen {
                Some((slot, Reached::Decided(seen))) => {
                    if seen.dirty {
                        self.marks(Mark::Dirty, application.scope).set(data, slot);
                    }
                    if seen.refresh {
                        self.marks(Mark::Stale, application.scope).set(data, slot);
                    }
                    if seen.urgent {
                        self.marks(Mark::Urgent, application.scope).set(data, slot);
                    }
                    self.quota = seen.quota;
                    return Ok(seen.verdict);
                }
                Some((_, Reached::Refused(refusal))) => return Ok(Verdict::Refused(refusal)),
                Some((slot, Reached::AtKey(KeyStanding::Unread(hash)))) => {
                    if self.cold.find(data, slot, digest, hash).is_none() {
                        return Ok(Verdict::Unknown);
                    }
                }
                Some((_, Reached::AtKey(KeyStanding::Unlisted(since)))) => {
                    let known = key.and_then(|key| self.strangers.find(data, key, now));
                    let asked = since.saturating_add(pauses::PAUSE_MILLISECONDS) > now.monotonic;
                    let wrong = (asked || !may_ask).then_some(Denial::ApplicationKeyInvalid);
                    return Ok(refused_or_unknown(known.or(wrong)));
                }
                Some((_, Reached::AtKey(KeyStanding::Unknown))) => {
                    let key = key.unwrap_or(digest);
                    match self.memory(now, may_ask).find(data, key) {
                        Remembered::Accepted => accepted = true,
                        Remembered::Refused(denial) => return Ok(refused_or_unknown(Some(denial))),
                        Remembered::Nothing => return Ok(Verdict::Unknown),
                    }
                }
                // The record gave way, and only then was it denied: the hint says nothing of it.
                None if hinted && let Some(denial) = self.strangers.find(data, digest, now) => {
                    return Ok(refused_or_unknown(Some(denial)));
                }
                Some((_, Reached::Nothing)) | None => {
                    let wrong_key = key.and_then(|key| self.strangers.find(data, key, now));
                    let wrong_referrer = match referrer {
                        Remembered::Refused(denial) => Some(denial),
                        Remembered::Accepted | Remembered::Nothing => None,
                    };
                    return Ok(refused_or_unknown(wrong_key.or(wrong_referrer)));
                }
                Some((_, Reached::AtKey(KeyStanding::Good) | Reached::AtReferrer)) => break,
            }
        }
        Ok(Verdict::Unknown)
    }

    /// Decides about a request on a record that has no slot, of the answer to which another
    /// request or this one has just waited. [`Verdict::Unknown`] if the answer says nothing of
    /// what this one shows.
    pub fn decide_uncached(
        &mut self,
        data: &impl SharedData,
        record: &mut Record,
        application: &Identity<'_>,
        usage: &Usage,
        metrics: &Metrics,
        now: Moment,
    ) -> Verdict {
        let Identity { digest, shown, .. } = *application;
        let key = key_digest(application.kind, digest, &shown);
        let standing = key.map(|key| (key, key_standing(record, &shown, key, &self.cold)));
        let mut remembered = match standing {
            None | Some((_, KeyStanding::Good)) => Remembered::Accepted,
            Some((_, KeyStanding::Unlisted(_))) => {
                Remembered::Refused(Denial::ApplicationKeyInvalid)
            }
            Some((key, KeyStanding::Unknown | KeyStanding::Unread(_))) => {
                self.memory(now, false).find(data, key)
            }
        };
        if let (Remembered::Accepted, Referrer::Named(referrer)) = (remembered, shown.referrer)
            && record.keys != Keys::Unheard
        {
            let referrer = digest.with(Part::Referrer, referrer);
            remembered = self.memory(now, false).find(data, referrer);
        }
        match remembered {
            Remembered::Refused(denial) => Verdict::Refused(Refusal::Denied(denial)),
            Remembered::Nothing => Verdict::Unknown,
            Remembered::Accepted => {
                let admitted = record.admit(usage, metrics, now);
                self.quota = quota_to_tell(application, record, admitted);
                match admitted {
                    Ok(()) => Verdict::Admitted { stale: false },
                    Err(refusal) => Verdict::Refused(refusal),
                }
            }
        }
    }

    /// What to ask about an application of which [`Applications::decide`] says
    /// [`Verdict::Unknown`]; the question is then to be put, for the right to it is taken.
    ///
    /// That is mostly what the request shows. But a key that is not on the list is asked about
    /// by a key that is: the answer then lists all keys, so that it serves everybody who waits
    /// with another one, and no flood of wrong keys keeps a new key from being learned.
    ///
    /// `None`: that was asked a short while ago, so the key is wrong
    /// ([`Denial::ApplicationKeyInvalid`]).
    pub fn question(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        now: Moment,
    ) -> Option<Asked> {
        let Identity { digest, shown, .. } = *application;
        let Some(key) = key_digest(application.kind, digest, &shown) else {
            return Some(shown.to_asked());
        };
        let cold = &self.cold;
        let seen = self.table.change(data, digest, |record| {
            let usable = record.freshness(now) != Freshness::Expired && record.denial.is_none();
            Change::Keep(usable.then(|| (record.keys, key_standing(record, &shown, key, cold))))
        });
        let Ok(Some((slot, Some((keys, KeyStanding::Unlisted(_)))))) = seen else {
            return Some(shown.to_asked());
        };
        if !pauses::may_ask(data, slot, digest, now) {
            return None;
        }
        let accepted = self
            .accepted_key(data, slot, digest, keys)
            .filter(|accepted| {
                let accepted = digest.with(Part::AppKey, Some(accepted));
                self.strangers.find(data, accepted, now).is_none()
            });
        Some(match accepted {
            Some(accepted) => shown.about_application(Some(&accepted)),
            None => shown.to_asked(),
        })
    }

    /// A key of the application in this slot that service management accepted; `None` if it has
    /// no keys, needs none shown, or nothing is known.
    pub fn accepted_key(
        &mut self,
        data: &impl SharedData,
        slot: Slot,
        application: Digest,
        keys: Keys,
    ) -> Option<String> {
        match keys {
            Keys::Listed(hash) => self
                .cold
                .find(data, slot, application, hash)?
                .accepted()
                .map(str::to_owned),
            Keys::Unheard | Keys::None => None,
        }
    }

    const fn memory(&mut self, now: Moment, may_ask: bool) -> Memory<'_> {
        Memory {
            accepted: &mut self.accepted,
            strangers: &mut self.strangers,
            now,
            may_ask,
            ends: &mut self.acceptance_ends,
        }
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
        let Identity { digest, shown, .. } = *application;
        let list = key_list(application.kind, digest, authorization, &shown);
        let take_in = |record: &mut Record| {
            record.refresh(
                authorization,
                metrics,
                now,
                lifetimes.ttl,
                lifetimes.stale_if_error,
            )?;
            record.renew_grants(authorization, lifetimes.accuracy, now);
            record.keys = keys_of(digest, list.as_ref());
            Ok::<(), Refusal>(())
        };
        let mut new = new_record(application);
        if take_in(&mut new).is_err() {
            return Ok(Learned::TooManyMetrics);
        }
        let mut fits = true;
        let put = self.table.put(data, &new, now, |record| {
            fits = take_in(record).is_ok();
        });
        if !fits {
            return Ok(Learned::TooManyMetrics);
        }
        let learned = match put {
            Ok(slot) => {
                if let Some(list) = &list {
                    self.cold.put(data, slot, digest, list);
                }
                Learned::Remembered
            }
            Err(TableError::Full) => {
                if let Some(list) = list.clone() {
                    self.cold.keep(digest, list);
                }
                Learned::Uncached(Box::new(new))
            }
            Err(TableError::Unavailable) => return Err(TableError::Unavailable),
        };
        self.strangers.forget(data, digest, now);
        self.learn_accepted(data, application, list.as_ref(), now, lifetimes);
        Ok(learned)
    }

    /// Remembers what was shown in a question that was answered well, as far as the record
    /// does not tell.
    fn learn_accepted(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        list: Option<&KeyList>,
        now: Moment,
        lifetimes: &Lifetimes,
    ) {
        let Identity { digest, shown, .. } = *application;
        let key = list
            .filter(|list| !list.is_complete())
            .and_then(|_| key_digest(application.kind, digest, &shown));
        let referrer = match shown.referrer {
            Referrer::Ignored => None,
            Referrer::Named(referrer) => Some(digest.with(Part::Referrer, referrer)),
        };
        for accepted in [key, referrer].into_iter().flatten() {
            self.strangers.forget(data, accepted, now);
            self.accepted
                .remember(data, accepted, now, lifetimes.ttl, lifetimes.stale_if_error);
        }
    }

    /// Remembers that service management denies the application, or the key or referrer that
    /// was shown in the question: then no more than that, for it says nothing of the others.
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
        let Identity { digest, shown, .. } = *application;
        let part = match (denial, shown.referrer) {
            (Denial::ApplicationKeyInvalid, _) => key_digest(application.kind, digest, &shown),
            (Denial::ReferrerNotAllowed, Referrer::Named(referrer)) => {
                Some(digest.with(Part::Referrer, referrer))
            }
            _ => None,
        };
        if let Some(part) = part {
            self.accepted.forget(data, part);
            self.strangers
                .remember(data, part, denial, now, lifetimes.negative_ttl);
            return self.doubt(data, application, part);
        }
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

    /// Has a record refreshed that lists a key which was just refused.
    fn doubt(
        &mut self,
        data: &impl SharedData,
        application: &Identity<'_>,
        key: Digest,
    ) -> Result<(), TableError> {
        let Identity { digest, shown, .. } = *application;
        let cold = &self.cold;
        let listed = self.table.change(data, digest, |record| {
            let wrong = matches!(record.keys, Keys::Listed(_))
                && key_standing(record, &shown, key, cold) == KeyStanding::Good
                && !record.refresh_marked;
            if wrong {
                record.refresh_marked = true;
                Change::Write(true)
            } else {
                Change::Keep(false)
            }
        })?;
        if let Some((slot, true)) = listed {
            self.marks(Mark::Stale, application.scope).set(data, slot);
        }
        Ok(())
    }

    /// Who is asked about: whether service management let this application in when it was asked
    /// last, and that was long ago. Not whoever is known and shows another key or referrer: anybody
    /// can make those up.
    pub fn caller(&mut self, data: &impl SharedData, digest: Digest, now: Moment) -> Caller {
        let returns = |record: &mut Record| {
            let accepted = record.denial.is_none() && !record.alone;
            Change::Keep(accepted && record.freshness(now) == Freshness::Expired)
        };
        match self.table.change(data, digest, returns) {
            Ok(Some((_, true))) => Caller::Returning,
            _ => Caller::Stranger,
        }
    }

    /// Lets an application in that nobody could say anything about, for a while.
    /// Its usage is kept and reported alone. What is known of one stays: somebody was let in
    /// with a key or a referrer of which nothing is known.
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
        let put = self.table.put(data, &new, now, |record| {
            if record.freshness(now) == Freshness::Expired {
                record.let_in_unheard(now, for_milliseconds);
            }
        });
        match put {
            Ok(_slot) => Ok(Learned::Remembered),
            Err(TableError::Full) => Ok(Learned::Uncached(Box::new(new))),
            Err(TableError::Unavailable) => Err(TableError::Unavailable),
        }
    }

    /// Takes in an answer about the application that a slot was asked about, and what was
    /// shown then. Does nothing if the slot has gone to somebody else.
    ///
    /// # Errors
    /// As [`Applications::learn`].
    pub fn refresh(
        &mut self,
        data: &impl SharedData,
        (slot, digest, shown): (Slot, Digest, &Shown<'_>),
        answer: Result<&Authorization, Denial>,
        metrics: &Metrics,
        now: Moment,
        lifetimes: &Lifetimes,
    ) -> Result<Look, TableError> {
        let app_id = answer
            .ok()
            .and_then(|answer| key_list(Kind::AppId, digest, answer, shown));
        let taken = self.table.change_slot(data, slot, |record| {
            if record.digest != digest {
                return None;
            }
            let mut look = Look::default();
            match answer {
                Ok(authorization) => {
                    let fits = record.refresh(
                        authorization,
                        metrics,
                        now,
                        lifetimes.ttl,
                        lifetimes.stale_if_error,
                    );
                    look = record.renew_grants(authorization, lifetimes.accuracy, now);
                    if fits.is_ok() {
                        let list = app_id.as_ref().filter(|_| record.kind == Kind::AppId);
                        record.keys = keys_of(digest, list);
                    }
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
            Some(Change::Write((record.keys, look)))
        })?;
        let Some((keys, look)) = taken else {
            return Ok(Look::default());
        };
        if let (Keys::Listed(_), Some(list)) = (keys, &app_id) {
            self.cold.put(data, slot, digest, list);
        }
        Ok(look)
    }

    /// Relies no more on a record of which nothing can be learned without a key that an
    /// application shows: the next request asks.
    ///
    /// # Errors
    /// As [`Applications::learn`].
    pub fn expire(
        &mut self,
        data: &impl SharedData,
        (slot, digest): (Slot, Digest),
        now: Moment,
    ) -> Result<(), TableError> {
        self.table.change_slot(data, slot, |record| {
            (record.digest == digest).then(|| {
                record.fresh_until = record.fresh_until.min(now.monotonic);
                record.stale_until = record.stale_until.min(now.monotonic);
                record.refresh_marked = false;
                Change::Write(())
            })
        })?;
        Ok(())
    }
}

/// The list of keys that an answer about an application makes; `None` if it has none.
fn key_list(
    kind: Kind,
    application: Digest,
    answer: &Authorization,
    shown: &Shown<'_>,
) -> Option<KeyList> {
    match kind {
        Kind::UserKey => None,
        Kind::AppId => KeyList::new(application, answer, shown.rule, shown.app_key),
    }
}

fn keys_of(application: Digest, list: Option<&KeyList>) -> Keys {
    list.map_or(Keys::None, |list| {
        Keys::Listed(ColdValues::hash_of(application, list))
    })
}

const fn refused_or_unknown(denial: Option<Denial>) -> Verdict {
    match denial {
        Some(denial) => Verdict::Refused(Refusal::Denied(denial)),
        None => Verdict::Unknown,
    }
}

/// How far one look at a record came.
#[derive(Clone, Copy)]
enum Reached {
    Decided(Seen),
    Refused(Refusal),
    /// Whether the key is good decides.
    AtKey(KeyStanding),
    /// The referrer must be asked about.
    AtReferrer,
    /// There is nothing to decide on.
    Nothing,
}

/// What one run of a decision saw.
#[derive(Clone, Copy)]
struct Seen {
    verdict: Verdict,
    dirty: bool,
    refresh: bool,
    urgent: bool,
    quota: Option<Quota>,
}

/// What is left for the caller of a decided request, if the caller is told.
fn quota_to_tell(
    application: &Identity<'_>,
    record: &Record,
    decided: Result<(), Refusal>,
) -> Option<Quota> {
    match decided {
        _ if !application.tells => None,
        Ok(()) => record.quota(false),
        Err(Refusal::Limited { .. }) => record.quota(true),
        Err(_) => None,
    }
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
