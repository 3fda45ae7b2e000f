//! Claims about one record: what it admits, what it counts, what it keeps.

use super::super::testing::{START, at, known, limit, metrics, usage, window};
use super::*;
use crate::authorization::Period;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const TTL: u64 = 60_000;
const STALE: u64 = 600_000;

fn record(answer: &Authorization, metrics: &Metrics) -> Record {
    let mut record = Record::vacant();
    record.state = State::Live;
    record.refresh(answer, metrics, at(0), TTL, STALE).unwrap();
    record
}

/// Admitted units must be somewhere, always.
fn assert_conserved(record: &Record) {
    for (metric, ledger, pending, in_flight) in record.accounts() {
        assert_eq!(
            ledger.admitted,
            ledger.acknowledged + ledger.lost + pending + in_flight,
            "{metric}"
        );
    }
}

fn of(record: &Record, metric: &str) -> (Ledger, u64, u64) {
    let (_, ledger, pending, in_flight) = record
        .accounts()
        .find(|(name, ..)| *name == metric)
        .unwrap();
    (ledger, pending, in_flight)
}

fn known_count(record: &Record, metric: &str) -> u64 {
    let (_, limit) = record.limits().find(|(name, _)| *name == metric).unwrap();
    limit.own + limit.foreign
}

#[test]
fn exactly_the_maximum_is_admitted() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 3, 0, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    for _ in 0..3 {
        record.admit(&one, &metrics, at(10)).unwrap();
    }
    assert_eq!(
        record.admit(&one, &metrics, at(20)),
        Err(Refusal::Limited {
            until: window(Period::Minute).end
        })
    );
    assert_eq!(
        of(&record, "hits"),
        (
            Ledger {
                admitted: 3,
                ..Ledger::default()
            },
            3,
            0
        )
    );
}

#[test]
fn a_late_reading_of_the_clock_counts_in_the_window_that_another_worker_has_opened() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 3, 0, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    let end = window(Period::Minute).end;
    let edge = |after: i64| Moment {
        wall: (end * 1_000).saturating_add_signed(after),
        monotonic: 1_000,
    };
    record.admit(&one, &metrics, edge(-1)).unwrap();
    record.admit(&one, &metrics, edge(0)).unwrap();
    record.admit(&one, &metrics, edge(-1)).unwrap();
    let sent = record.dispatch(1, 10_000, 10, &metrics);
    let sent: Vec<_> = sent.iter().map(|it| (it.at, it.usage[0].1)).collect();
    assert_eq!(sent, [(end - 60, 1), (end, 2)]);
}

/// A record without limits, of which 5 hits were reported and acknowledged at second 1.
fn acknowledged(metrics: &Metrics) -> Record {
    let mut record = record(&known(vec![]), metrics);
    let five = usage(metrics, &[("hits", 5)]);
    record.admit(&five, metrics, at(0)).unwrap();
    record.dispatch(7, 10_000, 10, metrics);
    record.settle(7, Outcome::Acknowledged, metrics, at(1_000));
    record
}

#[test]
fn a_limit_that_appears_right_after_an_acknowledgement_counts_what_was_acknowledged() {
    let metrics = metrics(false);
    for (current, count) in [(0, 5), (3, 5), (5, 5), (8, 8)] {
        let mut record = acknowledged(&metrics);
        let plan = known(vec![limit("hits", Period::Minute, 9, current, at(2_000))]);
        record
            .refresh(&plan, &metrics, at(2_000), TTL, STALE)
            .unwrap();
        assert_eq!(
            known_count(&record, "hits"),
            count,
            "the backend has {current}"
        );
    }
    // Later, the backend has all of it.
    let mut record = acknowledged(&metrics);
    let plan = known(vec![limit("hits", Period::Minute, 9, 5, at(7_000))]);
    record
        .refresh(&plan, &metrics, at(7_000), TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 5);
}

#[test]
fn a_record_without_limits_stays_until_the_backend_has_what_it_acknowledged() {
    let metrics = metrics(false);
    let record = acknowledged(&metrics);
    assert!(!record.may_give_way(at(1_500)));
    assert!(record.may_give_way(at(6_001)));
}

#[test]
fn what_was_acknowledged_is_forgotten_in_time() {
    let metrics = metrics(false);
    let mut record = acknowledged(&metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    for number in 0..10_u64 {
        let now = at(60_000 * (number + 1));
        record.admit(&one, &metrics, now).unwrap();
        record.dispatch(number + 8, u64::MAX, 10, &metrics);
        record.settle(number + 8, Outcome::Acknowledged, &metrics, now);
        assert!(record.usage.len() <= 2, "{:?}", record.usage);
    }
    // Batches every second, for an hour: none has settled before the next.
    for number in 0..3_600_u64 {
        let now = at(1_000_000 + 1_000 * number);
        record.admit(&one, &metrics, now).unwrap();
        record.dispatch(number + 100, u64::MAX, 10, &metrics);
        record.settle(number + 100, Outcome::Acknowledged, &metrics, now);
        assert!(record.usage.len() <= 20, "{:?}", record.usage);
    }
    assert_conserved(&record);
}

#[test]
fn what_others_used_counts() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Day, 10, 9, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    assert!(record.admit(&one, &metrics, at(0)).is_err());
}

