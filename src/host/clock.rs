//! The one place where clocks are read, once per callback.
//!
//! A request reads one clock, for each reading is a call to the host. The calendar's
//! distance from the steady clock is what it was when both were last read: at the last tick
//! or answer, within a second. A calendar that is set anew is followed from then on.

use super::abi;
use crate::moment::Moment;
use std::cell::Cell;

const NANOSECONDS_IN_MILLISECOND: u64 = 1_000_000;

thread_local! {
    /// Both clocks in nanoseconds when they were last read: calendar, steady.
    static LAST: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Now, both clocks read. A clock that the host refuses reads 0: windows then stay as
/// they are and lifetimes do not end, so nobody is let in who was not before.
pub fn now() -> Moment {
    let wall = abi::wall_nanoseconds().unwrap_or(0);
    let monotonic = abi::monotonic_nanoseconds().unwrap_or(0);
    LAST.set((wall, monotonic));
    moment(wall, monotonic)
}

/// Now, by the steady clock and the distance of the calendar when it was last read.
pub fn now_by_one() -> Moment {
    let (wall, then) = LAST.get();
    let monotonic = abi::monotonic_nanoseconds().unwrap_or(0);
    if wall == 0 || then == 0 || monotonic < then {
        return now();
    }
    moment(
        wall.saturating_add(monotonic.saturating_sub(then)),
        monotonic,
    )
}

const fn moment(wall: u64, monotonic: u64) -> Moment {
    Moment {
        wall: wall / NANOSECONDS_IN_MILLISECOND,
        monotonic: monotonic / NANOSECONDS_IN_MILLISECOND,
    }
}
