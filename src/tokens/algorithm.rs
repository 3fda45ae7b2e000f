//! The ways to sign that are accepted.
//!
//! Apart from the keys because a token names one and a key may be bound to one; what is not
//! in this list (`none`, everything symmetric) cannot be expressed any further in.

/// A signature algorithm of RFC 7518, 3.1 or RFC 8037, 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// RSASSA-PKCS1-v1_5 with SHA-384.
    Rs384,
    /// RSASSA-PKCS1-v1_5 with SHA-512.
    Rs512,
    /// RSASSA-PSS with SHA-256 and a salt as long as the hash.
    Ps256,
    /// RSASSA-PSS with SHA-384 and a salt as long as the hash.
    Ps384,
    /// RSASSA-PSS with SHA-512 and a salt as long as the hash.
    Ps512,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// Each with its `alg` name, which is compared with its case.
    pub const ALL: [(Self, &'static str); 9] = [
        (Self::Rs256, "RS256"),
        (Self::Rs384, "RS384"),
        (Self::Rs512, "RS512"),
        (Self::Ps256, "PS256"),
        (Self::Ps384, "PS384"),
        (Self::Ps512, "PS512"),
        (Self::Es256, "ES256"),
        (Self::Es384, "ES384"),
        (Self::EdDsa, "EdDSA"),
    ];

    /// The algorithm of this `alg`; `None` for every other, `none` and HMAC among them.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let of = |(_, known): &&(Self, &str)| *known == name;
        Self::ALL.iter().find(of).map(|(algorithm, _)| *algorithm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn no_spelling_of_none_and_nothing_symmetric_is_an_algorithm() {
        for name in [
            "none", "None", "NONE", "nOnE", "", "HS256", "HS384", "HS512", "rs256", "RS256 ",
            "ES512", "ES256K", "RSA-OAEP", "dir",
        ] {
            assert_eq!(Algorithm::named(name), None, "{name:?}");
        }
        for (algorithm, name) in Algorithm::ALL {
            assert_eq!(Algorithm::named(name), Some(algorithm));
        }
    }
}
