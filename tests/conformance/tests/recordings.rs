//! Everything that was recorded from the real backend, replayed.

use tollgate_conformance::decisions::{replay, replay_with};
use tollgate_conformance::recording::{Recording, folder};

#[test]
fn the_stand_in_and_the_filter_decide_as_the_real_backend_did() {
    let recordings = Recording::read_all(&folder()).unwrap();
    let mut calls = 0;
    for recording in &recordings {
        let replayed = replay(recording).unwrap();
        assert_eq!(replayed.differences, [], "{}", recording.name);
        calls += replayed.calls;
    }
    assert_eq!((recordings.len(), calls), (5, 4_000));
}

/// Records give way to others and are asked for again; with no slot that may give way,
/// requests are decided and reported without a record.
#[test]
fn a_gateway_with_room_for_a_few_records_only_decides_alike() {
    for recording in &Recording::read_all(&folder()).unwrap() {
        let replayed = replay_with(recording, 8).unwrap();
        assert_eq!(replayed.differences, [], "{}", recording.name);
    }
}
