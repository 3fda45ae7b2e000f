//! One reading of the clocks, taken once per callback and handed to every room.
//!
//! Apart so that no room reads a clock by itself: tests and simulations drive time.

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Calendar time: milliseconds since 1970 in UTC. May jump. For windows and timestamps.
    pub wall: u64,
    /// Milliseconds on a clock that never goes backwards, the same for every VM of
    /// the process. For lifetimes, leases and deadlines.
    pub monotonic: u64,
}

impl Moment {
    /// Calendar time in whole Unix seconds.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.wall / 1_000
    }

    /// The first second of the calendar minute.
    #[must_use]
    pub const fn minute(self) -> u64 {
        let seconds = self.seconds();
        seconds.saturating_sub(seconds % 60)
    }
}

#[cfg(test)]
pub mod testing {
    //! What tests have in common to which the time of day is nothing.

    use super::Moment;

    /// A moment by the monotonic clock.
    pub fn at(monotonic: u64) -> Moment {
        Moment { wall: 0, monotonic }
    }
}
