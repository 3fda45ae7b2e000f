//! Claims about the slots: one record for each application, and nobody's is lost.

use super::super::testing::{at, known, limit, metrics, usage};
use super::*;
use crate::authorization::Period;
use crate::shared_data::memory::Memory;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// A digest of the first set, told apart by its last bytes.
fn digest(number: u8) -> Digest {
    let mut bytes = [0; 16];
    bytes[15] = number;
    Digest(bytes)
}

fn record(number: u8, used: u64) -> Record {
    let mut record = Record::vacant();
    record.state = State::Live;
    record.digest = digest(number);
    record.last_used = used;
    record
}

fn put(table: &mut Table, data: &Memory, record: &Record) -> Result<Slot, TableError> {
    table.put(data, record, at(0), |_| {})
}

/// Slots of the first set that hold a live record of this digest.
fn places(table: &mut Table, data: &Memory, number: u8) -> usize {
    (0..WAYS)
        .filter(|slot| {
            let seen = table.change_slot(data, Slot(*slot), |record| {
                (record.digest == digest(number)).then_some(Change::Keep(()))
            });
            seen == Ok(Some(()))
        })
        .count()
}

#[test]
fn who_comes_first_says_how_many_slots_there_are() {
    let data = Memory::default();
    assert_eq!(Table::open(&data, 100).slots(), 200);
    assert_eq!(Table::open(&data, 100_000).slots(), 200);
    assert_eq!(Table::open(&Memory::default(), 1).slots(), WAYS);
}

#[test]
fn a_record_is_found_by_every_vm_with_and_without_a_hint() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    let slot = put(&mut table, &data, &record(1, 0)).unwrap();
    let mut other = Table::open(&data, 4);
    for _ in 0..2 {
        for table in [&mut table, &mut other] {
            let seen = table.change(&data, digest(1), |record| Change::Keep(record.last_used));
            assert_eq!(seen, Ok(Some((slot, 0))));
        }
    }
    assert!(table.has_hint(digest(1)));
    let nobody = table.change(&data, digest(2), |_| Change::Keep(()));
    assert_eq!(nobody, Ok(None));
}

#[test]
fn putting_an_application_again_changes_its_record() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    let slot = put(&mut table, &data, &record(1, 0)).unwrap();
    let again = Table::open(&data, 4).put(&data, &record(1, 0), at(0), |record| {
        record.last_used = 9;
    });
    assert_eq!(again, Ok(slot));
    assert_eq!(places(&mut table, &data, 1), 1);
    let used = table.change(&data, digest(1), |record| Change::Keep(record.last_used));
    assert_eq!(used, Ok(Some((slot, 9))));
}

#[test]
fn the_least_recently_used_that_nobody_needs_gives_way() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    for number in 0..8 {
        put(&mut table, &data, &record(number, 100 - u64::from(number))).unwrap();
    }
    put(&mut table, &data, &record(9, 200)).unwrap();
    assert_eq!(places(&mut table, &data, 7), 0);
    for number in [0, 1, 2, 3, 4, 5, 6, 9] {
        assert_eq!(places(&mut table, &data, number), 1, "{number}");
    }
    // The hint of the one that went is corrected.
    let gone = table.change(&data, digest(7), |_| Change::Keep(()));
    assert_eq!(gone, Ok(None));
}

#[test]
fn pending_usage_is_never_given_away() {
    let data = Memory::default();
    let metrics = metrics(false);
    let mut table = Table::open(&data, 4);
    for number in 0..8 {
        let mut record = record(number, 0);
        let one = usage(&metrics, &[("hits", 1)]);
        record.admit(&one, &metrics, at(0)).unwrap();
        put(&mut table, &data, &record).unwrap();
    }
    let keys = data.keys();
    for number in 8..100 {
        let refused = put(&mut table, &data, &record(number, 0));
        assert_eq!(refused, Err(TableError::Full));
    }
    assert_eq!(data.keys(), keys, "the table does not grow");
    assert!((0..8).all(|number| places(&mut table, &data, number) == 1));
}

