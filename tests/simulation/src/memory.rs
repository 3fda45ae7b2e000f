//! Shared data of one gateway, in memory, for one thread.

use std::cell::RefCell;
use std::collections::HashMap;
use tollgate::shared_data::{SetError, SharedData, Token};

/// A process's shared data.
#[derive(Default)]
pub struct Memory(RefCell<State>);

#[derive(Default)]
struct State {
    values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    sets: u32,
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
        state.sets += 1;
        let next = state.sets;
        if let Some((stored, current)) = state.values.get_mut(key) {
            if token != Token::OVERWRITE && token.0 != *current {
                return Err(SetError::Mismatch);
            }
            stored.clear();
            stored.extend_from_slice(value);
            *current = next;
        } else {
            state.values.insert(key.to_vec(), (value.to_vec(), next));
        }
        Ok(())
    }
}
