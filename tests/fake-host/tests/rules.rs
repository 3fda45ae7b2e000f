//! Envoy's rules as the fake host keeps them, put to the test by a small guest that does
//! what it is told: paths, answers, messages and configurations are its scripts, and it
//! logs what each host function returned. Apart from the scenarios because no filter is
//! involved, and those would not notice a host that is too kind.

use std::ptr;
use std::time::Duration;

use tollgate_fake_host::{Answer, Failure, FakeEnvoy, Guest, Outcome, Status, StreamId, Worker};

unsafe extern "C" {
    fn proxy_log(level: u32, message: *const u8, size: usize) -> u32;
    fn proxy_get_buffer_bytes(
        buffer: u32,
        start: usize,
        max_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_get_header_map_pairs(map: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_get_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        data: *mut *mut u8,
        size: *mut usize,
    ) -> u32;
    fn proxy_replace_header_map_value(
        map: u32,
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
    ) -> u32;
    fn proxy_set_shared_data(
        key: *const u8,
        key_size: usize,
        value: *const u8,
        value_size: usize,
        cas: u32,
    ) -> u32;
    fn proxy_register_shared_queue(name: *const u8, size: usize, token: *mut u32) -> u32;
    fn proxy_resolve_shared_queue(
        vm_id: *const u8,
        vm_id_size: usize,
        name: *const u8,
        size: usize,
        token: *mut u32,
    ) -> u32;
    fn proxy_enqueue_shared_queue(token: u32, value: *const u8, size: usize) -> u32;
    fn proxy_dequeue_shared_queue(token: u32, data: *mut *mut u8, size: *mut usize) -> u32;
    fn proxy_http_call(
        cluster: *const u8,
        cluster_size: usize,
        headers: *const u8,
        headers_size: usize,
        body: *const u8,
        body_size: usize,
        trailers: *const u8,
        trailers_size: usize,
        timeout_ms: u32,
        token: *mut u32,
    ) -> u32;
    fn proxy_continue_stream(stream: u32) -> u32;
    fn proxy_send_local_response(
        status: u32,
        details: *const u8,
        details_size: usize,
        body: *const u8,
        body_size: usize,
        headers: *const u8,
        headers_size: usize,
        grpc_status: i32,
    ) -> u32;
    fn proxy_set_effective_context(context: u32) -> u32;
    fn proxy_set_tick_period_milliseconds(period: u32) -> u32;
    fn proxy_define_metric(kind: u32, name: *const u8, size: usize, id: *mut u32) -> u32;
    fn proxy_increment_metric(id: u32, step: i64) -> u32;
    fn clock_time_get(clock: u32, precision: u64, time: *mut u64) -> u16;
    fn random_get(buffer: *mut u8, size: usize) -> u16;
}

extern "C" fn allocate(size: usize) -> *mut u8 {
    Box::into_raw(vec![0; size].into_boxed_slice()).cast()
}

/// Takes what the host returned through out-pointers, as text.
fn taken(get: impl FnOnce(*mut *mut u8, *mut usize) -> u32) -> (u32, String) {
    let (mut data, mut size) = (ptr::null_mut(), 0);
    let status = get(&raw mut data, &raw mut size);
    let bytes = if data.is_null() {
        Vec::new()
    } else {
        // SAFETY: the host got the block from `allocate`, filled it and forgot it.
        unsafe { Vec::from_raw_parts(data, size, size) }
    };
    (status, String::from_utf8_lossy(&bytes).into_owned())
}

fn say(text: &str) {
    // SAFETY: a live string.
    unsafe { proxy_log(2, text.as_ptr(), text.len()) };
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<u8> {
    let length = |text: &str| u32::try_from(text.len()).unwrap().to_le_bytes();
    let mut bytes = u32::try_from(pairs.len()).unwrap().to_le_bytes().to_vec();
    for (name, value) in pairs {
        bytes.extend(length(name));
        bytes.extend(length(value));
    }
    for part in pairs.iter().flat_map(|(name, value)| [name, value]) {
        bytes.extend(part.as_bytes());
        bytes.push(0);
    }
    bytes
}

fn queue(name: &str) -> (u32, u32) {
    let mut token = 0;
    // SAFETY, here and in `run`: live strings and variables.
    let status = unsafe {
        proxy_resolve_shared_queue(ptr::null(), 0, name.as_ptr(), name.len(), &raw mut token)
    };
    (status, token)
}

/// Runs a script: commands separated by `;`, words by spaces; where a script stands in a
/// script, `|` and `_` instead. Returns the action for a request: 1 if told to `pause`.
fn run(script: &str) -> u32 {
    let mut action = 0;
    for command in script.trim_start_matches('/').split(';') {
        let words: Vec<&str> = command.split_whitespace().collect();
        let status = match words[..] {
            ["pause"] => {
                action = 1;
                continue;
            }
            ["stop"] => {
                action = 4;
                continue;
            }
            [] => continue,
            ["continue"] => unsafe { proxy_continue_stream(0) },
            ["context", id] => unsafe { proxy_set_effective_context(id.parse().unwrap()) },
            ["reply", status, body] => unsafe {
                let headers = pairs(&[("X-From", "guest")]);
                proxy_send_local_response(
                    status.parse().unwrap(),
                    "why".as_ptr(),
                    3,
                    body.as_ptr(),
                    body.len(),
                    headers.as_ptr(),
                    headers.len(),
                    -1,
                )
            },
            ["call", cluster, path] => unsafe {
                let headers = match path {
                    "none" => pairs(&[(":method", "GET"), (":authority", "a")]),
                    _ => pairs(&[(":method", "GET"), (":authority", "a"), (":path", path)]),
                };
                let mut token = 0;
                let status = proxy_http_call(
                    cluster.as_ptr(),
                    cluster.len(),
                    headers.as_ptr(),
                    headers.len(),
                    ptr::null(),
                    0,
                    ptr::null(),
                    0,
                    1000,
                    &raw mut token,
                );
                say(&format!("token {token}"));
                status
            },
            ["header", map, name] => {
                let (status, value) = taken(|data, size| unsafe {
                    let map = map.parse().unwrap();
                    proxy_get_header_map_value(map, name.as_ptr(), name.len(), data, size)
                });
                say(&format!("{name}: {value}"));
                status
            }
            ["pairs", map] => {
                let (status, bytes) = taken(|data, size| unsafe {
                    proxy_get_header_map_pairs(map.parse().unwrap(), data, size)
                });
                say(if bytes.is_empty() {
                    "no pairs"
                } else {
                    "pairs"
                });
                status
            }
            ["replace", name, value] => unsafe {
                proxy_replace_header_map_value(
                    0,
                    name.as_ptr(),
                    name.len(),
                    value.as_ptr(),
                    value.len(),
                )
            },
            ["buffer", number] => {
                let (status, value) = taken(|data, size| unsafe {
                    proxy_get_buffer_bytes(number.parse().unwrap(), 0, 4096, data, size)
                });
                say(&format!("buffer: {value}"));
                status
            }
            ["set", key, value, cas] => unsafe {
                let cas = cas.parse().unwrap();
                proxy_set_shared_data(key.as_ptr(), key.len(), value.as_ptr(), value.len(), cas)
            },
            ["register", name] => unsafe {
                let mut token = 0;
                proxy_register_shared_queue(name.as_ptr(), name.len(), &raw mut token)
            },
            ["enqueue", name, script] => {
                let (status, token) = queue(name);
                assert_eq!(status, 0);
                unsafe { proxy_enqueue_shared_queue(token, script.as_ptr(), script.len()) }
            }
            ["period", period] => unsafe {
                proxy_set_tick_period_milliseconds(period.parse().unwrap())
            },
            ["count", name] => unsafe {
                let mut id = 0;
                proxy_define_metric(0, name.as_ptr(), name.len(), &raw mut id);
                proxy_increment_metric(id, 1)
            },
            ["clock", clock] => unsafe {
                let mut time = 0;
                let status = clock_time_get(clock.parse().unwrap(), 0, &raw mut time);
                say(&format!("clock {time}"));
                status.into()
            },
            ["random"] => unsafe {
                let mut bytes = [0u8; 16];
                let status = random_get(bytes.as_mut_ptr(), 16);
                say(&format!("random {bytes:?}"));
                status.into()
            },
            ["refuse"] => return 7,
            _ => panic!("no command {command}"),
        };
        say(&format!("{command} -> {status}"));
    }
    action
}

extern "C" fn create(context: u32, root: u32) {
    say(&format!("create {context} of {root}"));
}

extern "C" fn configure(_: u32, size: usize) -> u32 {
    let (status, script) =
        taken(|data, len| unsafe { proxy_get_buffer_bytes(7, 0, size, data, len) });
    assert_eq!(status, 0);
    u32::from(run(&script) != 7)
}

extern "C" fn request(_: u32, _: usize, _: u32) -> u32 {
    let path = ":path";
    let (_, script) = taken(|data, size| unsafe {
        proxy_get_header_map_value(0, path.as_ptr(), path.len(), data, size)
    });
    run(&script)
}

/// Waits for the end, and then does what the body says.
extern "C" fn body(_: u32, size: usize, end_of_stream: u32) -> u32 {
    say(&format!("{size} bytes"));
    if end_of_stream == 0 { 1 } else { run_body() }
}

extern "C" fn trailers(_: u32, _: usize) -> u32 {
    run_body()
}

fn run_body() -> u32 {
    let (_, script) = taken(|data, size| unsafe { proxy_get_buffer_bytes(0, 0, 4096, data, size) });
    run(&script)
}

extern "C" fn response(root: u32, token: u32, headers: usize, _: usize, _: usize) {
    say(&format!(
        "answer to {token} for {root} with {headers} headers"
    ));
    let (_, script) = taken(|data, size| unsafe { proxy_get_buffer_bytes(4, 0, 4096, data, size) });
    if !script.starts_with("upstream") {
        run(&script);
    }
}

extern "C" fn ready(root: u32, token: u32) {
    say(&format!("queue ready for {root}"));
    let (status, script) =
        taken(|data, size| unsafe { proxy_dequeue_shared_queue(token, data, size) });
    assert_eq!(status, 0);
    run(&script.replace('_', " ").replace('|', ";"));
}

extern "C" fn tick(root: u32) {
    say(&format!("tick {root}"));
}

extern "C" fn delete(context: u32) {
    say(&format!("delete {context}"));
}

fn envoy() -> FakeEnvoy {
    FakeEnvoy::with_guest(Guest {
        initialize: None,
        on_memory_allocate: allocate,
        on_vm_start: None,
        on_context_create: Some(create),
        on_configure: Some(configure),
        on_tick: Some(tick),
        on_queue_ready: Some(ready),
        on_http_call_response: Some(response),
        on_request_headers: Some(request),
        on_request_body: Some(body),
        on_request_trailers: Some(trailers),
        on_done: None,
        on_log: None,
        on_delete: Some(delete),
    })
    .cluster("backend")
}

fn started() -> (FakeEnvoy, Worker) {
    let envoy = envoy();
    let worker = envoy.configured_worker("");
    (envoy, worker)
}

fn pause(worker: &Worker) -> StreamId {
    worker.request().get("/pause").send().paused()
}

#[test]
fn a_body_is_shown_to_a_filter_that_stops_by_1_where_envoy_is_told_so() {
    for (path, told, shown) in [
        ("/pause", true, true),
        ("/pause", false, false),
        ("/stop", true, false),
        ("/stop", false, false),
    ] {
        let (envoy, worker) = started();
        if told {
            envoy.show_bodies();
        }
        let stream = worker.request().post(path).with_body().send().paused();
        let first = worker.body(stream, "buffer 0;header 0 ", false);
        assert_eq!(first, Outcome::Paused(stream), "{path} {told}");
        let end = worker.body(stream, ":path;pause", true);
        assert_eq!(end, Outcome::Paused(stream), "{path} {told}");
        assert_eq!(said(&envoy, "18 bytes"), shown, "{path} {told}");
        assert_eq!(said(&envoy, "header 0 :path -> 0"), shown, "{path} {told}");
    }
}

#[test]
fn headers_that_are_only_stopped_go_on_with_the_body() {
    let (envoy, worker) = started();
    envoy.show_bodies();
    let stopped = || worker.request().post("/pause").with_body().send().paused();
    assert!(worker.body(stopped(), "", true).continued());
    let stream = stopped();
    assert_eq!(
        worker.body(stream, "pairs 0", false),
        Outcome::Paused(stream)
    );
    assert!(worker.trailers(stream).continued());
    assert!(said(&envoy, "pairs 0 -> 0"));
    let stream = stopped();
    assert_eq!(
        worker.body(stream, "reply 400 no", true).status(),
        Some(400)
    );
}

fn said(envoy: &FakeEnvoy, text: &str) -> bool {
    envoy.logs().iter().any(|line| line.message == text)
}

/// Asserts that the guest logged each text, whole lines, and shows the log if not.
fn assert_said(envoy: &FakeEnvoy, texts: &[&str]) {
    for text in texts {
        assert!(said(envoy, text), "{text} is not in {:#?}", envoy.logs());
    }
}

#[test]
fn context_ids_start_at_one_and_are_not_used_again() {
    let (envoy, worker) = started();
    assert!(worker.request().send().continued());
    assert!(worker.request().send().continued());
    assert_said(
        &envoy,
        &[
            "create 1 of 0",
            "create 2 of 1",
            "delete 2",
            "create 3 of 1",
        ],
    );
}

#[test]
fn a_refused_configuration_is_refused() {
    assert!(!envoy().worker().configure("refuse"));
}

#[test]
fn the_configuration_is_readable_only_while_it_is_given() {
    let (envoy, worker) = started();
    worker.request().get("/buffer 7").send();
    assert_said(&envoy, &["buffer 7 -> 1"]);
}

#[test]
fn a_local_reply_stops_the_request_whatever_the_callback_returns() {
    let (_, worker) = started();
    let reply = worker.request().get("/reply 403 no").send().reply();
    assert_eq!((reply.status, reply.text().as_str()), (403, "no"));
    assert_eq!(reply.header("x-from"), Some("guest"));
    assert_eq!(reply.details, "why");
}

#[test]
fn a_local_reply_to_another_stream_also_stops_the_one_whose_callback_runs() {
    let (_, worker) = started();
    let waiting = pause(&worker);
    let path = format!("/context {};reply 403 no", waiting.0);
    let stopped = worker.request().get(path).send().paused();
    assert_ne!(stopped, waiting);
    assert_eq!(worker.poll(waiting).status(), Some(403));
}

#[test]
fn the_first_of_two_replies_wins_and_the_second_is_noted() {
    let (envoy, worker) = started();
    let outcome = worker.request().get("/reply 403 one;reply 429 two").send();
    assert_eq!(outcome.status(), Some(403));
    assert_eq!(envoy.misuses().len(), 1);
}

#[test]
fn an_answer_goes_to_the_root_and_can_resume_a_stream() {
    let (envoy, worker) = started();
    let stream = worker
        .request()
        .get("/call backend /x;pause")
        .send()
        .paused();
    let call = worker.only_call();
    assert_eq!(
        (call.cluster.as_str(), call.path(), call.timeout_ms),
        ("backend", "/x", 1000)
    );
    assert_eq!(worker.poll(stream), Outcome::Paused(stream));
    let script = format!("header 6 :status;context {};continue", stream.0);
    worker.answer(call.token, Answer::status(200).body(script));
    assert!(worker.poll(stream).continued());
    assert_said(
        &envoy,
        &["answer to 1 for 1 with 2 headers", ":status: 200"],
    );
    assert!(envoy.misuses().is_empty());
}

#[test]
fn an_answer_arrives_when_the_stream_that_asked_has_ended() {
    let (envoy, worker) = started();
    let stream = worker
        .request()
        .get("/call backend /x;pause")
        .send()
        .paused();
    worker.end_stream(stream);
    let script = format!("context {}", stream.0);
    worker.answer(worker.only_call().token, Answer::status(200).body(script));
    let refused = format!("context {} -> 2", stream.0);
    assert_said(&envoy, &[&refused]);
}

#[test]
fn resuming_on_the_root_does_nothing_and_is_noted() {
    let (envoy, worker) = started();
    let stream = worker
        .request()
        .get("/call backend /x;pause")
        .send()
        .paused();
    worker.answer(
        worker.only_call().token,
        Answer::status(200).body("continue"),
    );
    assert_eq!(worker.poll(stream), Outcome::Paused(stream));
    assert_said(&envoy, &["continue -> 0"]);
    assert_eq!(envoy.misuses().len(), 1);
}

#[test]
fn the_effective_context_does_not_outlast_the_callback() {
    let (envoy, worker) = started();
    let stream = pause(&worker);
    for script in [
        format!("call backend /y;context {}", stream.0),
        "continue".into(),
    ] {
        worker.request().get("/call backend /x").send();
        let token = worker.calls().last().unwrap().token;
        worker.answer(token, Answer::status(200).body(script));
    }
    assert_eq!(worker.poll(stream), Outcome::Paused(stream));
    assert_eq!(envoy.misuses().len(), 1);
}

#[test]
fn resuming_twice_is_noted() {
    let (envoy, worker) = started();
    let stream = pause(&worker);
    worker.request().get("/call backend /x").send();
    let script = format!("context {};continue;continue", stream.0);
    worker.answer(worker.only_call().token, Answer::status(200).body(script));
    assert!(worker.poll(stream).continued());
    assert_eq!(envoy.misuses().len(), 1);
}

#[test]
fn request_headers_are_readable_until_the_request_goes_on() {
    let (envoy, worker) = started();
    let stream = pause(&worker);
    worker.request().get("/call backend /x").send();
    let script = format!(
        "context {};header 0 :path;replace X-New 1;continue;header 0 :path;pairs 0",
        stream.0
    );
    worker.answer(worker.only_call().token, Answer::status(200).body(script));
    let lines: Vec<_> = envoy.logs().into_iter().map(|line| line.message).collect();
    let statuses = [
        "header 0 :path -> 0",
        "header 0 :path -> 2",
        "no pairs",
        "pairs 0 -> 0",
    ];
    let mut rest = lines.iter();
    for status in statuses {
        assert!(rest.any(|line| line == status), "{status} in {lines:#?}");
    }
    let forwarded = worker.poll(stream).forwarded();
    assert!(forwarded.headers.contains(&("x-new".into(), "1".into())));
}

#[test]
fn a_call_to_an_unknown_cluster_or_without_a_path_is_refused_at_once() {
    let (envoy, worker) = started();
    worker
        .request()
        .get("/call nowhere /x;call backend none")
        .send();
    assert_said(&envoy, &["call nowhere /x -> 2", "call backend none -> 2"]);
    assert!(worker.calls().is_empty());
}

#[test]
fn a_broken_call_has_no_headers_and_a_refused_one_says_why() {
    let (envoy, worker) = started();
    worker
        .request()
        .get("/call backend /x;call backend /y")
        .send();
    worker.answer(1, Failure::Reset);
    worker.answer(2, Failure::ConnectionRefused);
    assert_said(
        &envoy,
        &[
            "answer to 1 for 1 with 0 headers",
            "answer to 2 for 1 with 3 headers",
        ],
    );
}

#[test]
fn a_message_reaches_the_worker_that_registered_the_queue() {
    let envoy = envoy();
    let (owner, other) = (
        envoy.configured_worker("register q"),
        envoy.configured_worker(""),
    );
    let stream = pause(&owner);
    let path = format!("/enqueue q context_{}|continue", stream.0);
    assert!(other.request().get(path).send().continued());
    assert_eq!(other.deliver(), 0);
    assert!(owner.poll(stream).continued());
    assert_eq!(envoy.queued(), 0);
}

#[test]
fn a_message_for_a_vm_that_trapped_reaches_the_new_one() {
    let envoy = envoy();
    let worker = envoy.configured_worker("register q");
    let stream = pause(&worker);
    let path = format!("/enqueue q context_{}|continue", stream.0);
    worker.request().get(path).send();
    worker.restart_vm();
    assert!(worker.configure(""));
    // The new VM gives the same id to another request.
    assert_eq!(pause(&worker), stream);
    assert!(worker.poll(stream).continued());
}

#[test]
fn a_restart_loses_calls_and_streams_and_keeps_shared_data() {
    let (envoy, worker) = started();
    worker
        .request()
        .get("/set k v 0;count requests;call backend /x;pause")
        .send()
        .paused();
    worker.restart_vm();
    assert!(worker.configure(""));
    assert_eq!((worker.calls().len(), worker.waiting()), (0, 0));
    assert_eq!(envoy.shared_data().get(b"k").unwrap().0, b"v");
    worker.request().get("/count requests").send();
    assert_eq!(envoy.stat("requests"), 2);
}

#[test]
fn a_canary_s_queue_notifies_the_main_thread_and_its_calls_are_cancelled() {
    let envoy = envoy();
    let main = envoy.worker();
    assert!(envoy.canary(&main, "register q;set k v 0;call backend /x"));
    assert!(main.configure(""));
    main.request().get("/enqueue q count_messages").send();
    assert_eq!(main.deliver(), 1);
    assert_eq!(envoy.stat("messages"), 1);
    assert!(main.calls().is_empty());
    assert!(envoy.shared_data().get(b"k").is_some());
}

#[test]
fn an_old_configuration_ticks_until_it_has_drained() {
    let envoy = envoy();
    let worker = envoy.configured_worker("period 100;call backend /old");
    assert!(worker.configure("period 100"));
    assert_eq!(worker.tick(), 2);
    worker.drain();
    assert_eq!((worker.tick(), worker.calls().len()), (1, 0));
    assert_said(&envoy, &["tick 1", "tick 2", "delete 1"]);
}

#[test]
fn clocks_are_the_test_s_and_move_apart_when_told() {
    let (envoy, worker) = started();
    envoy.set_monotonic_ms(5);
    envoy.set_wall_ms(1);
    envoy.advance(Duration::from_millis(2));
    worker.request().get("/clock 0;clock 1;clock 2").send();
    assert_said(&envoy, &["clock 3000000", "clock 7000000", "clock 2 -> 58"]);
}

#[test]
fn random_numbers_differ_between_vms_and_not_between_runs() {
    let drawn = |seed| {
        let envoy = envoy().seed(seed);
        let random = envoy.spawn_workers(1, "random", |_| ()).len();
        envoy.configured_worker("random");
        assert_eq!(random, 1);
        let lines = envoy.logs().into_iter().map(|line| line.message);
        lines
            .filter(|line| line.starts_with("random ["))
            .collect::<Vec<_>>()
    };
    assert_eq!(drawn(1), drawn(1));
    assert_ne!(drawn(1), drawn(2));
    assert_ne!(drawn(1)[0], drawn(1)[1]);
}

#[test]
fn processes_do_not_see_each_other() {
    let (one, in_one) = started();
    let (other, in_other) = started();
    in_one.request().get("/set k v 0;count requests").send();
    in_other.request().get("/set other v 0").send();
    assert_eq!(other.shared_keys(), [b"other"]);
    assert_eq!((one.stat("requests"), other.stat("requests")), (1, 0));
}

#[test]
fn faults_come_as_often_as_asked_and_pass() {
    let (envoy, worker) = started();
    envoy.fail_next("proxy_http_call", 77, 1);
    worker
        .request()
        .get("/call backend /x;call backend /y")
        .send();
    assert_said(&envoy, &["call backend /x -> 77", "call backend /y -> 0"]);
    envoy.fail_next_compare_and_sets(1);
    worker
        .request()
        .get("/set a 1 9;set b 1 0;set c 1 9")
        .send();
    assert_said(
        &envoy,
        &["set a 1 9 -> 8", "set b 1 0 -> 0", "set c 1 9 -> 0"],
    );
}

#[test]
fn another_worker_can_come_between_a_read_and_its_write() {
    let (envoy, worker) = started();
    let other = envoy.configured_worker("");
    envoy.shared_data().set(b"k", b"first", 0);
    let (_, cas) = envoy.shared_data().get(b"k").unwrap();
    envoy.interleave(move || {
        other.request().get("/set k theirs 0").send();
    });
    worker.request().get(format!("/set k mine {cas}")).send();
    assert_eq!(envoy.shared_data().get(b"k").unwrap().0, b"theirs");
}

#[test]
fn workers_that_run_at_once_each_have_a_vm() {
    let envoy = envoy();
    let numbers = envoy.spawn_workers(4, "", |worker| {
        for _ in 0..100 {
            assert!(worker.request().get("/count requests").send().continued());
        }
        worker.number()
    });
    assert_eq!(numbers, [0, 1, 2, 3]);
    assert_eq!(envoy.stat("requests"), 400);
}

#[test]
fn a_panic_in_a_job_is_the_caller_s() {
    let (_, worker) = started();
    let job = std::panic::AssertUnwindSafe(|| worker.run(|| panic!("in the job")));
    assert!(std::panic::catch_unwind(job).is_err());
    assert!(worker.request().send().continued());
}

#[test]
fn status_numbers_are_those_of_the_abi() {
    assert_eq!(Status::CasMismatch as u32, 8);
    assert_eq!(Status::Unimplemented as u32, 12);
}