#[test]
fn a_count_over_the_maximum_admits_nothing_and_does_not_wrap() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Day, 5, 9, at(0))]),
        &metrics,
    );
    assert!(
        record
            .admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0))
            .is_err()
    );
    record
        .admit(&usage(&metrics, &[("ads", 1)]), &metrics, at(0))
        .unwrap();
}

#[test]
fn counts_at_the_end_of_the_numbers_refuse() {
    let metrics = metrics(false);
    let full = limit("hits", Period::Eternity, u64::MAX, u64::MAX, at(0));
    let mut record = record(&known(vec![full]), &metrics);
    assert_eq!(
        record.admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0)),
        Err(Refusal::Limited { until: u64::MAX })
    );
}

#[test]
fn usage_is_admitted_whole_or_not_at_all() {
    let metrics = metrics(false);
    let answer = known(vec![
        limit("hits", Period::Minute, 10, 0, at(0)),
        limit("ads", Period::Day, 1, 0, at(0)),
    ]);
    let mut record = record(&answer, &metrics);
    let both = usage(&metrics, &[("hits", 4), ("ads", 1)]);
    record.admit(&both, &metrics, at(0)).unwrap();
    assert_eq!(
        record.admit(&both, &metrics, at(0)),
        Err(Refusal::Limited {
            until: window(Period::Day).end
        })
    );
    assert_eq!(known_count(&record, "hits"), 4);
    record
        .admit(&usage(&metrics, &[("hits", 6)]), &metrics, at(0))
        .unwrap();
}

#[test]
fn the_window_that_ends_last_says_when_to_come_again() {
    let metrics = metrics(false);
    let answer = known(vec![
        limit("hits", Period::Minute, 1, 1, at(0)),
        limit("hits", Period::Month, 1, 1, at(0)),
        limit("hits", Period::Hour, 1, 1, at(0)),
    ]);
    let mut record = record(&answer, &metrics);
    assert_eq!(
        record.admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0)),
        Err(Refusal::Limited {
            until: window(Period::Month).end
        })
    );
}

#[test]
fn a_maximum_of_zero_disables_the_metric_and_no_other() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Day, 0, 0, at(0))]),
        &metrics,
    );
    assert_eq!(
        record.admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0)),
        Err(Refusal::Disabled)
    );
    record
        .admit(&usage(&metrics, &[("ads", 1)]), &metrics, at(0))
        .unwrap();
}

#[test]
fn a_method_counts_for_its_ancestors_whoever_names_them() {
    let vip = [("orders_vip", 2)];
    let only_hits = vec![limit("hits", Period::Minute, 3, 0, at(0))];
    // Named by the configuration: the backend shows no unlimited metrics.
    let configured = metrics(true);
    let mut record_of_configured = record(&known(only_hits.clone()), &configured);
    let cost = usage(&configured, &vip);
    record_of_configured
        .admit(&cost, &configured, at(0))
        .unwrap();
    assert!(
        record_of_configured
            .admit(&cost, &configured, at(0))
            .is_err()
    );
    // Named by the backend.
    let flat = metrics(false);
    let answer = Authorization {
        hierarchy: [("hits", "orders"), ("orders", "orders_vip")]
            .map(|(parent, child)| (parent.to_owned(), child.to_owned()))
            .to_vec(),
        ..known(only_hits)
    };
    let mut record_of_backend = record(&answer, &flat);
    let cost = usage(&flat, &vip);
    record_of_backend.admit(&cost, &flat, at(0)).unwrap();
    assert!(record_of_backend.admit(&cost, &flat, at(0)).is_err());
    // Reported as what it is: the backend counts for the ancestors itself.
    let sent = record_of_backend.dispatch(1, 9, 10, &flat);
    assert_eq!(sent[0].usage, [("orders_vip".to_owned(), 2)]);
}

