//! No record of one ever answers for another: many applications of many services, whose names
//! differ as little as names can, in one process.
//!
//! Apart from the other properties because it is about all that stands between two
//! applications: scope, digest, table, strangers.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "clippy.toml's leave for tests does not reach a module behind `all(test, ...)`"
)]

use proptest::prelude::*;

use super::testing::{at, known, limit, metrics, usage};
use super::{
    Accuracy, Applications, Identity, Learned, Lifetimes, Period, Refusal, Shown, Verdict,
};
use crate::credentials::{Credential, Identities, Kind, Scope};
use crate::service_management::Denial;
use crate::shared_data::memory::Memory;
use std::borrow::Cow;
use std::collections::HashSet;

/// What one application is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Names {
    cluster: String,
    authority: String,
    service: String,
    kind: Kind,
    value: String,
}

/// Texts that are easily taken for each other when they are put together.
fn text() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(&["a", "a", "b", "/", ":", "\u{1}", "1", "é"][..]),
        1..4,
    )
    .prop_map(|pieces| pieces.concat())
}

fn is_credential(value: &str) -> bool {
    Credential::new(Kind::UserKey, Cow::Borrowed(value.as_bytes())).is_some()
}

/// Applications that have all but one name in common, and others whose names are the same text
/// if they are put together; all of them different.
fn names() -> impl Strategy<Value = Vec<Names>> {
    let two = || (text(), text()).prop_map(|(one, other)| [one, other]);
    let value = two().prop_filter("fit for credentials", |values| {
        values.iter().all(|value| is_credential(value))
    });
    let splits = prop::collection::vec(any::<[prop::sample::Index; 3]>(), 0..8);
    (two(), two(), two(), value, splits, any::<u64>()).prop_map(
        |(clusters, authorities, services, values, splits, chosen)| {
            let mut all = HashSet::new();
            for number in (0..32_usize).filter(|number| chosen >> number & 1 != 0) {
                all.insert(Names {
                    cluster: clusters[number & 1].clone(),
                    authority: authorities[number >> 1 & 1].clone(),
                    service: services[number >> 2 & 1].clone(),
                    kind: [Kind::UserKey, Kind::AppId][number >> 3 & 1],
                    value: values[number >> 4 & 1].clone(),
                });
            }
            let together = [&*clusters[0], &*authorities[0], &*services[0], &*values[0]].concat();
            let together: Vec<char> = together.chars().collect();
            for split in splits {
                let mut at = split.map(|at| at.index(together.len()));
                at.sort_unstable();
                let part = |from: usize, until: usize| together[from..until].iter().collect();
                let names = Names {
                    cluster: part(0, at[0]),
                    authority: part(at[0], at[1]),
                    service: part(at[1], at[2]),
                    kind: Kind::UserKey,
                    value: part(at[2], together.len()),
                };
                if is_credential(&names.value) {
                    all.insert(names);
                }
            }
            // In an order that is the same each time, so that a failure can be had again.
            let mut all: Vec<Names> = all.into_iter().collect();
            all.sort_unstable_by_key(|names| names.identity().digest);
            all
        },
    )
}

impl Names {
    fn scope(&self) -> Scope {
        Scope {
            cluster: self.cluster.clone(),
            authority: self.authority.clone(),
            service: self.service.clone(),
        }
    }

    fn identity(&self) -> Identity<'_> {
        let credential = Credential::new(self.kind, Cow::Borrowed(self.value.as_bytes())).unwrap();
        Identity {
            digest: Identities::new(&[7; 16], &self.scope()).digest(&credential),
            scope: self.scope().number(),
            kind: self.kind,
            value: self.value.as_bytes(),
            shown: Shown::default(),
            tells: false,
        }
    }
}

/// What is to be remembered of an application.
#[derive(Clone, Copy, Debug)]
enum Known {
    Nothing,
    /// A denial from before is remembered apart for a while, where there was no record.
    Allowed {
        used: u64,
        denied_before: bool,
    },
    Denied {
        used: u64,
    },
}

/// What happens to one of them.
#[derive(Clone, Copy, Debug)]
enum Event {
    Request,
    Allowed,
    Denied,
}

const LIFETIMES: Lifetimes = Lifetimes {
    ttl: 600_000,
    negative_ttl: 600_000,
    stale_if_error: 0,
    accuracy: Accuracy::Exact,
};

/// Each has a limit and a denial of its own, as far as there are different ones.
fn own(index: usize) -> (u64, Denial) {
    let denials = [
        Denial::UserKeyInvalid,
        Denial::ApplicationNotFound,
        Denial::ApplicationNotActive,
        Denial::ServiceNotActive,
        Denial::RedirectInvalid,
        Denial::Other,
    ];
    (1 + index as u64 % 5, denials[index % denials.len()])
}

