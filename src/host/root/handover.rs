//! Requests whose token Envoy's `jwt_authn` filter has verified.
//!
//! Apart from the tokens that are verified here because there is no token: what is looked at
//! comes from the stream's dynamic metadata, and of what the client sent nothing counts.

use super::tokens::{Checked, TokensAtWork};
use crate::credentials::Found;
use crate::host::abi::{self, Status};
use crate::host::local_reply::Reply;
use crate::moment::Moment;
use crate::tokens::{Flaw, Handover, Policy};
use std::borrow::Cow;
use std::rc::Rc;

/// The path of the property that has all of the stream's dynamic metadata.
const METADATA: &[u8] = b"metadata";

impl TokensAtWork {
    /// Finds out what the effective context's stream was verified to be. `None`: nobody has
    /// verified a token of it. What the request itself was found to have is then no token,
    /// whatever it looks like; and if there is a verified one, it stands in its place.
    pub(super) fn handed_on(
        &self,
        policy: &Policy,
        handover: &Handover,
        found: &mut Found<'_>,
        now: Moment,
    ) -> Option<Checked> {
        if now.wall == 0 {
            // Nobody can say what has expired.
            return Some(Checked::Refused(Reply::Contended));
        }
        let claims = match abi::property(METADATA) {
            Ok(metadata) => handover.claims(&metadata),
            Err(Status::NotFound) => Ok(None),
            Err(_) => Err(Flaw::Malformed),
        };
        match claims {
            Ok(None) => {
                if matches!(found, Found::Token(_)) {
                    *found = Found::Missing;
                }
                None
            }
            Ok(Some(claims)) => Some(match policy.vouched(&claims, now.seconds()) {
                Ok(verified) => {
                    *found = Found::Token(Cow::Borrowed(b""));
                    Checked::Good(Rc::new(verified))
                }
                Err(flaw) => self.invalid(flaw),
            }),
            Err(flaw) => Some(self.invalid(flaw)),
        }
    }
}