#[test]
fn ancestors_are_found_where_the_backend_and_the_configuration_name_every_other() {
    // hits <- orders <- orders_vip <- orders_gold, and orders is not limited.
    let metrics = Metrics::new([
        ("hits".to_owned(), None),
        ("orders_vip".to_owned(), Some("orders".to_owned())),
        ("orders".to_owned(), None),
        ("orders_gold".to_owned(), None),
    ])
    .unwrap();
    let answer = Authorization {
        hierarchy: [("hits", "orders"), ("orders_vip", "orders_gold")]
            .map(|(parent, child)| (parent.to_owned(), child.to_owned()))
            .to_vec(),
        ..known(vec![
            limit("hits", Period::Minute, 1, 0, at(0)),
            limit("orders_vip", Period::Minute, 9, 0, at(0)),
        ])
    };
    let mut record = record(&answer, &metrics);
    let gold = usage(&metrics, &[("orders_gold", 1)]);
    record.admit(&gold, &metrics, at(0)).unwrap();
    assert!(record.admit(&gold, &metrics, at(0)).is_err());
}

#[test]
fn a_parent_and_its_child_in_one_request_add_up() {
    let metrics = metrics(true);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 2, 0, at(0))]),
        &metrics,
    );
    let both = usage(&metrics, &[("hits", 1), ("orders", 1)]);
    record.admit(&both, &metrics, at(0)).unwrap();
    assert_eq!(known_count(&record, "hits"), 2);
}

#[test]
fn a_window_starts_again_at_its_end_and_not_before() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 1, 0, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    assert!(record.admit(&one, &metrics, at(59_999)).is_err());
    record.admit(&one, &metrics, at(60_000)).unwrap();
    assert!(record.admit(&one, &metrics, at(60_001)).is_err());
}

#[test]
fn a_wall_clock_that_jumps_back_opens_no_window_again() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 1, 0, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(60_000)).unwrap();
    assert!(record.admit(&one, &metrics, at(30_000)).is_err());
    assert!(record.admit(&one, &metrics, at(60_000)).is_err());
}

#[test]
fn a_denial_refuses_and_counts_nothing() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    record.deny(Denial::ApplicationNotActive, at(0), TTL, STALE);
    assert_eq!(
        record.admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0)),
        Err(Refusal::Denied(Denial::ApplicationNotActive))
    );
    assert_eq!(record.accounts().count(), 0);
}

#[test]
fn freshness_ends_by_the_monotonic_clock() {
    let metrics = metrics(false);
    let record = record(&known(Vec::new()), &metrics);
    assert_eq!(record.freshness(at(TTL - 1)), Freshness::Fresh);
    assert_eq!(record.freshness(at(TTL)), Freshness::Stale);
    assert_eq!(record.freshness(at(TTL + STALE)), Freshness::Expired);
    let jumped = Moment { wall: 0, ..at(1) };
    assert_eq!(record.freshness(jumped), Freshness::Fresh);
}

#[test]
fn usage_is_reported_in_the_minute_it_was_admitted_in() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    record
        .admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(59_999))
        .unwrap();
    record
        .admit(
            &usage(&metrics, &[("hits", 2), ("ads", 1)]),
            &metrics,
            at(60_000),
        )
        .unwrap();
    record
        .admit(&usage(&metrics, &[("hits", 4)]), &metrics, at(61_000))
        .unwrap();
    let sent = record.dispatch(7, 9, 10, &metrics);
    let named = |of: &[(&str, u64)]| {
        of.iter()
            .map(|(name, delta)| ((*name).to_owned(), *delta))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        sent,
        [
            Dispatched {
                at: START,
                usage: named(&[("hits", 1)])
            },
            Dispatched {
                at: START + 60,
                usage: named(&[("hits", 6), ("ads", 1)])
            },
        ]
    );
    assert!(!record.has_pending());
    assert_conserved(&record);
}

#[test]
fn a_long_outage_is_kept_by_the_hour_and_in_the_right_hours() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    let minutes = 5 * 60;
    for minute in 0..minutes {
        record.admit(&one, &metrics, at(minute * 60_000)).unwrap();
    }
    assert_conserved(&record);
    assert!(record.usage.len() < 12, "{} entries", record.usage.len());
    let sent = record.dispatch(7, 9, 100, &metrics);
    let mut by_hour = std::collections::BTreeMap::<u64, u64>::new();
    for transaction in &sent {
        *by_hour.entry(transaction.at / 3_600).or_default() += transaction.usage[0].1;
    }
    assert_eq!(by_hour.values().sum::<u64>(), minutes);
    // It started at 20:47: 13 minutes of that hour, then whole ones.
    assert_eq!(
        by_hour.values().copied().collect::<Vec<_>>(),
        [13, 60, 60, 60, 60, 47]
    );
}

#[test]
fn a_metric_is_reported_once_in_a_transaction_also_where_the_clock_went_back() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    for (delta, moment) in [(1, at(0)), (2, at(180_000)), (4, at(0))] {
        let cost = usage(&metrics, &[("hits", delta)]);
        record.admit(&cost, &metrics, moment).unwrap();
    }
    let sent = record.dispatch(7, 9, 10, &metrics);
    assert_eq!(sent[0].usage, [("hits".to_owned(), 5)]);
    assert_eq!(sent[1].usage, [("hits".to_owned(), 2)]);
}

