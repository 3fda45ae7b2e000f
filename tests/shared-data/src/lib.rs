//! Shared data in memory, with Envoy's compare-and-set rules, for one thread.
//!
//! Apart from those who test with it because it is Envoy's part: nobody may rely on
//! anything that Envoy does not promise. The fake host has another, for many threads and behind
//! the ABI; both are held to the same contract. It can be copied, so that a question can be put
//! to a gateway without its being any the wiser.

use std::cell::RefCell;
use std::collections::HashMap;

use tollgate::shared_data::{SetError, SharedData, Token};

/// Of so many sets with a token, an unlucky process loses one.
const LOSES_ONE_IN: u64 = 8;

/// The shared data of one process.
#[derive(Clone, Debug, Default)]
pub struct Memory(RefCell<Store>);

#[derive(Clone, Debug, Default)]
struct Store {
    values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    /// Of the whole process: every set of any key takes the next token.
    sets: u32,
    /// Which races are lost: the state of a random generator, or 0 for none.
    luck: u64,
}

impl Memory {
    /// Of a process in which somebody else is faster now and then, and writes what was there
    /// already. The seed says when.
    #[must_use]
    pub fn unlucky(seed: u64) -> Self {
        Self(RefCell::new(Store {
            luck: seed | 1,
            ..Store::default()
        }))
    }
}

impl Store {
    /// Whether this race is lost.
    fn loses(&mut self) -> bool {
        // xorshift64: never 0 once it is not.
        self.luck ^= self.luck << 13;
        self.luck ^= self.luck >> 7;
        self.luck ^= self.luck << 17;
        self.luck != 0 && self.luck.is_multiple_of(LOSES_ONE_IN)
    }
}

impl SharedData for Memory {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        into.clear();
        Ok(match self.0.borrow().values.get(key) {
            Some((value, token)) => {
                into.extend_from_slice(value);
                Token(*token)
            }
            None => Token::ABSENT,
        })
    }

    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
        let mut store = self.0.borrow_mut();
        let lost = store.loses();
        let next = store.sets.wrapping_add(1);
        if let Some((stored, current)) = store.values.get_mut(key) {
            if token != Token::OVERWRITE {
                if token.0 != *current {
                    return Err(SetError::Mismatch);
                }
                if lost {
                    *current = next;
                    store.sets = next;
                    return Err(SetError::Mismatch);
                }
            }
            stored.clear();
            stored.extend_from_slice(value);
            *current = next;
        } else {
            store.values.insert(key.to_vec(), (value.to_vec(), next));
        }
        store.sets = next;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tollgate_fake_host::{SharedDataAccess, Status, shared_data_contract};

    impl SharedDataAccess for Memory {
        fn get(&self, key: &[u8]) -> Option<(Vec<u8>, u32)> {
            let mut value = Vec::new();
            let token = SharedData::get(self, key, &mut value).ok()?;
            (token != Token::ABSENT).then_some((value, token.0))
        }

        fn set(&self, key: &[u8], value: &[u8], cas: u32) -> Status {
            match SharedData::set(self, key, value, Token(cas)) {
                Ok(()) => Status::Ok,
                Err(_) => Status::CasMismatch,
            }
        }
    }

    #[test]
    fn the_memory_keeps_the_contract_that_the_filter_relies_on() {
        let claims = shared_data_contract(&Memory::default(), "contract.");
        let broken: Vec<_> = claims.iter().filter(|claim| !claim.holds).collect();
        assert!(broken.is_empty(), "{broken:?}");
    }

    #[test]
    fn an_unlucky_process_loses_races_and_never_a_value() {
        let memory = Memory::unlucky(7);
        let mut value = Vec::new();
        let (mut lost, mut stored) = (0, 0_u8);
        for _ in 0..200 {
            let token = SharedData::get(&memory, b"k", &mut value).unwrap();
            assert!(token == Token::ABSENT || value == [stored]);
            match SharedData::set(&memory, b"k", &[stored + 1], token) {
                Ok(()) => stored += 1,
                Err(_) => lost += 1,
            }
        }
        assert!((10..50).contains(&lost), "{lost} of 200");
    }
}
