//! How limits are shared with other gateways: two fields that mean one thing.
//!
//! Apart from the other settings because what they become is the decision's own type.

use super::error::{ConfigurationError, Place};
use super::settings::{choice, number};
use super::shape;
use crate::authorization::{Accuracy, SHORTEST_SETTLING};

/// Which way to share limits, as it is written.
#[derive(Clone, Copy)]
enum Way {
    Strict,
    Eager,
}

/// More gateways than this are not told apart from so many.
const MOST_GATEWAYS: u32 = 1_024;

/// What `authorization.gateways` (1 to 1,024, default 1) and `authorization.accuracy`
/// (`strict` by default, or `eager`) come to. With one gateway its own count is exact,
/// whatever the accuracy.
pub(super) fn check(
    shape: &shape::Authorization,
    place: &Place<'_>,
) -> Result<Accuracy, ConfigurationError> {
    let gateways = number(
        shape.gateways.as_ref(),
        &place.field("gateways"),
        (1, MOST_GATEWAYS),
        1,
    )?;
    let way = choice(
        shape.accuracy.as_ref(),
        &place.field("accuracy"),
        [("strict", Way::Strict), ("eager", Way::Eager)],
    )?;
    let gateways = u16::try_from(gateways).unwrap_or(u16::MAX);
    Ok(match way {
        _ if gateways <= 1 => Accuracy::Exact,
        Way::Strict => Accuracy::Strict {
            gateways,
            settled_after: SHORTEST_SETTLING,
        },
        Way::Eager => Accuracy::Eager { gateways },
    })
}