#[test]
fn usage_older_than_the_backend_takes_is_given_up_and_counted() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    let later = at((24 * 3_600 - 600) * 1_000);
    assert_eq!(record.give_up_unreportable(&metrics, later).sum(), 0);
    let too_late = at((24 * 3_600 - 600 + 1) * 1_000);
    assert_eq!(record.give_up_unreportable(&metrics, too_late).sum(), 1);
    assert_eq!(of(&record, "hits").0.lost, 1);
    assert_conserved(&record);
    assert!(record.dispatch(7, 9, 10, &metrics).is_empty());
}

#[test]
fn what_is_brought_back_from_ahead_counts_in_the_limits_that_it_is_reported_in() {
    let metrics = metrics(false);
    let two_hours = 7_200_000;
    let hour = |now| limit("hits", Period::Hour, 9, 0, now);
    let day = |now| limit("hits", Period::Day, 9, 0, now);
    let ahead = at(two_hours);
    let mut record = record(&known(vec![day(ahead)]), &metrics);
    let two = usage(&metrics, &[("hits", 2)]);
    record.admit(&two, &metrics, ahead).unwrap();
    record.dispatch(1, 9, 10, &metrics);
    record.admit(&two, &metrics, ahead).unwrap();
    // The clock is set, and a limit comes whose window is the one of now.
    let answer = known(vec![hour(at(0)), day(at(0))]);
    record
        .refresh(&answer, &metrics, at(0), TTL, STALE)
        .unwrap();
    record.bring_back(&metrics, at(0));
    record.bring_back(&metrics, at(0));
    assert_conserved(&record);
    assert_eq!(of(&record, "hits").1, 2);
    assert_eq!(of(&record, "hits").2, 2, "what is in flight is not moved");
    record.settle(1, Outcome::Acknowledged, &metrics, at(1));
    let sent = record.dispatch(2, 9, 10, &metrics);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].at, sent[0].usage[0].1), (START, 2));
    let counts = |record: &Record| {
        record
            .limits()
            .map(|(_, limit)| (limit.own, limit.sent))
            .collect::<Vec<_>>()
    };
    assert_eq!(counts(&record), [(2, 2), (4, 4)], "once in each");
    record.settle(2, Outcome::Returned, &metrics, at(2));
    assert_eq!(counts(&record), [(2, 0), (4, 2)]);
    assert_conserved(&record);
}

#[test]
fn what_the_backend_takes_stays_in_its_minute_also_if_that_is_ahead() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(50 * 60_000)).unwrap();
    record.bring_back(&metrics, at(0));
    assert_eq!(record.usage[0].at, START + 50 * 60);
    record.admit(&one, &metrics, at(51 * 60_000)).unwrap();
    record.admit(&one, &metrics, at(0)).unwrap();
    record.bring_back(&metrics, at(0));
    let kept: Vec<_> = record.usage.iter().map(|it| (it.at, it.pending)).collect();
    assert_eq!(kept, [(START + 50 * 60, 1), (START, 2)]);
    assert_conserved(&record);
}

#[test]
fn a_batch_ends_by_its_outcome() {
    let metrics = metrics(false);
    for (outcome, acknowledged, lost, pending) in [
        (Outcome::Acknowledged, 5, 0, 0),
        (Outcome::Returned, 0, 0, 5),
        (Outcome::Resent, 0, 0, 5),
        (Outcome::Lost, 0, 5, 0),
    ] {
        let mut record = record(&known(Vec::new()), &metrics);
        record
            .admit(&usage(&metrics, &[("hits", 5)]), &metrics, at(0))
            .unwrap();
        record.dispatch(7, 9, 10, &metrics);
        assert_eq!(of(&record, "hits").2, 5);
        assert_eq!(
            record.settle(8, outcome, &metrics, at(1)).sum(),
            0,
            "another batch"
        );
        assert_eq!(record.settle(7, outcome, &metrics, at(1)).sum(), 5);
        assert_eq!(
            record.settle(7, outcome, &metrics, at(1)).sum(),
            0,
            "settled twice"
        );
        let ledger = Ledger {
            admitted: 5,
            acknowledged,
            lost,
            ..Ledger::default()
        };
        assert_eq!(of(&record, "hits"), (ledger, pending, 0), "{outcome:?}");
        assert_conserved(&record);
    }
}

