use super::*;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

const ALICE: (Slot, Digest) = (Slot(1), Digest([1; 16]));
const BOB: (Slot, Digest) = (Slot(2), Digest([2; 16]));

fn table(names: &[&str]) -> Metrics {
    Metrics::new(names.iter().map(|name| ((*name).to_owned(), None))).unwrap()
}

/// Alice has used these metrics, which nothing is known of.
fn used(names: &[&str]) -> Probe {
    let mut probe = Probe::default();
    for name in names {
        assert!(probe.withholds(name, false, false, 0), "{name}");
        probe.note(name, false, 0);
    }
    probe.hold(ALICE.0);
    probe.offer(ALICE.0, ALICE.1);
    probe
}

/// What is asked now, if anything.
fn asked(probe: &mut Probe, metrics: &Metrics, now: u64) -> Option<Vec<String>> {
    probe.due(metrics, now)?;
    Some(probe.ask())
}

/// The answer to the question under way.
fn answer(probe: &mut Probe, answer: MetricsAnswer, now: u64) -> Found {
    let asked = probe.asked.clone().expect("a question under way");
    probe.answered(&asked, answer, now, second)
}

fn unknown(name: &str) -> MetricsAnswer {
    MetricsAnswer::Unknown(Some(name.to_owned()))
}

fn second(_: u32) -> u64 {
    1_000
}

/// Asks until nothing more is asked, of a service that has these metrics and says which it
/// has not, if `named`. The number of questions.
fn settle(probe: &mut Probe, metrics: &Metrics, has: &[&str], named: bool, now: u64) -> usize {
    for questions in 0..1_000 {
        let Some(asked) = asked(probe, metrics, now) else {
            return questions;
        };
        let bad = asked.into_iter().find(|name| !has.contains(&name.as_str()));
        let answer = match bad {
            Some(bad) => MetricsAnswer::Unknown(named.then_some(bad)),
            None => MetricsAnswer::AllKnown,
        };
        self::answer(probe, answer, now);
    }
    panic!("questions without end");
}

#[test]
fn usage_waits_until_its_metric_is_known() {
    let metrics = table(&["hits", "ads"]);
    let mut probe = used(&["hits"]);
    assert_eq!(
        asked(&mut probe, &metrics, 0),
        Some(vec!["ads".to_owned(), "hits".to_owned()]),
        "all metrics of the configuration, used or not"
    );
    assert_eq!(
        asked(&mut probe, &metrics, 0),
        None,
        "one question at a time"
    );
    assert!(probe.withholds("hits", false, false, 5));
    let found = answer(&mut probe, MetricsAnswer::AllKnown, 5);
    assert_eq!(found.released, BTreeSet::from([ALICE.0]));
    assert!(found.complete && !probe.withholds("hits", false, false, 5));
    assert_eq!(asked(&mut probe, &metrics, 5), None);
}

#[test]
fn unknown_metrics_are_found_one_by_one_and_the_others_go() {
    let metrics = table(&["hits", "ads", "typo", "tpyo"]);
    let mut probe = used(&["hits", "typo", "tpyo"]);
    assert_eq!(settle(&mut probe, &metrics, &["hits", "ads"], true, 0), 3);
    assert_eq!(probe.unknown().collect::<Vec<_>>(), ["tpyo", "typo"]);
    assert!(!probe.withholds("hits", false, false, 0));
    assert!(probe.withholds("typo", false, false, 0));
    assert!(
        probe.withholds("typo", true, true, 0),
        "also alone, and whatever an older answer said"
    );
}

