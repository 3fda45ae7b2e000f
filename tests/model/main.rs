//! The filter's decisions and sums against a model of the backend that is simple enough
//! to be checked by eye, over random services and random sequences of what happens to them.
//!
//! Apart from the unit tests because it takes everything between a request's usage and
//! a report's bytes as one. `PROPTEST_CASES` sets the number of sequences of each claim.

#![cfg(not(target_family = "wasm"))]

mod generate;
mod model;
mod world;

use generate::case;
use proptest::test_runner::{Config, RngAlgorithm, TestRunner};
use std::cell::Cell;
use std::io::Write;
use world::World;

/// Goes through random sequences, `of_default` of them if nobody wants another number.
fn for_sequences(claim: &str, of_default: u32, used: bool, foreign: bool) {
    let wanted = std::env::var("PROPTEST_CASES")
        .ok()
        .and_then(|it| it.parse().ok());
    let config = Config {
        cases: wanted.unwrap_or(of_default),
        failure_persistence: None,
        max_shrink_iters: 4_000,
        // Half of the time would go into better random numbers.
        rng_algorithm: RngAlgorithm::XorShift,
        ..Config::default()
    };
    let run = Cell::new(0_u32);
    let result = TestRunner::new(config).run(&case(used, foreign), |case| {
        run.set(run.get() + 1);
        World::new(&case, !used, !foreign).run()
    });
    // Past the test harness, which would show it of failures only.
    let _ = writeln!(std::io::stderr(), "{claim}: {} sequences", run.get());
    if let Err(failure) = result {
        panic!("{failure}");
    }
}

/// Whatever the lag of the backend: what a gateway alone has admitted is exactly what its
/// decisions go by.
#[test]
fn one_gateway_decides_as_the_backend_would_of_what_it_admitted() {
    for_sequences("one gateway", 3_500, false, false);
}

/// The same, where the windows are not empty when the gateway comes. The backend is less late
/// here than the five seconds after which the filter takes a report for applied.
#[test]
fn usage_from_before_stays_counted_whatever_becomes_of_reports() {
    for_sequences("one gateway, used before", 2_000, true, false);
}

/// With other gateways: nothing passes that is over what was used here and is known of the
/// others; nothing is refused that fits beside what was really used.
#[test]
fn among_several_gateways_a_decision_errs_only_by_what_is_not_known() {
    for_sequences("several gateways", 2_000, true, true);
}