#[test]
fn what_is_admitted_while_a_batch_flies_waits_for_the_next() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    record.dispatch(7, 9, 10, &metrics);
    record.admit(&one, &metrics, at(0)).unwrap();
    assert!(
        record.dispatch(8, 9, 10, &metrics).is_empty(),
        "one batch at a time"
    );
    record.settle(7, Outcome::Acknowledged, &metrics, at(1));
    assert_eq!(record.dispatch(8, 9, 10, &metrics)[0].usage[0].1, 1);
    assert_conserved(&record);
}

#[test]
fn a_refresh_before_the_backend_has_applied_a_report_forgets_nothing() {
    let metrics = metrics(false);
    let empty = |now| known(vec![limit("hits", Period::Day, 10, 0, now)]);
    let mut record = record(&empty(at(0)), &metrics);
    record
        .admit(&usage(&metrics, &[("hits", 6)]), &metrics, at(0))
        .unwrap();
    record.dispatch(7, 9, 10, &metrics);
    record
        .refresh(&empty(at(10)), &metrics, at(10), TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 6);
    record.settle(7, Outcome::Acknowledged, &metrics, at(20));
    record
        .refresh(&empty(at(30)), &metrics, at(30), TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 6);
    let applied = known(vec![limit("hits", Period::Day, 10, 6, at(40))]);
    record
        .refresh(&applied, &metrics, at(40), TTL, STALE)
        .unwrap();
    assert_eq!(
        known_count(&record, "hits"),
        6,
        "our own usage is not counted twice"
    );
}

#[test]
fn usage_of_others_is_taken_in_and_falls_only_when_reports_have_settled() {
    let metrics = metrics(false);
    let report = |current, now| known(vec![limit("hits", Period::Day, 100, current, now)]);
    let mut record = record(&report(0, at(0)), &metrics);
    record
        .admit(&usage(&metrics, &[("hits", 5)]), &metrics, at(0))
        .unwrap();
    record
        .refresh(&report(20, at(1)), &metrics, at(1), TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 25);
    record.dispatch(7, 9, 10, &metrics);
    record
        .refresh(&report(20, at(2)), &metrics, at(2), TTL, STALE)
        .unwrap();
    assert_eq!(
        known_count(&record, "hits"),
        25,
        "not lowered while a batch flies"
    );
    record.settle(7, Outcome::Acknowledged, &metrics, at(3));
    record
        .refresh(&report(22, at(4)), &metrics, at(4), TTL, STALE)
        .unwrap();
    assert_eq!(
        known_count(&record, "hits"),
        25,
        "nor before it has settled"
    );
    let settled = at(3 + SETTLED_MILLISECONDS + 1);
    record
        .refresh(&report(22, settled), &metrics, settled, TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 22, "others used 17");
}

#[test]
fn a_report_that_may_not_have_arrived_lowers_nobody_elses_usage() {
    let metrics = metrics(false);
    for outcome in [Outcome::Resent, Outcome::Lost] {
        let report = |current, now| known(vec![limit("hits", Period::Day, 100, current, now)]);
        let mut record = record(&report(20, at(0)), &metrics);
        record
            .admit(&usage(&metrics, &[("hits", 5)]), &metrics, at(0))
            .unwrap();
        record.dispatch(7, 9, 10, &metrics);
        record.settle(7, outcome, &metrics, at(1));
        let settled = at(1 + SETTLED_MILLISECONDS + 1);
        record
            .refresh(&report(20, settled), &metrics, settled, TTL, STALE)
            .unwrap();
        assert_eq!(known_count(&record, "hits"), 25, "{outcome:?}");
    }
}

#[test]
fn a_returned_batch_is_ours_again_and_not_somebody_elses() {
    let metrics = metrics(false);
    let report = |current, now| known(vec![limit("hits", Period::Day, 100, current, now)]);
    let mut record = record(&report(0, at(0)), &metrics);
    record
        .admit(&usage(&metrics, &[("hits", 5)]), &metrics, at(0))
        .unwrap();
    record.dispatch(7, 9, 10, &metrics);
    record.settle(7, Outcome::Returned, &metrics, at(1));
    record
        .refresh(&report(3, at(2)), &metrics, at(2), TTL, STALE)
        .unwrap();
    assert_eq!(
        known_count(&record, "hits"),
        8,
        "nothing of ours is in the 3"
    );
}

#[test]
fn a_report_of_an_ended_window_says_nothing_of_the_open_one() {
    let metrics = metrics(false);
    let old = known(vec![limit("hits", Period::Minute, 10, 9, at(0))]);
    let mut record = record(&old, &metrics);
    record
        .admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(60_000))
        .unwrap();
    record
        .refresh(&old, &metrics, at(60_010), TTL, STALE)
        .unwrap();
    assert_eq!(known_count(&record, "hits"), 1);
}

