//! Who is woken by which shared queue: queues are named by number, and a number is leased.
//!
//! Apart from the flights because it is about Envoy's queues, not about applications: a
//! queue is never deleted and lives as long as the process's last VM, so names must be few
//! and used again. A lease that ends with its VM gives the number to the next one.

use crate::moment::Moment;
use crate::shared_data::{Key, SetError, SharedData};

const KIND: u8 = b'q';
const MAGIC: &[u8; 4] = b"TGq1";
/// Names of queues that a process ever has: more than it has root contexts at a time.
const MOST: u32 = 1_024;
/// A number that nobody renews for so long is free.
const LEASE_MILLISECONDS: u64 = 120_000;

/// Where a root context is woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The token of its shared queue.
    pub queue: u32,
    /// The root context: a random number. Messages for another are not its own, for a queue
    /// outlives those who listened to it.
    pub owner: u64,
}

/// The number of a queue that `owner` may listen to from now on; it must be renewed.
/// `None` if all are taken, or shared data is not available. The value is magic, owner and
/// the end of the lease (monotonic milliseconds).
pub fn claim(data: &impl SharedData, owner: u64, now: Moment) -> Option<u32> {
    let mut value = Vec::new();
    for number in 0..MOST {
        let key = Key::new(KIND, 0, number);
        let token = data.get(key.as_bytes(), &mut value).ok()?;
        if parse(&value, now).is_some() {
            continue;
        }
        match data.set(key.as_bytes(), &lease(owner, now), token) {
            Ok(()) => return Some(number),
            Err(SetError::Mismatch) => {}
            Err(SetError::Unavailable) => return None,
        }
    }
    None
}

/// Keeps a number. False if it is somebody else's by now.
pub fn renew(data: &impl SharedData, number: u32, owner: u64, now: Moment) -> bool {
    let key = Key::new(KIND, 0, number);
    let mut value = Vec::new();
    let Ok(token) = data.get(key.as_bytes(), &mut value) else {
        return true;
    };
    match parse(&value, now) {
        Some((holder, _)) if holder != owner => false,
        Some((_, until)) if now.monotonic.saturating_add(LEASE_MILLISECONDS / 2) < until => true,
        // Somebody else was faster, or not: the next tick looks again.
        _ => data.set(key.as_bytes(), &lease(owner, now), token) != Err(SetError::Mismatch),
    }
}

/// The name of the queue of that number.
#[must_use]
pub const fn name(number: u32) -> Key {
    Key::new(KIND, 0, number)
}

fn lease(owner: u64, now: Moment) -> Vec<u8> {
    let mut value = MAGIC.to_vec();
    for word in [owner, now.monotonic.saturating_add(LEASE_MILLISECONDS)] {
        value.extend_from_slice(&word.to_le_bytes());
    }
    value
}

/// Who has a lease, if somebody has, and until when. Nobody takes one that is longer.
fn parse(value: &[u8], now: Moment) -> Option<(u64, u64)> {
    let (owner, until) = value.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let until = u64::from_le_bytes(until.try_into().ok()?);
    // A clock may be read a little later elsewhere.
    let longest = now.monotonic.saturating_add(LEASE_MILLISECONDS * 2);
    (now.monotonic < until && until <= longest).then_some((u64::from_le_bytes(*owner), until))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::Token;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn everybody_gets_a_number_of_their_own_and_keeps_it() {
        let data = Memory::default();
        assert_eq!(claim(&data, 1, at(0)), Some(0));
        assert_eq!(claim(&data, 2, at(0)), Some(1));
        for now in (0..1_000_000).step_by(50_000) {
            assert!(renew(&data, 0, 1, at(now)));
        }
        assert_eq!(claim(&data, 3, at(1_000_000)), Some(1), "not renewed");
        assert!(!renew(&data, 1, 2, at(1_000_001)));
    }

    #[test]
    fn who_loses_the_race_for_a_number_takes_the_next() {
        let data = Memory::default();
        data.lose_next(2);
        assert_eq!(claim(&data, 1, at(0)), Some(2));
    }

    #[test]
    fn vms_that_come_and_go_use_the_same_numbers() {
        let data = Memory::default();
        for vm in 0..10_000 {
            assert!(claim(&data, vm, at(vm * 10_000)).is_some());
        }
        assert!(data.keys() < 20, "{}", data.keys());
    }

    #[test]
    fn a_lease_that_nobody_can_have_taken_is_none() {
        let data = Memory::default();
        let key = name(0);
        for value in [
            &b"TGq1"[..],
            b"",
            &[0xff; 20],
            b"TGq1\x01\0\0\0\0\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
        ] {
            data.set(key.as_bytes(), value, Token::OVERWRITE).unwrap();
            assert_eq!(claim(&data, 1, at(0)), Some(0), "{value:?}");
        }
    }
}
