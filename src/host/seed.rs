//! The key of the digests: 128 random bits on which all VMs of the process agree.
//!
//! Apart because of how they agree: everybody offers bits of their own by
//! insert-if-absent and everybody reads back whose were first. With the key secret and
//! random, nobody outside can prepare credentials that fall on the same slots.

use super::abi;
use crate::shared_data::{Key, SharedData};

const KIND: u8 = b'k';
const MAGIC: &[u8; 4] = b"TGk1";

/// The key that the process agreed on. Offers `mine` if there is none, so that it is there
/// again after the data went with the last VM, and in the place of bytes that are no key.
/// `None`: shared data is not available.
pub fn agree(data: &impl SharedData, mine: &[u8; 16]) -> Option<[u8; 16]> {
    let key = Key::new(KIND, 0, 0);
    let mut value = Vec::new();
    let token = data.get(key.as_bytes(), &mut value).ok()?;
    if let Some(agreed) = parse(&value) {
        return Some(agreed);
    }
    let mut offer = MAGIC.to_vec();
    offer.extend_from_slice(mine);
    // Whose offer was taken shows when it is read back.
    let _ = data.set(key.as_bytes(), &offer, token);
    data.get(key.as_bytes(), &mut value).ok()?;
    parse(&value)
}

fn parse(value: &[u8]) -> Option<[u8; 16]> {
    value.strip_prefix(MAGIC)?.try_into().ok()
}

/// Random bits for an offer.
pub fn draw() -> Option<[u8; 16]> {
    abi::random_bytes().ok()
}