#[test]
fn a_backend_whose_clock_is_ahead_gives_no_window_twice() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Minute, 10, 0, at(0))]),
        &metrics,
    );
    let ten = usage(&metrics, &[("hits", 10)]);
    record.admit(&ten, &metrics, at(50_000)).unwrap();
    let ahead = known(vec![limit("hits", Period::Minute, 10, 0, at(60_000))]);
    record
        .refresh(&ahead, &metrics, at(58_500), TTL, STALE)
        .unwrap();
    assert!(record.admit(&ten, &metrics, at(59_000)).is_err());
    record.admit(&ten, &metrics, at(60_000)).unwrap();
}

#[test]
fn a_limit_that_comes_later_begins_in_the_window_that_usage_of_now_is_reported_in() {
    let metrics = metrics(true);
    let plan = |with_orders, now| {
        let mut limits = vec![limit("hits", Period::Minute, 10, 0, now)];
        if with_orders {
            limits.push(limit("orders", Period::Minute, 10, 0, now));
        }
        known(limits)
    };
    let starts = |record: &Record| {
        record
            .limits()
            .map(|(_, limit)| limit.window.start)
            .collect::<Vec<_>>()
    };
    let ten = usage(&metrics, &[("hits", 10)]);
    // The backend's clock is ahead, and so is the window of the limit that comes.
    let mut following = record(&plan(false, at(0)), &metrics);
    let ahead = plan(true, at(60_000));
    following
        .refresh(&ahead, &metrics, at(58_500), TTL, STALE)
        .unwrap();
    assert_eq!(starts(&following), [START, START]);
    following.admit(&ten, &metrics, at(59_000)).unwrap();
    following.admit(&ten, &metrics, at(60_000)).unwrap();
    let sent = following.dispatch(7, 9, 10, &metrics);
    let sent: Vec<_> = sent.iter().map(|it| (it.at, it.usage[0].1)).collect();
    assert_eq!(sent, [(START, 10), (START + 60, 10)]);
    // A record that follows none yet begins where the backend counts, with all of them.
    let mut new = record(&known(Vec::new()), &metrics);
    for with_orders in [false, true] {
        let ahead = plan(with_orders, at(60_000));
        new.refresh(&ahead, &metrics, at(58_500), TTL, STALE)
            .unwrap();
    }
    assert_eq!(starts(&new), [START + 60, START + 60]);
    // So does one whose backend is no longer ahead.
    let mut later = record(&known(Vec::new()), &metrics);
    later
        .refresh(&plan(false, at(60_000)), &metrics, at(58_500), TTL, STALE)
        .unwrap();
    later
        .refresh(&plan(true, at(59_000)), &metrics, at(59_000), TTL, STALE)
        .unwrap();
    assert_eq!(starts(&later), [START + 60, START + 60]);
}

#[test]
fn names_of_former_plans_make_room_for_those_of_the_present_one() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    for plan in 0..200_u64 {
        let new = limit(&format!("m{plan}"), Period::Day, 5, 0, at(plan));
        record
            .refresh(&known(vec![new]), &metrics, at(plan), TTL, STALE)
            .unwrap();
        assert_eq!(record.limits().count(), 1);
    }
    assert_eq!(of(&record, "hits").1, 1, "what is pending keeps its name");
    assert_conserved(&record);
    record
        .admit(&usage(&metrics, &[("ads", 1)]), &metrics, at(300))
        .unwrap();
}

#[test]
fn of_a_hierarchy_that_does_not_fit_only_what_can_be_used_is_kept() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let mut answer = known(vec![limit("hits", Period::Day, 1, 0, at(0))]);
    answer.hierarchy = (0..100)
        .map(|child| format!("child{child}"))
        .chain(["orders".to_owned()])
        .map(|child| ("hits".to_owned(), child))
        .collect();
    record
        .refresh(&answer, &metrics, at(0), TTL, STALE)
        .unwrap();
    let order = usage(&metrics, &[("orders", 1)]);
    record.admit(&order, &metrics, at(0)).unwrap();
    assert!(record.admit(&order, &metrics, at(0)).is_err());
}

#[test]
fn a_limit_that_comes_later_counts_what_is_not_yet_acknowledged() {
    let metrics = metrics(true);
    let mut record = record(&known(Vec::new()), &metrics);
    record
        .admit(&usage(&metrics, &[("orders", 2)]), &metrics, at(0))
        .unwrap();
    record.dispatch(7, 9, 10, &metrics);
    record
        .admit(&usage(&metrics, &[("orders", 1)]), &metrics, at(0))
        .unwrap();
    let answer = known(vec![limit("hits", Period::Minute, 10, 2, at(1))]);
    record
        .refresh(&answer, &metrics, at(1), TTL, STALE)
        .unwrap();
    assert_eq!(
        known_count(&record, "hits"),
        3,
        "the 2 are our own batch, applied already"
    );
}

