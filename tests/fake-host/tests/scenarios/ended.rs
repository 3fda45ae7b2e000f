//! Requests that end while they wait: their places are somebody else's.

use std::time::Duration;

use serde_json::json;
use tollgate_fake_host::{Call, Outcome, StreamId, Worker, authorized, denied, error};

use crate::support::*;

/// As many as a worker lets wait, for questions and for bodies each.
const PLACES: usize = 10_000;

/// Requests, one after the other, as long as they wait; at most as many as there are places.
fn fill(mut request: impl FnMut(usize) -> Outcome) -> Vec<StreamId> {
    let mut streams = Vec::new();
    while streams.len() < PLACES
        && let Outcome::Paused(stream) = request(streams.len())
    {
        streams.push(stream);
    }
    streams
}

/// Requests of three applications, all of which end at once.
fn come_and_go(worker: &Worker) {
    let streams = fill(|number| get(worker, &format!("key-{}", number % 3)));
    assert_eq!(streams.len(), PLACES);
    for stream in streams {
        worker.end_stream(stream);
    }
}

#[track_caller]
fn is_overloaded(outcome: Outcome) {
    assert_eq!(outcome.reply().details, "tollgate_overloaded");
}

#[test]
fn a_flood_of_requests_that_end_at_once_leaves_a_place() {
    let (envoy, worker) = gateway(&plain());
    come_and_go(&worker);
    let alice = get(&worker, "alice").paused();
    // Not twice in a moment: a look costs as much as a thousand requests.
    let streams = fill(|number| get(&worker, &format!("key-{}", number % 3)));
    assert_eq!(streams.len(), PLACES - 1);
    for stream in streams {
        worker.end_stream(stream);
    }
    is_overloaded(get(&worker, "bob"));
    envoy.advance(Duration::from_millis(100));
    let bob = get(&worker, "bob").paused();
    for call in worker.calls() {
        worker.answer(call.token, authorized().at(envoy.wall_ms()));
    }
    for stream in [alice, bob] {
        worker.poll(stream).forwarded();
    }
    assert_eq!(books(&envoy, "hits").admitted, 2);
    behaved(&envoy);
}

#[test]
fn a_tick_frees_the_places_of_requests_that_have_ended() {
    let (envoy, worker) = gateway(&plain());
    come_and_go(&worker);
    worker.tick();
    let streams = fill(|number| get(&worker, &format!("key-{}", number % 3)));
    assert_eq!(streams.len(), PLACES);
    is_overloaded(get(&worker, "bob"));
    for stream in &streams {
        worker.end_stream(*stream);
    }
    // Time stands still, so nobody looks but the tick.
    is_overloaded(get(&worker, "bob"));
    worker.tick();
    get(&worker, "bob").paused();
    behaved(&envoy);
}

#[test]
fn an_answer_is_kept_although_nobody_waits_any_more() {
    let (envoy, workers) = gateway_of(2, &plain());
    let stream = get(&workers[0], "alice").paused();
    let other = get(&workers[1], "alice").paused();
    workers[0].end_stream(stream);
    envoy.advance(SECOND);
    workers[0].tick();
    let call = workers[0].only_call();
    workers[0].answer(call.token, authorized().at(envoy.wall_ms()));
    workers[1].poll(other).forwarded();
    get(&workers[0], "alice").forwarded();
    behaved(&envoy);
}

#[test]
fn every_way_out_of_waiting_frees_the_place() {
    let (envoy, workers) = gateway_of(2, &plain());
    let [asks, waits] = &*workers else { panic!() };
    let are_free = |worker: &Worker, round: &str, free: usize| {
        let streams = fill(|number| get(worker, &format!("{round}-{}", number % 3)));
        assert_eq!(streams.len(), free, "{round}");
        is_overloaded(get(worker, "bob"));
        for stream in streams {
            worker.end_stream(stream);
        }
        worker.tick();
        let of_this_round = |call: &Call| is_question(call) && key_of(call).starts_with(round);
        for call in worker.calls().into_iter().filter(of_this_round) {
            worker.answer(
                call.token,
                denied("application_not_active").at(envoy.wall_ms()),
            );
        }
    };
    // A look for requests that have ended counts anew, which would hide a place that was not
    // freed. Here it has been spent, and while time stands still there is no other.
    are_free(asks, "before-here", PLACES);
    are_free(waits, "before-there", PLACES);
    // Answered, here and by the other worker; some had ended.
    let answers = [
        ("admitted", authorized()),
        ("refused", denied("application_not_active")),
    ];
    for (key, answer) in answers {
        let mut streams = Vec::new();
        for worker in [asks, waits] {
            streams.push([0, 1, 2].map(|_| get(worker, key).paused()));
        }
        asks.end_stream(streams[0][0]);
        waits.end_stream(streams[1][0]);
        for call in asks.calls() {
            asks.answer(call.token, answer.clone().at(envoy.wall_ms()));
        }
        assert!(waits.calls().is_empty());
        for (worker, streams) in [(asks, &streams[0]), (waits, &streams[1])] {
            for stream in &streams[1..] {
                assert!(!matches!(worker.poll(*stream), Outcome::Paused(_)));
            }
        }
        are_free(asks, &format!("{key}-here"), PLACES);
        are_free(waits, &format!("{key}-there"), PLACES);
    }
    // Nobody answers: whoever waits takes the question over, and then gives up.
    get(asks, "timed-out").paused();
    let stream = get(waits, "timed-out").paused();
    for _ in 0..30 {
        envoy.advance(SECOND);
        waits.tick();
    }
    are_free(waits, "meanwhile", PLACES - 1);
    for call in waits.calls() {
        waits.answer(call.token, error(500, ""));
    }
    assert!(!matches!(waits.poll(stream), Outcome::Paused(_)));
    are_free(waits, "timed-out-there", PLACES);
    behaved(&envoy);
}

#[test]
fn one_key_does_not_take_all_the_places() {
    let (envoy, worker) = gateway(&plain());
    let streams = fill(|_| get(&worker, "alice"));
    assert_eq!(streams.len(), PLACES / 2);
    is_overloaded(get(&worker, "alice"));
    let bob = get(&worker, "bob").paused();
    for call in worker.calls() {
        worker.answer(call.token, authorized().at(envoy.wall_ms()));
    }
    worker.poll(bob).forwarded();
    assert!(statuses(&worker, &streams).iter().all(Option::is_none));
    behaved(&envoy);
}

#[test]
fn bodies_that_never_come_of_requests_that_have_ended_leave_a_place() {
    let mut service = service("1001", "api.example.com");
    service["credentials"] = json!({ "user_key": [{ "body": "key" }] });
    let (envoy, worker) = gateway(&configuration(json!({ "services": [service] })));
    envoy.show_bodies();
    let post = || {
        let request = worker.request().post("/").with_body();
        request
            .header("content-type", "application/x-www-form-urlencoded")
            .send()
    };
    for _ in 0..2 {
        let streams = fill(|_| post());
        assert_eq!(streams.len(), PLACES);
        for stream in streams {
            worker.end_stream(stream);
        }
        envoy.advance(Duration::from_millis(100));
    }
    let streams = fill(|_| post());
    for stream in &streams {
        worker.end_stream(*stream);
    }
    is_overloaded(post());
    worker.tick();
    let stream = post().paused();
    let asking = worker.body(stream, "key=alice", true).paused();
    worker.answer(worker.only_call().token, authorized().at(envoy.wall_ms()));
    worker.poll(asking).forwarded();
    behaved(&envoy);
}
