//! Every capture, against the stand-in, byte for byte at the captured moments. By their
//! meaning, over the wire and now, `cargo xtask conformance` compares them.

use service_management::Errors;
use tollgate_conformance::captures::{Capture, folder};
use tollgate_conformance::replay::{Exclusions, replay};
use tollgate_conformance::server::InProcess;

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