#[test]
fn a_denial_of_whose_record_gave_way_is_heard_by_who_had_found_the_record() {
    let data = Memory::default();
    let mut vms = [0; 2].map(|_| Applications::open(&data, 8));
    let metrics = metrics(false);
    let cost = usage(&metrics, &[("hits", 1)]);
    let names = |value: String| Names {
        cluster: "c".to_owned(),
        authority: "a".to_owned(),
        service: "1".to_owned(),
        kind: Kind::UserKey,
        value,
    };
    let alice = names("alice".to_owned());
    let answer = known(Vec::new());
    let [first, second] = &mut vms;
    first
        .learn(
            &data,
            &alice.identity(),
            &answer,
            &metrics,
            at(0),
            &LIFETIMES,
        )
        .unwrap();
    for number in 0..64 {
        let other = names(format!("other{number}"));
        second
            .learn(
                &data,
                &other.identity(),
                &answer,
                &metrics,
                at(1),
                &LIFETIMES,
            )
            .unwrap();
    }
    let decide =
        |vm: &mut Applications| vm.decide(&data, &alice.identity(), &cost, &metrics, at(2));
    assert_eq!(decide(second), Ok(Verdict::Unknown));
    let denial = Denial::UserKeyInvalid;
    second
        .learn_denial(&data, &alice.identity(), denial, at(2), &LIFETIMES)
        .unwrap();
    let denied = Ok(Verdict::Refused(Refusal::Denied(denial)));
    assert_eq!(decide(first), denied);
    assert_eq!(decide(second), denied);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn different_names_have_different_digests_and_scopes(
        all in names(),
    ) {
        let digests: HashSet<_> = all.iter().map(|names| names.identity().digest).collect();
        prop_assert_eq!(digests.len(), all.len());
        let scopes: HashSet<_> = all.iter().map(Names::scope).collect();
        let numbers: HashSet<_> = all.iter().map(|names| names.scope().number()).collect();
        prop_assert_eq!(numbers.len(), scopes.len());
    }

    #[test]
    fn nobody_is_answered_by_the_record_of_another(
        all in names().prop_filter("somebody", |all| !all.is_empty()),
        capacity in 8_u32..40,
        events in prop::collection::vec((
            any::<prop::sample::Index>(),
            prop_oneof![4 => Just(Event::Request), 1 => Just(Event::Allowed), 1 => Just(Event::Denied)],
            any::<bool>(),
        ), 1..120),
    ) {
        let data = Memory::default();
        // Two VMs, or two configurations in one.
        let mut vms = [Applications::open(&data, capacity), Applications::open(&data, capacity)];
        let metrics = metrics(false);
        let cost = usage(&metrics, &[("hits", 1)]);
        let mut remembered = vec![Known::Nothing; all.len()];
        for (which, event, second) in events {
            let index = which.index(all.len());
            let (maximum, denial) = own(index);
            let identity = all[index].identity();
            let vm = &mut vms[usize::from(second)];
            let state = &mut remembered[index];
            match event {
                Event::Allowed => {
                    let (used, denied_before) = match *state {
                        Known::Allowed { used, denied_before } => (used, denied_before),
                        Known::Denied { used } => (used, true),
                        Known::Nothing => (0, false),
                    };
                    let answer = known(vec![limit("hits", Period::Eternity, maximum, 0, at(0))]);
                    let learned = vm.learn(&data, &identity, &answer, &metrics, at(0), &LIFETIMES);
                    *state = match learned {
                        Ok(Learned::Remembered) => Known::Allowed { used, denied_before },
                        _ => Known::Nothing,
                    };
                }
                Event::Denied => {
                    let learned = vm.learn_denial(&data, &identity, denial, at(0), &LIFETIMES);
                    prop_assert!(learned.is_ok());
                    let used = match *state {
                        Known::Allowed { used, .. } | Known::Denied { used } => used,
                        Known::Nothing => 0,
                    };
                    *state = Known::Denied { used };
                }
                Event::Request => {
                    let verdict = vm.decide(&data, &identity, &cost, &metrics, at(0)).unwrap();
                    match (verdict, &mut *state) {
                        // It had to give way, or was never there: then nothing is said.
                        (Verdict::Unknown, state) => *state = Known::Nothing,
                        (Verdict::Admitted { .. }, Known::Allowed { used, .. }) => {
                            *used += 1;
                            prop_assert!(*used <= maximum, "{used} of {maximum}");
                        }
                        (Verdict::Refused(Refusal::Limited { .. }), Known::Allowed { used, .. }) => {
                            prop_assert_eq!(*used, maximum);
                        }
                        (
                            Verdict::Refused(Refusal::Denied(told)),
                            Known::Denied { .. } | Known::Allowed { denied_before: true, .. },
                        ) => prop_assert_eq!(told, denial),
                        (verdict, state) => {
                            return Err(TestCaseError::fail(format!("{verdict:?} of {state:?}")));
                        }
                    }
                }
            }
        }
    }
}
