//! How often service management is asked, for one application, whether its keys have
//! changed: once in a few seconds, whatever the number of workers and of wrong keys.
//!
//! Apart from the record because a flood of wrong keys must not contend for what every
//! admitted request writes.

use super::table::Slot;
use crate::credentials::Digest;
use crate::moment::Moment;
use crate::shared_data::{Key, SharedData};

const KIND: u8 = b'e';
const MAGIC: &[u8; 4] = b"TGe1";

/// Between two questions about the keys of an application, and after any answer about it.
/// So a new key works after so long at the latest (and what the backend caches itself).
pub const PAUSE_MILLISECONDS: u64 = 5_000;

/// Takes the right to ask about the application in this slot. False if somebody has taken
/// it a short while ago, or now.
pub fn may_ask(data: &impl SharedData, slot: Slot, application: Digest, now: Moment) -> bool {
    let key = Key::new(KIND, 0, slot.0);
    let mut value = Vec::new();
    let Ok(token) = data.get(key.as_bytes(), &mut value) else {
        return false;
    };
    if let Some((whose, asked_at)) = parse(&value)
        && whose == application
        && (asked_at..asked_at.saturating_add(PAUSE_MILLISECONDS)).contains(&now.monotonic)
    {
        return false;
    }
    value.clear();
    value.extend_from_slice(MAGIC);
    value.extend_from_slice(&application.0);
    value.extend_from_slice(&now.monotonic.to_le_bytes());
    data.set(key.as_bytes(), &value, token).is_ok()
}

fn parse(value: &[u8]) -> Option<(Digest, u64)> {
    let (whose, asked_at) = value.strip_prefix(MAGIC)?.split_first_chunk::<16>()?;
    Some((
        Digest(*whose),
        u64::from_le_bytes(asked_at.try_into().ok()?),
    ))
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
    fn one_asks_in_each_pause() {
        let data = Memory::default();
        let ask = |now| may_ask(&data, Slot(1), Digest([7; 16]), at(now));
        let asked: Vec<_> = (0..20_000).step_by(500).filter(|now| ask(*now)).collect();
        assert_eq!(asked, [0, 5_000, 10_000, 15_000]);
    }

    #[test]
    fn who_comes_second_does_not_ask() {
        let data = Memory::default();
        data.lose_next(1);
        assert!(!may_ask(&data, Slot(1), Digest([7; 16]), at(0)));
    }

    #[test]
    fn the_pause_of_one_application_is_not_another_s() {
        let data = Memory::default();
        assert!(may_ask(&data, Slot(1), Digest([7; 16]), at(0)));
        assert!(may_ask(&data, Slot(2), Digest([8; 16]), at(0)));
        assert!(
            may_ask(&data, Slot(1), Digest([9; 16]), at(0)),
            "the slot's next"
        );
    }

    #[test]
    fn a_foreign_value_or_a_time_to_come_holds_up_nobody() {
        let data = Memory::default();
        let key = Key::new(KIND, 0, 1);
        let mut value = [MAGIC.as_slice(), &[7; 16], &[0xff; 8]].concat();
        data.set(key.as_bytes(), &value, Token::OVERWRITE).unwrap();
        assert!(may_ask(&data, Slot(1), Digest([7; 16]), at(0)));
        value.truncate(9);
        data.set(key.as_bytes(), &value, Token::OVERWRITE).unwrap();
        assert!(may_ask(&data, Slot(1), Digest([7; 16]), at(0)));
    }
}
