//! Numbers that look random and are the same in every run.

/// xorshift64*.
pub struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Any number.
    #[allow(clippy::should_implement_trait)]
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// From 0 up to 1.
    pub fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Until the next of events that come independently, so many a millisecond.
    pub fn pause(&mut self, rate: f64) -> f64 {
        -(1.0 - self.fraction()).ln() / rate
    }
}
