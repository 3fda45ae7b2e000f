//! How several gateways share one limit, when all that they share is a backend which
//! applies reports late: how much of what is left one of them may admit before it has to
//! look again, and from when on it should.
//!
//! Apart from the limit because one gateway alone needs none of it: its own count is
//! exact. The argument and the measured figures are in `docs/accuracy.md`.

/// The part of the headroom that all gateways together may spend before they look again:
/// one in so many. Two grants of a gateway may be unseen by the others (the one it spends,
/// and the one before if its report is on the way), so three keep the sum within the
/// headroom, as far as the shares add up to one.
const GRANTS_OF_HEADROOM: u128 = 3;
/// Under `eager`, the part of its share of the headroom that a gateway admits before it
/// reports and looks again: one in so many.
const LOOKS_OF_HEADROOM: u128 = 4;
/// How soon after its acknowledgement a report is taken to be in the backend's counts, as
/// long as nothing else was seen (milliseconds). 3scale's backend takes tens of milliseconds.
pub const SHORTEST_SETTLING: u64 = 1_000;
/// The same at most: what is not in the counts by then never will be (milliseconds).
pub const LONGEST_SETTLING: u64 = 10_000;
/// A whole, as a share is counted.
const WHOLE: u16 = u16::MAX;
/// So much of a newly seen share counts: one in so many.
const SMOOTHING: u16 = 4;
/// Usage in a window below which it says nothing about shares.
const TELLING: u64 = 16;
/// So much of the effective share is the same for all gateways: one in so many. What
/// makes one that had no traffic able to begin.
const EVEN: u32 = 4;
/// While this gateway did not look, the others are taken to have used a limit so many times
/// as fast as it was used on the whole until then: its use comes in bursts.
const HURRY: u128 = 8;
/// The part of a limit that all gateways together may admit unseen where by that nothing may
/// be left: one in so many. At least a request each, or one that has little traffic of an
/// application would refuse most of it.
const WAKING: u64 = 64;

/// How a limit is kept that other gateways use, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accuracy {
    /// There is no other gateway: what this one has counted is exact.
    #[default]
    Exact,
    /// Admit by what is known; report and look again sooner as a limit nears.
    Eager {
        /// How many gateways share the limits: at least 2.
        gateways: u16,
    },
    /// Admit what was granted, too: a share of what was left at the last look.
    Strict {
        /// How many gateways share the limits: at least 2.
        gateways: u16,
        /// How long after its acknowledgement a report is in the backend's counts, as far
        /// as is known (milliseconds).
        settled_after: u64,
    },
}

/// What one gateway may do on a limit before it looks again. In units of the limit's
/// `own` count of the open window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Admit while `own` is below. The request that reaches it may go over it, and then is
    /// a debt of the next grant. `u64::MAX`: no bound.
    pub until: u64,
    /// When `own` reaches it, the leader is to report and look again. `u64::MAX`: it was told.
    pub urgent_at: u64,
    /// Of all usage of this limit, this gateway's share, smoothed: 0 to 65,535 for all of it.
    pub share: u16,
    /// How many gateways share the limit.
    pub gateways: u16,
}

/// What is known of a limit at a look.
#[derive(Clone, Copy, Debug)]
pub struct Known {
    /// What may be used in a window.
    pub maximum: u64,
    /// What is known to be used, by all.
    pub used: u64,
    /// Admitted here.
    pub own: u64,
    /// The part of it that was reported.
    pub sent: u64,
    /// What the backend had counted.
    pub counted: u64,
}

impl Grant {
    /// For a limit that was not shared before. `luck` is any number.
    #[must_use]
    pub fn first(gateways: u16, strict: bool, known: &Known, luck: u64) -> Self {
        let mut grant = Self {
            until: if strict { known.own } else { u64::MAX },
            urgent_at: known.own,
            share: WHOLE.checked_div(gateways).unwrap_or(WHOLE),
            gateways,
        };
        grant.give(known, luck);
        grant
    }

