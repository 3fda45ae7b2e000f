//! Traps that a test asks for, with a header. Only compiled with the feature
//! `trap-for-tests`, which the shipped module is built without: `cargo xtask build` looks
//! for the header's name in it.
//!
//! Nothing that a consumer sends can trap the VM, so what a trap costs could not be
//! shown without this.

use super::abi;
use crate::request::Headers;

/// The header that says where a VM is to trap.
const HEADER: &[u8] = b"x-tollgate-trap-for-tests";
/// Where shared data says that the leader is to trap, because the leader may be the VM of
/// Envoy's main thread, which no request comes to.
const KEY: &[u8] = b"tollgate/trap-for-tests";

/// Where a VM can trap. The header says it by the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Before anything is done for the request with the header.
    Request,
    /// When that request has been decided and counted.
    Decided,
    /// In the leader's next flush, when usage is in flight in the records and its report is
    /// not sent yet.
    Unsent,
    /// In the leader's next flush, when the report is under way.
    Sent,
}

impl Point {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Request => b"request",
            Self::Decided => b"decided",
            Self::Unsent => b"unsent",
            Self::Sent => b"sent",
        }
    }
}

/// Traps, if the request asks for it at this point. What it asks of the leader is passed on.
pub fn asked(headers: &Headers<'_>, here: Point) {
    let Some(wanted) = headers.first(HEADER) else {
        return;
    };
    if wanted == here.name() {
        std::process::abort();
    }
    if here == Point::Request
        && [Point::Unsent, Point::Sent]
            .map(Point::name)
            .contains(&wanted)
    {
        let _ = abi::set_shared_data(KEY, wanted, 0);
    }
}

/// Traps the leader, once, if a request has asked for it at this point.
pub fn leader(here: Point) {
    if abi::shared_data(KEY).is_ok_and(|(wanted, _)| wanted == here.name())
        && abi::set_shared_data(KEY, b"", 0).is_ok()
    {
        std::process::abort();
    }
}