#[test]
fn a_limit_that_goes_is_no_longer_kept() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Day, 1, 1, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    assert!(record.admit(&one, &metrics, at(0)).is_err());
    record
        .refresh(&known(Vec::new()), &metrics, at(1), TTL, STALE)
        .unwrap();
    record.admit(&one, &metrics, at(2)).unwrap();
}

#[test]
fn a_record_gives_way_only_when_nothing_of_it_can_be_lost() {
    let metrics = metrics(false);
    let answer = |now| known(vec![limit("hits", Period::Day, 10, 0, now)]);
    let mut record = record(&answer(at(0)), &metrics);
    assert!(record.may_give_way(at(200_000)));
    record
        .admit(&usage(&metrics, &[("hits", 1)]), &metrics, at(0))
        .unwrap();
    assert!(!record.may_give_way(at(200_000)), "pending");
    record.dispatch(7, 9, 10, &metrics);
    assert!(!record.may_give_way(at(200_000)), "in flight");
    record.settle(7, Outcome::Acknowledged, &metrics, at(1));
    assert!(
        !record.may_give_way(at(200_000)),
        "acknowledged, and perhaps not yet applied"
    );
    let settled = at(1 + SETTLED_MILLISECONDS + 1);
    record
        .refresh(&answer(settled), &metrics, settled, TTL, STALE)
        .unwrap();
    assert!(record.may_give_way(at(200_000)));
}

/// A record with two limits that are used up, whose report ended so.
fn used_up(outcome: Outcome, metrics: &Metrics) -> Record {
    let answer = |now| {
        known(vec![
            limit("hits", Period::Minute, 10, 0, now),
            limit("hits", Period::Day, 10, 0, now),
        ])
    };
    let mut record = record(&answer(at(0)), metrics);
    record
        .admit(&usage(metrics, &[("hits", 10)]), metrics, at(0))
        .unwrap();
    record.dispatch(7, 9, 10, metrics);
    record.settle(7, outcome, metrics, at(1));
    let later = at(60_000);
    record
        .refresh(&answer(later), metrics, later, TTL, STALE)
        .unwrap();
    record
}

#[test]
fn a_record_whose_limit_counts_what_was_given_up_does_not_give_way_in_that_window() {
    let metrics = metrics(false);
    let end = (window(Period::Day).end - START) * 1_000;
    for outcome in [Outcome::Lost, Outcome::Refused] {
        let mut record = used_up(outcome, &metrics);
        assert!(!record.may_give_way(at(60_001)), "{outcome:?}");
        assert!(!record.may_give_way(at(end - 1)), "{outcome:?}");
        assert!(record.may_give_way(at(end)), "{outcome:?}");
        // Also if it is asked about in the next window, which has nothing of it.
        let next = known(vec![limit("hits", Period::Day, 10, 0, at(end))]);
        record
            .refresh(&next, &metrics, at(end), TTL, STALE)
            .unwrap();
        assert!(record.may_give_way(at(end)), "{outcome:?}");
    }
    // What was sent again is with the backend once at least.
    let mut resent = used_up(Outcome::Resent, &metrics);
    resent.dispatch(8, 9, 10, &metrics);
    resent.settle(8, Outcome::Acknowledged, &metrics, at(60_000));
    let answer = known(vec![limit("hits", Period::Day, 10, 10, at(70_000))]);
    resent
        .refresh(&answer, &metrics, at(70_000), TTL, STALE)
        .unwrap();
    assert!(resent.may_give_way(at(70_001)));
}

#[test]
fn a_record_whose_limit_counts_what_became_too_old_does_not_give_way_while_it_is_in_use() {
    let metrics = metrics(false);
    let day = 86_400_000;
    let mut record = record(
        &known(vec![limit("hits", Period::Week, 10, 0, at(0))]),
        &metrics,
    );
    let ten = usage(&metrics, &[("hits", 10)]);
    record.admit(&ten, &metrics, at(0)).unwrap();
    let ad = usage(&metrics, &[("ads", 1)]);
    record.admit(&ad, &metrics, at(day - 1)).unwrap();
    assert_eq!(record.give_up_unreportable(&metrics, at(day)).sum(), 10);
    record.dispatch(7, 9, 10, &metrics);
    record.settle(7, Outcome::Acknowledged, &metrics, at(day));
    assert!(!record.may_give_way(at(day + 60_000)));
}

