//! What a request shows besides its identity, and what of that must hold before its
//! application's record decides: an `app_key`, a referrer.
//!
//! Apart from the decision because neither is part of the identity: all keys and referrers of an
//! application use up the same limits, in one record. A verdict on one of them says nothing of
//! the others, and nothing of the application.

use super::accepted::{Acceptance, Accepted};
use super::keys::{ColdValues, KeyRule, Keys, Standing};
use super::record::Record;
use super::strangers::Strangers;
use crate::credentials::{Digest, Kind, Part};
use crate::moment::Moment;
use crate::service_management::{ANY_REFERRER, Denial};
use crate::shared_data::SharedData;

/// What is shown besides the identity. The default shows nothing, to a service that looks at
/// nothing. `Debug` shows neither key nor referrer.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Shown<'a> {
    /// When the service checks a key.
    pub rule: KeyRule,
    /// The key, if one was shown.
    pub app_key: Option<&'a str>,
    /// The referrer, if the service looks at it.
    pub referrer: Referrer<'a>,
}

/// Where a request says that it comes from.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Referrer<'a> {
    /// The service does not look at it.
    #[default]
    Ignored,
    /// The service looks at it; `None` if there was none.
    Named(Option<&'a str>),
}

/// What to show in a question, so that its answer settles what could not be decided.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Asked {
    /// The key.
    pub app_key: Option<String>,
    /// The referrer, if the service looks at it and one was named.
    pub referrer: Option<String>,
}

impl Shown<'_> {
    /// The same, owned.
    #[must_use]
    pub fn to_asked(&self) -> Asked {
        Asked {
            app_key: self.app_key.map(str::to_owned),
            referrer: match self.referrer {
                Referrer::Ignored | Referrer::Named(None) => None,
                Referrer::Named(Some(referrer)) => Some(referrer.to_owned()),
            },
        }
    }

    /// A question about the application with a key that is known to be good, whoever refers
    /// to it.
    #[must_use]
    pub fn about_application(&self, app_key: Option<&str>) -> Asked {
        Asked {
            app_key: app_key.map(str::to_owned),
            referrer: match self.referrer {
                Referrer::Ignored => None,
                Referrer::Named(_) => Some(ANY_REFERRER.to_owned()),
            },
        }
    }
}

impl Asked {
    /// What was shown in the question, to a service with this rule that looks at referrers
    /// or not.
    #[must_use]
    pub fn shown(&self, rule: KeyRule, looks_at_referrer: bool) -> Shown<'_> {
        Shown {
            rule,
            app_key: self.app_key.as_deref(),
            referrer: if looks_at_referrer {
                Referrer::Named(self.referrer.as_deref())
            } else {
                Referrer::Ignored
            },
        }
    }
}

/// How a key stands, as far as the record and this VM know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStanding {
    /// Nothing keeps it out.
    Good,
    /// It is none of the application's, by an answer of then (monotonic milliseconds).
    Unlisted(u64),
    /// The list is not complete.
    Unknown,
    /// The list with this hash must be read first.
    Unread(u64),
}

/// How what is shown stands, by what is remembered of it alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remembered {
    /// It was accepted, or is not looked at.
    Accepted,
    /// It was refused.
    Refused(Denial),
    /// Ask.
    Nothing,
}

/// How the shown key stands to the record. No host call: this runs for every request of
/// services with `app_id`s. `key` is the digest of what is shown, or of the lack of it.
pub(super) fn key_standing(
    record: &Record,
    shown: &Shown<'_>,
    key: Digest,
    cold: &ColdValues,
) -> KeyStanding {
    let hash = match (record.keys, shown.rule) {
        (Keys::Unheard, _) | (Keys::None, KeyRule::IfAny) => return KeyStanding::Good,
        (_, KeyRule::IfShown) if shown.app_key.is_none() => return KeyStanding::Good,
        (Keys::None, KeyRule::IfShown) => return KeyStanding::Unlisted(record.fetched_at),
        (Keys::Listed(hash), _) => hash,
    };
    match cold
        .cached(record.digest, hash)
        .map(|list| list.standing(key))
    {
        None => KeyStanding::Unread(hash),
        Some(Standing::Listed) => KeyStanding::Good,
        Some(Standing::Unlisted) => KeyStanding::Unlisted(record.fetched_at),
        Some(Standing::Unknown) => KeyStanding::Unknown,
    }
}

/// Whether the shown key is surely good where the application has these keys: a part of what
/// [`key_standing`] says, for whoever has not read the whole record.
pub(super) fn is_good(
    keys: Keys,
    application: Digest,
    shown: &Shown<'_>,
    key: Digest,
    cold: &ColdValues,
) -> bool {
    match (keys, shown.rule) {
        (Keys::Unheard, _) | (Keys::None, KeyRule::IfAny) => true,
        (_, KeyRule::IfShown) if shown.app_key.is_none() => true,
        (Keys::None, KeyRule::IfShown) => false,
        (Keys::Listed(hash), _) => cold
            .cached(application, hash)
            .is_some_and(|list| list.standing(key) == Standing::Listed),
    }
}

/// What was accepted and refused of what requests show, as one VM sees it.
pub(super) struct Memory<'a> {
    pub accepted: &'a mut Accepted,
    pub strangers: &'a mut Strangers,
    pub now: Moment,
    /// Whether somebody may be asked: what is stale is then not enough.
    pub may_ask: bool,
    /// Until when what was found may be relied on (monotonic milliseconds): the least so far.
    pub ends: &'a mut u64,
}

impl Memory<'_> {
    /// How what has this digest stands.
    pub fn find(&mut self, data: &impl SharedData, digest: Digest) -> Remembered {
        match (self.accepted.find(data, digest, self.now), self.may_ask) {
            (Some(Acceptance::Fresh { until }), _) => {
                *self.ends = until.min(*self.ends);
                Remembered::Accepted
            }
            (Some(Acceptance::Stale), false) => Remembered::Accepted,
            (Some(Acceptance::Stale) | None, _) => self
                .strangers
                .find(data, digest, self.now)
                .map_or(Remembered::Nothing, Remembered::Refused),
        }
    }
}

/// The digest of the key that is shown, or of the lack of one, where keys are looked at.
pub(super) fn key_digest(kind: Kind, application: Digest, shown: &Shown<'_>) -> Option<Digest> {
    (kind == Kind::AppId).then(|| application.with(Part::AppKey, shown.app_key))
}
