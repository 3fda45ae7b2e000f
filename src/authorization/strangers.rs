//! Credentials that service management denied, remembered for a short while.
//!
//! Apart from the records, so that strangers never push out customers: a table of
//! its own, in which a new answer simply takes the place of an old one. Nothing is
//! lost when it does; the next request asks again.

use crate::credentials::Digest;
use crate::moment::Moment;
use crate::service_management::Denial;
use crate::shared_data::{Key, SharedData, Token};

const KIND: u8 = b'n';
const MAGIC: &[u8; 4] = b"TGn1";

/// The table: as many places as there may be applications, one for each digest.
/// A value is magic, digest, denial code and when it ends (monotonic milliseconds).
pub struct Strangers {
    places: u32,
    value: Vec<u8>,
}

impl Strangers {
    /// A table of so many places, at least one.
    #[must_use]
    pub fn new(places: u32) -> Self {
        Self {
            places: places.max(1),
            value: Vec::new(),
        }
    }

    fn key(&self, digest: Digest) -> Key {
        let [.., a, b, c, d] = digest.0;
        let place = u32::from_le_bytes([a, b, c, d])
            .checked_rem(self.places)
            .unwrap_or(0);
        Key::new(KIND, 0, place)
    }

    /// Why this credential was denied, if that is remembered.
    pub fn find(&mut self, data: &impl SharedData, digest: Digest, now: Moment) -> Option<Denial> {
        data.get(self.key(digest).as_bytes(), &mut self.value)
            .ok()?;
        let rest = self.value.strip_prefix(MAGIC)?;
        let (whose, rest) = rest.split_first_chunk::<16>()?;
        let (denial, until) = rest.split_first()?;
        let until = u64::from_le_bytes(until.try_into().ok()?);
        if *whose != digest.0 || now.monotonic >= until {
            return None;
        }
        Denial::from_code(*denial)
    }

    /// Remembers a denial for so many milliseconds.
    pub fn remember(
        &mut self,
        data: &impl SharedData,
        digest: Digest,
        denial: Denial,
        now: Moment,
        milliseconds: u64,
    ) {
        let until = now.monotonic.saturating_add(milliseconds);
        self.write(data, digest, denial, until);
    }

    /// Forgets a denial: the credential is good now.
    pub fn forget(&mut self, data: &impl SharedData, digest: Digest, now: Moment) {
        if let Some(denial) = self.find(data, digest, now) {
            self.write(data, digest, denial, 0);
        }
    }

    fn write(&mut self, data: &impl SharedData, digest: Digest, denial: Denial, until: u64) {
        self.value.clear();
        self.value.extend_from_slice(MAGIC);
        self.value.extend_from_slice(&digest.0);
        self.value.push(denial.code());
        self.value.extend_from_slice(&until.to_le_bytes());
        // If it is not kept, the next request asks again.
        let _ = data.set(self.key(digest).as_bytes(), &self.value, Token::OVERWRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::moment::testing::at;
    use crate::shared_data::memory::Memory;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const DENIAL: Denial = Denial::UserKeyInvalid;

    fn digest(number: u32) -> Digest {
        let mut bytes = [3; 16];
        bytes[12..].copy_from_slice(&number.to_le_bytes());
        Digest(bytes)
    }

    #[test]
    fn a_denial_is_remembered_for_its_time_and_for_its_digest_only() {
        let data = Memory::default();
        let mut strangers = Strangers::new(4);
        strangers.remember(&data, digest(1), DENIAL, at(0), 10);
        assert_eq!(strangers.find(&data, digest(1), at(9)), Some(DENIAL));
        assert_eq!(strangers.find(&data, digest(1), at(10)), None);
        assert_eq!(
            strangers.find(&data, digest(5), at(0)),
            None,
            "the same place"
        );
    }

    #[test]
    fn a_stranger_who_became_a_customer_is_forgotten() {
        let data = Memory::default();
        let mut strangers = Strangers::new(4);
        strangers.remember(&data, digest(1), DENIAL, at(0), 10);
        strangers.forget(&data, digest(5), at(1));
        assert!(strangers.find(&data, digest(1), at(1)).is_some());
        strangers.forget(&data, digest(1), at(1));
        assert_eq!(strangers.find(&data, digest(1), at(1)), None);
    }

    #[test]
    fn a_flood_of_strangers_takes_no_more_places_than_there_are() {
        let data = Memory::default();
        let mut strangers = Strangers::new(8);
        for number in 0..1_000 {
            strangers.remember(&data, digest(number), DENIAL, at(0), 10);
        }
        assert_eq!(data.keys(), 8);
    }
}
