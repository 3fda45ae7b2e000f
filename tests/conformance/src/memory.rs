//! Shared data in memory, with Envoy's compare-and-set rules.
//!
//! Apart from the gateway because it is Envoy's part: the gateway may not rely on
//! anything that Envoy does not promise. It can be copied, so that a question can be put
//! to a gateway without its being any the wiser.

use std::cell::RefCell;
use std::collections::HashMap;

use tollgate::shared_data::{SetError, SharedData, Token};

/// The shared data of one process, for one thread.
#[derive(Clone, Debug, Default)]
pub struct Memory(RefCell<Store>);

#[derive(Clone, Debug, Default)]
struct Store {
    values: HashMap<Vec<u8>, (Vec<u8>, u32)>,
    /// Of the whole process: every successful set of any key takes the next token.
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
        let mut store = self.0.borrow_mut();
        if let Some((_, current)) = store.values.get(key)
            && token != Token::OVERWRITE
            && token.0 != *current
        {
            return Err(SetError::Mismatch);
        }
        store.sets += 1;
        let sets = store.sets;
        store.values.insert(key.to_vec(), (value.to_vec(), sets));
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
}