#[test]
fn a_limit_without_end_keeps_no_slot_for_more_than_a_day_after_its_last_use() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("hits", Period::Eternity, 10, 0, at(0))]),
        &metrics,
    );
    let one = usage(&metrics, &[("hits", 1)]);
    record.admit(&one, &metrics, at(0)).unwrap();
    record.dispatch(7, 9, 10, &metrics);
    record.settle(7, Outcome::Refused, &metrics, at(1));
    assert!(!record.may_give_way(at(86_400_000)));
    assert!(record.may_give_way(at(86_400_001)));
}

#[test]
fn an_answer_with_more_metrics_than_fit_is_refused() {
    let metrics = metrics(false);
    let limits = (0..65)
        .map(|n| limit(&format!("m{n}"), Period::Day, 1, 0, at(0)))
        .collect();
    let mut record = Record::vacant();
    assert_eq!(
        record.refresh(&known(limits), &metrics, at(0), TTL, STALE),
        Err(Refusal::TooManyMetrics)
    );
}

#[test]
fn a_caller_is_told_of_the_limit_that_leaves_least() {
    let metrics = metrics(true);
    let mut record = record(
        &known(vec![
            limit("hits", Period::Minute, 10, 2, at(0)),
            limit("orders", Period::Hour, 5, 0, at(0)),
            limit("hits", Period::Day, 8, 0, at(0)),
            limit("ads", Period::Minute, 1, 0, at(0)),
            limit("hits", Period::Eternity, 6, 0, at(0)),
        ]),
        &metrics,
    );
    let quota = |maximum, remaining, period| {
        Some(Quota {
            maximum,
            remaining,
            until: window(period).end,
        })
    };
    let order = usage(&metrics, &[("orders", 1)]);
    record.admit(&order, &metrics, at(0)).unwrap();
    assert_eq!(record.quota(false), quota(5, 4, Period::Hour));
    let hits = usage(&metrics, &[("hits", 2)]);
    record.admit(&hits, &metrics, at(0)).unwrap();
    assert_eq!(record.quota(false), quota(6, 3, Period::Eternity));
    record.admit(&order, &metrics, at(0)).unwrap();
    // hits leaves 4 of 10, 4 of 8 and 2 for ever, orders 3 of 5.
    assert_eq!(record.quota(false), quota(6, 2, Period::Eternity));
    let ad = usage(&metrics, &[("ads", 1)]);
    record.admit(&ad, &metrics, at(0)).unwrap();
    assert_eq!(record.quota(false), quota(1, 0, Period::Minute));
}

#[test]
fn who_is_refused_is_told_of_the_limit_that_refuses_for_longest() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![
            limit("hits", Period::Minute, 5, 5, at(0)),
            limit("hits", Period::Hour, 9, 7, at(0)),
            limit("hits", Period::Day, 9, 0, at(0)),
        ]),
        &metrics,
    );
    let three = usage(&metrics, &[("hits", 3)]);
    let until = window(Period::Hour).end;
    assert_eq!(
        record.admit(&three, &metrics, at(0)),
        Err(Refusal::Limited { until })
    );
    assert_eq!(
        record.quota(true),
        Some(Quota {
            maximum: 9,
            remaining: 2,
            until
        })
    );
}

#[test]
fn without_a_limit_on_what_a_request_costs_there_is_nothing_to_tell() {
    let metrics = metrics(false);
    let mut record = record(
        &known(vec![limit("ads", Period::Minute, 5, 0, at(0))]),
        &metrics,
    );
    for of in [&[("hits", 1)][..], &[]] {
        record.admit(&usage(&metrics, of), &metrics, at(0)).unwrap();
        assert_eq!(record.quota(false), None);
    }
}

#[test]
fn more_than_the_backend_can_count_in_one_transaction_leaves_in_several_batches() {
    let metrics = metrics(false);
    let mut record = record(&known(Vec::new()), &metrics);
    let huge = usage(&metrics, &[("hits", u64::MAX / 4)]);
    for _ in 0..3 {
        record.admit(&huge, &metrics, at(0)).unwrap();
    }
    // The same minute as the latest of an hour's entry: one transaction, one sum.
    let minute = record.usage[0].at;
    record.usage.push(Entry {
        hour: true,
        pending: 1_000,
        ..record.usage[0]
    });
    record.ledger[0].admitted += 1_000;
    let mut sent = 0;
    for batch in 1..=2 {
        let transactions = record.dispatch(batch, u64::MAX, 10, &metrics);
        assert_eq!(transactions.len(), 1);
        assert_eq!(transactions[0].at, minute);
        let delta = transactions[0].usage[0].1;
        assert!(delta <= MAX_USAGE, "{delta} in batch {batch}");
        sent += delta;
        assert_conserved(&record);
        record.settle(batch, Outcome::Acknowledged, &metrics, at(1));
        assert_conserved(&record);
    }
    assert_eq!(sent, u64::MAX / 4 * 3 + 1_000);
    assert!(!record.has_pending());
}
