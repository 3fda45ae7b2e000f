//! Every capture, against the stand-in: byte for byte at the captured moments, and by its
//! meaning over the wire, as `cargo xtask conformance` does it with any backend.

use service_management::Errors;
use tollgate_conformance::captures::{Capture, folder};
use tollgate_conformance::replay::{Exclusions, replay};
use tollgate_conformance::server::{InProcess, Wire};

/// Integration errors that the reports of family `f` leave, in order.
const ERRORS_OF_REPORTS: [&str; 7] = [
    "transaction_timestamp_too_old",
    "transaction_timestamp_too_new",
    "metric_invalid",
    "user_key_invalid",
    "usage_value_invalid",
    "authentication_error",
    "application_not_found",
];

#[tokio::test]
async fn every_capture_is_answered_as_the_real_backend_did() {
    let captures = Capture::read_all(&folder()).unwrap();
    let mut server = InProcess::start().unwrap();
    let mut errors_of_reports = Errors::default();
    let after = |server: &InProcess, capture: &Capture| {
        if capture.name == "f41-bad-utf8" {
            errors_of_reports = server.backend.errors().clone();
        }
    };
    let replayed = replay(&mut server, &captures, Exclusions::read().unwrap(), after)
        .await
        .unwrap();
    let differences = replayed.differences.iter();
    let differences: Vec<_> = differences
        .map(|difference| format!("{}: {}\n", difference.capture, difference.what))
        .collect();
    assert!(differences.is_empty(), "{}", differences.concat());
    assert_eq!((replayed.captures, replayed.excluded.len()), (228, 3));
    let codes = errors_of_reports.services["1001"].iter().rev();
    let codes: Vec<_> = codes.map(|error| error.code).collect();
    assert_eq!(codes, ERRORS_OF_REPORTS);
}

#[tokio::test]
async fn over_the_wire_and_at_any_time_too() {
    let captures = Capture::read_all(&folder()).unwrap();
    let mut server = Wire::start().await.unwrap();
    let replayed = replay(
        &mut server,
        &captures,
        Exclusions::read().unwrap(),
        |_, _| {},
    )
    .await
    .unwrap();
    assert_eq!(replayed.differences, []);
    assert_eq!((replayed.captures, replayed.excluded.len()), (228, 3));
}