#[test]
fn a_lost_race_is_run_again_on_what_the_winner_left() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    put(&mut table, &data, &record(1, 0)).unwrap();
    data.lose_next(5);
    let mut runs = 0;
    let done = table.change(&data, digest(1), |record| {
        runs += 1;
        record.last_used += 1;
        Change::Write(record.last_used)
    });
    assert_eq!(
        done.unwrap().unwrap().1,
        1,
        "each run starts from the stored record"
    );
    assert_eq!(runs, 6);
}

#[test]
fn losing_every_race_changes_nothing_and_says_so() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    put(&mut table, &data, &record(1, 0)).unwrap();
    data.lose_next(u32::MAX);
    let lost = table.change(&data, digest(1), |record| {
        record.last_used = 7;
        Change::Write(())
    });
    assert_eq!(lost, Err(TableError::Unavailable));
    data.lose_next(0);
    let kept = table.change(&data, digest(1), |record| Change::Keep(record.last_used));
    assert_eq!(kept.unwrap().unwrap().1, 0);
}

#[test]
fn a_candidate_is_nobodys_record_and_gives_way_to_its_own_at_once_and_to_others_when_dead() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    let mut candidate = record(1, 0);
    candidate.state = State::Candidate;
    candidate.fetched_at = at(0).monotonic;
    let mut bytes = Vec::new();
    codec::encode(&candidate, &mut bytes);
    let key = Key::new(KIND, 0, 0);
    data.set(key.as_bytes(), &bytes, Token::ABSENT).unwrap();

    assert_eq!(
        table.change(&data, digest(1), |_| Change::Keep(())),
        Ok(None)
    );
    assert_eq!(
        table.put(&data, &record(2, 0), at(10), |_| {}),
        Ok(Slot(1)),
        "it may be alive"
    );
    assert_eq!(
        table.put(&data, &record(1, 0), at(10), |_| {}),
        Ok(Slot(0)),
        "if so, it fails to go live"
    );
    assert_eq!(places(&mut table, &data, 1), 1);

    candidate.digest = digest(3);
    codec::encode(&candidate, &mut bytes);
    data.set(key.as_bytes(), &bytes, Token::OVERWRITE).unwrap();
    let late = at(CANDIDATE_MILLISECONDS + 1);
    assert_eq!(table.put(&data, &record(4, 0), late, |_| {}), Ok(Slot(0)));
}

#[test]
fn a_foreign_value_in_a_slot_is_nobodys_and_is_replaced() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    for slot in 0..WAYS {
        let key = Key::new(KIND, 0, slot);
        data.set(key.as_bytes(), b"TGr0 something older", Token::ABSENT)
            .unwrap();
    }
    assert_eq!(
        table.change(&data, digest(1), |_| Change::Keep(())),
        Ok(None)
    );
    put(&mut table, &data, &record(1, 0)).unwrap();
    assert_eq!(places(&mut table, &data, 1), 1);
}

#[test]
fn hints_do_not_outgrow_the_table() {
    let data = Memory::default();
    let mut table = Table::open(&data, 4);
    for number in 0..200 {
        put(&mut table, &data, &record(number, u64::from(number))).unwrap();
    }
    assert!(table.hints.len() <= WAYS as usize);
}

#[test]
fn a_limited_record_survives_its_way_through_shared_data() {
    let data = Memory::default();
    let metrics = metrics(true);
    let mut table = Table::open(&data, 4);
    let mut new = record(1, 0);
    let answer = known(vec![limit("hits", Period::Minute, 3, 0, at(0))]);
    new.refresh(&answer, &metrics, at(0), 60_000, 0).unwrap();
    put(&mut table, &data, &new).unwrap();
    let one = usage(&metrics, &[("orders", 1)]);
    let admitted = (0..10)
        .filter(|_| {
            let seen = table.change(&data, digest(1), |record| {
                match record.admit(&one, &metrics, at(0)) {
                    Ok(()) => Change::Write(true),
                    Err(_) => Change::Keep(false),
                }
            });
            seen.unwrap().unwrap().1
        })
        .count();
    assert_eq!(admitted, 3);
}
