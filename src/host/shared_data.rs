//! Envoy's shared data behind the trait that the other rooms know.

use super::abi::{self, Status};
use crate::shared_data::{SetError, SharedData, Token};

/// The shared data of the process, in the namespace of this VM's `vm_id`.
#[derive(Clone, Copy, Debug)]
pub struct HostSharedData;

impl SharedData for HostSharedData {
    fn get(&self, key: &[u8], into: &mut Vec<u8>) -> Result<Token, SetError> {
        into.clear();
        match abi::shared_data(key) {
            Ok((value, cas)) => {
                *into = value;
                Ok(Token(cas))
            }
            Err(Status::NotFound) => Ok(Token::ABSENT),
            Err(_) => Err(SetError::Unavailable),
        }
    }

    fn set(&self, key: &[u8], value: &[u8], token: Token) -> Result<(), SetError> {
        abi::set_shared_data(key, value, token.0).map_err(|status| match status {
            Status::CasMismatch => SetError::Mismatch,
            _ => SetError::Unavailable,
        })
    }
}