#[test]
fn an_answer_that_does_not_say_which_is_narrowed_down() {
    let names: Vec<String> = (0..Metrics::MAX)
        .map(|number| format!("m{number}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let metrics = table(&names);
    let has: Vec<&str> = names.iter().copied().filter(|name| *name != "m7").collect();
    let mut probe = used(&["m7"]);
    let questions = settle(&mut probe, &metrics, &has, false, 0);
    assert_eq!(probe.unknown().collect::<Vec<_>>(), ["m7"]);
    assert!(questions <= 2 * 7 + 1, "{questions} questions");
}

#[test]
fn a_name_that_was_not_asked_about_is_not_believed() {
    let metrics = table(&["hits", "ads"]);
    let mut probe = used(&["hits"]);
    asked(&mut probe, &metrics, 0).unwrap();
    answer(&mut probe, unknown("other"), 0);
    assert_eq!(probe.unknown().count(), 0);
    assert_eq!(settle(&mut probe, &metrics, &["hits"], true, 0), 2);
    assert_eq!(probe.unknown().collect::<Vec<_>>(), ["ads"]);
}

#[test]
fn a_metric_that_comes_into_being_is_found_within_a_minute() {
    let metrics = table(&["hits", "late"]);
    let mut probe = used(&["hits", "late"]);
    settle(&mut probe, &metrics, &["hits"], true, 0);
    probe.hold(ALICE.0);
    assert_eq!(asked(&mut probe, &metrics, LEAST_PAUSE - 1), None);
    assert_eq!(
        asked(&mut probe, &metrics, LEAST_PAUSE),
        Some(vec!["late".to_owned()])
    );
    let found = answer(&mut probe, MetricsAnswer::AllKnown, LEAST_PAUSE);
    assert_eq!(found.released, BTreeSet::from([ALICE.0]));
    assert_eq!(probe.unknown().count(), 0);
    assert!(!probe.withholds("late", false, false, LEAST_PAUSE));
}

#[test]
fn many_unknown_metrics_are_no_flood_of_questions() {
    let names: Vec<String> = (0..Metrics::MAX)
        .map(|number| format!("m{number}"))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let metrics = table(&names);
    let mut probe = used(&names);
    let mut questions = 0;
    for second in 0..3_600 {
        probe.hold(ALICE.0);
        questions += settle(&mut probe, &metrics, &[], true, second * 1_000);
    }
    assert_eq!(probe.unknown().count(), Metrics::MAX);
    assert!(
        questions <= Metrics::MAX + 3_600 / 10,
        "{questions} in an hour"
    );
}

#[test]
fn a_metric_with_a_limit_is_known_without_a_question() {
    let metrics = table(&["hits"]);
    let mut probe = Probe::default();
    assert!(!probe.withholds("hits", true, false, 0));
    probe.note("hits", true, 0);
    probe.offer(ALICE.0, ALICE.1);
    assert_eq!(asked(&mut probe, &metrics, 0), None);
    assert!(!probe.withholds("hits", false, false, 0));
    // Of another application, which has no limit of it, once that was long ago.
    probe.note("hits", false, KNOWN_MILLISECONDS);
    assert!(!probe.withholds("hits", false, false, KNOWN_MILLISECONDS));
    assert!(asked(&mut probe, &metrics, KNOWN_MILLISECONDS).is_some());
}

#[test]
fn what_is_known_is_asked_again_after_ten_minutes_and_only_if_it_is_used() {
    let metrics = table(&["hits"]);
    let mut probe = used(&["hits"]);
    settle(&mut probe, &metrics, &["hits"], true, 0);
    assert!(!probe.is_news("hits", KNOWN_MILLISECONDS - 1));
    assert_eq!(asked(&mut probe, &metrics, 10 * KNOWN_MILLISECONDS), None);
    assert!(probe.is_news("hits", KNOWN_MILLISECONDS));
    probe.note("hits", false, KNOWN_MILLISECONDS);
    assert_eq!(
        settle(&mut probe, &metrics, &[], true, KNOWN_MILLISECONDS),
        1
    );
    assert!(probe.withholds("hits", false, false, KNOWN_MILLISECONDS));
}

#[test]
fn an_outage_holds_usage_back_for_ten_minutes_at_most() {
    let metrics = table(&["hits"]);
    let mut probe = used(&["hits"]);
    for second_of_outage in 0..LONGEST_HOLD / 1_000 {
        let now = second_of_outage * 1_000;
        assert!(probe.withholds("hits", false, false, now));
        asked(&mut probe, &metrics, now).expect("a question each second");
        let found = answer(&mut probe, MetricsAnswer::Failed, now);
        assert_eq!(
            (found.complete, asked(&mut probe, &metrics, now)),
            (false, None)
        );
    }
    assert!(!probe.withholds("hits", false, false, LONGEST_HOLD));
}

#[test]
fn answers_about_the_application_alone_hold_nobody_up() {
    let metrics = table(&["hits"]);
    let mut probe = used(&["hits"]);
    for now in 0..u64::from(MOST_USELESS) {
        assert!(probe.withholds("hits", false, false, now * 1_000));
        asked(&mut probe, &metrics, now * 1_000).expect("a question");
        let found = answer(&mut probe, MetricsAnswer::Useless, now * 1_000);
        let is_last = now + 1 == u64::from(MOST_USELESS);
        assert_eq!(found.released.contains(&ALICE.0), is_last);
    }
    assert!(!probe.withholds("hits", false, false, 2_000));
    // It is still found out, from another application.
    probe.offer(BOB.0, BOB.1);
    assert_eq!(probe.due(&metrics, 10_000), Some(BOB));
    assert_eq!(settle(&mut probe, &metrics, &[], true, 10_000), 1);
    assert!(probe.withholds("hits", false, false, 10_000));
}

#[test]
fn long_names_take_several_questions() {
    let long = |number: usize| format!("{number:0>128}");
    let names: Vec<String> = (0..Metrics::MAX).map(long).collect();
    let metrics = Metrics::new(names.iter().map(|name| (name.clone(), None))).unwrap();
    let mut probe = used(&[&names[0]]);
    let mut seen = BTreeSet::new();
    while let Some(asked) = asked(&mut probe, &metrics, 0) {
        let bytes: usize = asked.iter().map(|name| 3 * name.len() + 18).sum();
        assert!(bytes <= 8_192, "{bytes} bytes");
        seen.extend(asked);
        answer(&mut probe, MetricsAnswer::AllKnown, 0);
    }
    assert_eq!(seen.len(), names.len());
}

#[test]
fn who_leads_next_knows_nothing_and_looks_at_what_was_held() {
    let metrics = table(&["hits", "typo"]);
    let mut probe = used(&["typo"]);
    settle(&mut probe, &metrics, &["hits"], true, 0);
    probe.hold(BOB.0);
    assert_eq!(probe.reset(), BTreeSet::from([BOB.0]));
    assert_eq!(probe.unknown().count(), 0);
    assert!(probe.withholds("hits", false, false, 0));
}

#[test]
fn an_answer_to_a_question_of_an_earlier_lead_is_not_taken_for_another() {
    let metrics = table(&["hits", "typo"]);
    let mut probe = used(&["typo"]);
    let first = asked(&mut probe, &metrics, 0).unwrap();
    probe.reset();
    probe.note("new", false, 0);
    probe.offer(ALICE.0, ALICE.1);
    asked(&mut probe, &metrics, 0).unwrap();
    let found = probe.answered(&first, MetricsAnswer::AllKnown, 0, second);
    assert_eq!(found, Found::default());
    assert!(probe.withholds("new", false, false, 0));
}