    /// Renewed by a look that showed everything that was sent.
    pub fn renew(&mut self, known: &Known, luck: u64) {
        self.learn_share(known);
        self.give(known, luck);
    }

    /// The next window is open, in which nothing was admitted here, and this by others.
    pub fn roll(&mut self, maximum: u64, unseen: u64, luck: u64) {
        let mut known = Known {
            maximum,
            used: 0,
            own: 0,
            sent: 0,
            counted: 0,
        };
        if self.is_strict() {
            self.until = 0;
            let floor = self.floor(&known, luck);
            known.used = unseen;
            self.give(&known, luck);
            self.raise(floor, 0);
        } else {
            self.give(&known, luck);
        }
    }

    /// Whether the limit is bounded by grants.
    #[must_use]
    pub const fn is_strict(&self) -> bool {
        self.until != u64::MAX
    }

    /// What the others may have used since this gateway looked last, `since` milliseconds ago
    /// or when the window began. What is known to be used, or `own` if nobody looked, was used
    /// within `over` milliseconds.
    #[must_use]
    pub fn unseen(&self, used: u64, own: Option<u64>, over: u64, since: u64) -> u64 {
        let used = used.max(own.map_or(0, |own| self.expected(own)));
        let unseen = u128::from(used)
            .saturating_mul(u128::from(since))
            .saturating_mul(HURRY)
            .checked_div(u128::from(over.max(1_000)));
        u64::try_from(unseen.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// What may be admitted although nothing may be left; never more than if all were left.
    fn floor(&self, known: &Known, luck: u64) -> u64 {
        let headroom = known.maximum.saturating_sub(known.used);
        let all = WAKING.saturating_mul(u64::from(self.gateways));
        let waking = known.maximum.checked_div(all).unwrap_or(0).max(1);
        self.part(headroom, GRANTS_OF_HEADROOM, luck).min(waking)
    }

    fn raise(&mut self, floor: u64, own: u64) {
        let until = own.saturating_add(floor);
        if self.until < until {
            self.until = until;
            self.urgent_at = own.saturating_add((floor / 2).max(1));
        }
    }

    fn give(&mut self, known: &Known, luck: u64) {
        if self.is_strict() {
            let headroom = known.maximum.saturating_sub(known.used);
            let grant = self.part(headroom, GRANTS_OF_HEADROOM, luck);
            let spent = self.until.min(known.own);
            // Never more than two grants that the others cannot have seen.
            let most = known.sent.saturating_add(grant.saturating_mul(2));
            self.until = spent
                .saturating_add(grant)
                .min(most)
                .max(spent)
                .min(u64::MAX.saturating_sub(1));
            self.urgent_at = known.own.saturating_add((grant / 2).max(1));
        } else {
            let used = known.used.max(self.expected(known.own));
            let headroom = known.maximum.saturating_sub(used);
            let part = self.part(headroom, LOOKS_OF_HEADROOM, luck);
            self.urgent_at = known.own.saturating_add(part.max(1));
        }
    }

    /// What all have used, if this gateway's share is what it was.
    fn expected(&self, own: u64) -> u64 {
        let all = u128::from(own).saturating_mul(u128::from(WHOLE));
        let all = all.checked_div(u128::from(self.effective_share()));
        u64::try_from(all.unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// This gateway's share of one part in `parts` of the headroom. Of a fraction of a unit
    /// chance decides, so that a few units that are left are used by somebody, and not by all.
    fn part(&self, headroom: u64, parts: u128, luck: u64) -> u64 {
        let scaled = u128::from(headroom).saturating_mul(u128::from(self.effective_share()));
        let whole = u128::from(WHOLE).saturating_mul(parts);
        let units = scaled.checked_div(whole).unwrap_or(0);
        let rest = scaled.checked_rem(whole).unwrap_or(0);
        let lucky = u128::from(luck).checked_rem(whole).unwrap_or(0) < rest;
        u64::try_from(units)
            .unwrap_or(u64::MAX)
            .saturating_add(u64::from(lucky))
    }

    /// The share to go by: three quarters of what was seen and a quarter of an even one,
    /// so that a gateway without traffic so far is able to begin. Their sum over all
    /// gateways is one, as that of the shares is.
    fn effective_share(&self) -> u32 {
        let seen = u32::from(self.share);
        let even = u32::from(WHOLE)
            .checked_div(u32::from(self.gateways))
            .unwrap_or(u32::from(WHOLE));
        seen.saturating_sub(seen / EVEN)
            .saturating_add(even / EVEN)
            .max(1)
    }

    /// Of what the backend has counted, the part that was sent from here: both are as
    /// late, so that neither side is favoured.
    fn learn_share(&mut self, known: &Known) {
        if known.counted < TELLING {
            return;
        }
        let seen = u128::from(known.sent)
            .saturating_mul(u128::from(WHOLE))
            .checked_div(u128::from(known.counted))
            .and_then(|seen| u16::try_from(seen).ok())
            .unwrap_or(WHOLE);
        let share = self
            .share
            .saturating_sub(self.share / SMOOTHING)
            .saturating_add(seen / SMOOTHING);
        self.share = share;
    }

    /// Nothing was admitted here for a while. What the others did meanwhile is not known:
    /// from now on no more than an even part of what may be left if they used `unseen`.
    pub fn idle(&mut self, known: &Known, unseen: u64, luck: u64) {
        let even = WHOLE.checked_div(self.gateways).unwrap_or(WHOLE);
        self.share = self.share.min(even);
        if self.is_strict() {
            let floor = self.floor(known, luck);
            let used = known.used.saturating_add(unseen);
            let headroom = known.maximum.saturating_sub(used);
            let part = self.part(headroom, GRANTS_OF_HEADROOM, luck).max(floor);
            self.until = self.until.min(known.own.saturating_add(part));
            self.urgent_at = self
                .urgent_at
                .min(known.own.saturating_add((part / 2).max(1)));
        }
    }
}

/// Mixes two numbers into one that looks random (splitmix64). Digests are keyed by process,
/// so that the gateways' luck differs.
#[must_use]
pub const fn mix(one: u64, other: u64) -> u64 {
    let mut word = one.wrapping_add(other.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{STRICT, at, known, limit, metrics, usage};
    use super::super::{Period, Record, Refusal};
    use super::*;
    use crate::authorization::Outcome;
    use crate::moment::Moment;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    /// A record with a limit of 1,200 hits a minute, of which so many are used by others.
    fn record(accuracy: Accuracy, used: u64) -> Record {
        let mut record = Record::vacant();
        look(&mut record, accuracy, used, at(0));
        record
    }

    fn look(record: &mut Record, accuracy: Accuracy, counted: u64, now: Moment) -> Option<u64> {
        let answer = known(vec![limit("hits", Period::Minute, 1_200, counted, now)]);
        record
            .refresh(&answer, &metrics(false), now, 60_000, 0)
            .unwrap();
        record.renew_grants(&answer, accuracy, now).late
    }

    fn admit(record: &mut Record, hits: u64, now: Moment) -> Result<(), Refusal> {
        let metrics = metrics(false);
        record.admit(&usage(&metrics, &[("hits", hits)]), &metrics, now)
    }

    fn report(record: &mut Record, batch: u64, now: Moment) {
        let metrics = metrics(false);
        assert!(!record.dispatch(batch, u64::MAX, 10, &metrics).is_empty());
        record.settle(batch, Outcome::Acknowledged, &metrics, now);
    }

    #[test]
    fn a_first_grant_is_an_even_share_of_a_third_of_what_is_left() {
        let mut record = record(STRICT, 0);
        for _ in 0..100 {
            assert_eq!(admit(&mut record, 1, at(1)), Ok(()));
        }
        assert_eq!(admit(&mut record, 1, at(1)), Err(Refusal::Early));
    }

    #[test]
    fn half_of_a_grant_makes_it_urgent_once() {
        let mut record = record(STRICT, 600);
        admit(&mut record, 24, at(1)).unwrap();
        assert!(!record.take_urgent());
        admit(&mut record, 1, at(1)).unwrap();
        assert!(record.take_urgent());
        admit(&mut record, 1, at(1)).unwrap();
        assert!(!record.take_urgent());
    }

    #[test]
    fn a_look_before_its_reports_have_settled_renews_nothing() {
        let mut record = record(STRICT, 0);
        admit(&mut record, 100, at(1)).unwrap();
        report(&mut record, 1, at(20));
        for early in [21, 1_020] {
            look(&mut record, STRICT, 100, at(early));
            assert_eq!(admit(&mut record, 1, at(early)), Err(Refusal::Early));
        }
        look(&mut record, STRICT, 100, at(1_021));
        assert_eq!(admit(&mut record, 1, at(1_022)), Ok(()));
    }

    #[test]
    fn looks_without_reports_come_to_no_more_than_two_grants() {
        let mut record = record(STRICT, 0);
        let mut admitted = 0;
        for now in 1..20 {
            while admit(&mut record, 1, at(now)).is_ok() {
                admitted += 1;
            }
            look(&mut record, STRICT, 0, at(now));
        }
        assert!((101..=200).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_look_that_misses_a_report_says_how_old_it_is_and_renews_nothing() {
        let mut record = record(STRICT, 0);
        admit(&mut record, 100, at(1)).unwrap();
        report(&mut record, 1, at(20));
        assert_eq!(look(&mut record, STRICT, 60, at(1_520)), Some(1_500));
        assert_eq!(admit(&mut record, 1, at(1_521)), Err(Refusal::Early));
        // What is missing for good is not waited for.
        assert_eq!(look(&mut record, STRICT, 60, at(10_020)), None);
        assert_eq!(admit(&mut record, 1, at(10_021)), Ok(()));
    }

    #[test]
    fn a_costly_request_goes_over_its_grant_and_is_a_debt_of_the_next() {
        let mut record = record(STRICT, 0);
        admit(&mut record, 99, at(1)).unwrap();
        assert_eq!(admit(&mut record, 500, at(1)), Ok(()));
        assert_eq!(admit(&mut record, 1, at(1)), Err(Refusal::Early));
        report(&mut record, 1, at(20));
        look(&mut record, STRICT, 599, at(2_000));
        assert_eq!(admit(&mut record, 1, at(2_001)), Err(Refusal::Early));
    }

    #[test]
    fn what_is_used_up_is_refused_for_that_and_not_early() {
        let mut record = record(STRICT, 1_200);
        let refused = admit(&mut record, 1, at(1));
        assert!(
            matches!(refused, Err(Refusal::Limited { .. })),
            "{refused:?}"
        );
        assert_eq!(record.least_headroom(at(1)), None);
    }

    #[test]
    fn the_next_window_begins_with_a_grant_of_its_own() {
        let mut record = record(STRICT, 0);
        admit(&mut record, 100, at(1)).unwrap();
        assert_eq!(admit(&mut record, 1, at(59_999)), Err(Refusal::Early));
        for _ in 0..100 {
            assert_eq!(admit(&mut record, 1, at(60_000)), Ok(()));
        }
        assert_eq!(admit(&mut record, 1, at(60_000)), Err(Refusal::Early));
    }

    #[test]
    fn who_comes_late_into_a_window_that_is_used_up_each_time_is_granted_little() {
        let mut record = record(STRICT, 1_200);
        let mut admitted = 0;
        while admit(&mut record, 1, at(60_000 + 20_000)).is_ok() {
            admitted += 1;
        }
        // 1,200 / 64 / 4.
        assert_eq!(admitted, 4);
        assert!(record.take_urgent(), "and looks at once");
    }

    #[test]
    fn who_comes_late_where_little_was_used_is_granted_nearly_what_was_left() {
        // 10 in 50 seconds are taken for 32 in 20.
        let mut record = record(STRICT, 0);
        look(&mut record, STRICT, 10, at(50_000));
        let mut admitted = 0;
        while admit(&mut record, 1, at(60_000 + 20_000)).is_ok() {
            admitted += 1;
        }
        assert!((90..100).contains(&admitted), "{admitted}");
    }

    #[test]
    fn who_comes_back_is_granted_the_less_the_longer_it_did_not_look_but_a_request() {
        let grants = [11_000, 13_000, 59_000].map(|now| {
            let mut record = record(STRICT, 0);
            look(&mut record, STRICT, 100, at(10_000));
            let mut admitted = 0;
            while admit(&mut record, 1, at(now)).is_ok() {
                admitted += 1;
            }
            admitted
        });
        assert!(grants[0] > grants[1] && grants[1] > grants[2], "{grants:?}");
        assert_eq!(grants[2], 4);
        let mut small = Record::vacant();
        let answer = known(vec![limit("hits", Period::Minute, 12, 12, at(0))]);
        small
            .refresh(&answer, &metrics(false), at(0), 60_000, 0)
            .unwrap();
        small.renew_grants(&answer, STRICT, at(0));
        assert_eq!(admit(&mut small, 1, at(100_000)), Ok(()));
        assert_eq!(admit(&mut small, 1, at(100_000)), Err(Refusal::Early));
    }

    #[test]
    fn a_gateway_that_has_all_the_traffic_is_granted_more_of_it() {
        let mut record = record(STRICT, 0);
        let mut granted = Vec::new();
        let mut now = 0;
        for batch in 1..8 {
            let mut count = 0;
            while admit(&mut record, 1, at(now)).is_ok() {
                count += 1;
            }
            granted.push(count);
            report(&mut record, batch, at(now));
            now += 2_000;
            let own = granted.iter().sum();
            look(&mut record, STRICT, own, at(now));
        }
        assert!(granted[3] > granted[0], "{granted:?}");
    }

    #[test]
    fn eager_admits_what_is_known_to_be_left_and_looks_sooner_and_sooner() {
        let eager = Accuracy::Eager { gateways: 4 };
        let mut record = record(eager, 0);
        admit(&mut record, 74, at(1)).unwrap();
        assert!(!record.take_urgent());
        admit(&mut record, 1, at(1)).unwrap();
        assert!(record.take_urgent());
        assert_eq!(admit(&mut record, 1_125, at(2)), Ok(()));
        let refused = admit(&mut record, 1, at(3));
        assert!(
            matches!(refused, Err(Refusal::Limited { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn a_gateway_alone_has_no_grants_also_where_there_were_others_before() {
        let mut record = record(STRICT, 0);
        look(&mut record, Accuracy::Exact, 0, at(1));
        assert!(record.limits().all(|(_, limit)| limit.grant.is_none()));
        assert_eq!(admit(&mut record, 1_200, at(2)), Ok(()));
    }

    #[test]
    fn shares_of_all_gateways_add_up_to_a_whole() {
        let shares = [40_000_u16, 20_000, 5_535, 0].map(|share| Grant {
            until: 0,
            urgent_at: 0,
            share,
            gateways: 4,
        });
        let sum: u32 = shares.iter().map(Grant::effective_share).sum();
        assert!((65_500..=65_536).contains(&sum), "{sum}");
    }

    #[test]
    fn of_less_than_a_unit_chance_gives_a_part_of_the_gateways_one() {
        let grant = Grant {
            until: 0,
            urgent_at: 0,
            share: WHOLE / 16,
            gateways: 16,
        };
        let given: u64 = (0..1_600)
            .map(|luck| grant.part(6, GRANTS_OF_HEADROOM, mix(luck, 1)))
            .sum();
        // 2 units of 6 to 16 gateways, a hundred times.
        assert!((150..=250).contains(&given), "{given}");
    }
}
