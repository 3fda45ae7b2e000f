//! What a host function answers: the status numbers of proxy-wasm 0.2.1. Apart
//! because the driver injects them and every host function returns them.

/// The outcome of a host function, with the number that crosses the boundary.
///
/// Source: `WasmResult` of proxy-wasm-cpp-host. The numbers 5 and 11 (`BadExpression`,
/// `BrokenConnection`) are left out: no function that is modelled here returns them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The key, queue, metric, property or map entry does not exist.
    NotFound = 1,
    /// An argument is out of range, or means nothing in this phase.
    BadArgument = 2,
    /// A property has no byte form.
    SerializationFailure = 3,
    /// Bytes could not be parsed.
    ParseFailure = 4,
    /// A pointer leads outside the guest's memory.
    InvalidMemoryAccess = 6,
    /// The queue holds nothing.
    Empty = 7,
    /// Somebody else has written the key since it was read.
    CasMismatch = 8,
    /// The result has another type than was asked for.
    ResultMismatch = 9,
    /// The host failed.
    InternalFailure = 10,
    /// The host does not have this function.
    Unimplemented = 12,
}
