//! Shared data with Envoy's compare-and-set, in which races are lost now and then.
//!
//! Apart from the map of the unit tests, which is not visible here.

use std::cell::RefCell;
use std::collections::HashMap;
use tollgate::shared_data::{SetError, SharedData, Token};

/// A process's shared data.
pub struct Memory(RefCell<State>);

struct State {
    values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    sets: u32,
    random: u64,
}

impl Memory {
    /// Empty. The seed says which races are lost: one in eight.
    pub fn new(seed: u64) -> Self {
        Self(RefCell::new(State {
            values: HashMap::new(),
            sets: 0,
            random: seed | 1,
        }))
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
        let mut state = self.0.borrow_mut();
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        let lost = state.random.is_multiple_of(8);
        state.sets += 1;
        let next = state.sets;
        if let Some((_, current)) = state.values.get_mut(key)
            && token != Token::OVERWRITE
            && (lost || token.0 != *current)
        {
            // Somebody else was faster, and wrote what was there already.
            *current = next;
            return Err(SetError::Mismatch);
        }
        state.values.insert(key.to_vec(), (value.to_vec(), next));
        Ok(())
    }
}
