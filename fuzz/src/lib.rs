//! What must hold for any bytes: one function for each door through which somebody
//! else's bytes come in.
//!
//! Each takes any input and panics if something is wrong. Plain functions, apart from
//! libFuzzer, so that an ordinary test replays the corpora with them (`tests/corpus.rs`);
//! `fuzz/libfuzzer` makes the programs that `cargo xtask fuzz` runs.

mod configuration;
mod credentials;
mod host;
mod keys;
mod mapping;
mod record;
mod replies;
mod tokens;

pub use configuration::configuration;
pub use credentials::credentials;
pub use host::host;
pub use keys::keys;
pub use mapping::mapping;
pub use record::record;
pub use replies::replies;
pub use tokens::tokens;

/// A fuzz target: its name, which is also that of its corpus and of its program, and what it
/// does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every fuzz target.
pub const TARGETS: [Target; 8] = [
    ("configuration", configuration),
    ("credentials", credentials),
    ("host", host),
    ("keys", keys),
    ("mapping", mapping),
    ("record", record),
    ("replies", replies),
    ("tokens", tokens),
];

/// The input up to the first of this byte, and what stands behind it.
fn cut(data: &[u8], at: u8) -> (&[u8], &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == at);
    (
        parts.next().unwrap_or_default(),
        parts.next().unwrap_or_default(),
    )
}
