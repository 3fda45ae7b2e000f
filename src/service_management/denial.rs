//! Why an application is refused: the reasons that are about the application or its
//! service, and so may be remembered and told to its consumer.
//!
//! Apart from [`super::misconfiguration`], which must never be told to a consumer as an
//! invalid key.

/// Whose doing a denial is: who must act to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The consumer sent what nobody can admit, or was suspended.
    Consumer,
    /// The provider's service or its settings refuse every consumer alike.
    Provider,
}

/// A refusal of one application, as service management gave it. Going over a limit is
/// not among them: limits are computed here and never remembered as a verdict.
///
/// The codes are kept in records in shared data, so they never change meaning (7 was one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Denial {
    /// No application has this `user_key` (403 `user_key_invalid`).
    UserKeyInvalid = 1,
    /// No application has this `app_id` (404 `application_not_found`).
    ApplicationNotFound = 2,
    /// The application has keys, and the one shown is missing or not one of them.
    ApplicationKeyInvalid = 3,
    /// The application is suspended, or not yet approved.
    ApplicationNotActive = 4,
    /// The whole service is suspended: no consumer can do anything about it, but none may
    /// pass. It is a denial and not a [`super::Misconfiguration`] because it is a decision
    /// that was taken in service management, to be enforced like any other.
    ServiceNotActive = 5,
    /// The application may be used from certain referrers only, and this is none of them.
    ReferrerNotAllowed = 6,
    /// The redirect URL is not the application's. Not asked here.
    RedirectInvalid = 8,
    /// The credential is not UTF-8 (422 `not_valid_data`). The rest of a question comes
    /// from configuration, which is, so no application can be known by such bytes.
    CredentialNotUtf8 = 9,
    /// A 409 without a reason, or with one that is not known here. Refused all the same.
    Other = 255,
}

impl Denial {
    /// Every denial.
    pub const ALL: [Self; 9] = [
        Self::UserKeyInvalid,
        Self::ApplicationNotFound,
        Self::ApplicationKeyInvalid,
        Self::ApplicationNotActive,
        Self::ServiceNotActive,
        Self::ReferrerNotAllowed,
        Self::RedirectInvalid,
        Self::CredentialNotUtf8,
        Self::Other,
    ];

    /// A short, stable name of letters and underscores, for logs, statistics and
    /// response-code details.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserKeyInvalid => "user_key_invalid",
            Self::ApplicationNotFound => "application_not_found",
            Self::ApplicationKeyInvalid => "application_key_invalid",
            Self::ApplicationNotActive => "application_not_active",
            Self::ServiceNotActive => "service_not_active",
            Self::ReferrerNotAllowed => "referrer_not_allowed",
            Self::RedirectInvalid => "redirect_invalid",
            Self::CredentialNotUtf8 => "credential_not_utf8",
            Self::Other => "denied",
        }
    }

    /// The number that stands for it in a record. Never 0.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The denial of that number, if there is one.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|denial| denial.code() == code)
    }

    /// Whether it is about the application, or only about the key or the referrer that was
    /// shown: then it says nothing of the application's other keys and referrers.
    #[must_use]
    pub const fn is_of_the_application(self) -> bool {
        !matches!(self, Self::ApplicationKeyInvalid | Self::ReferrerNotAllowed)
    }

    /// Whose doing it is.
    #[must_use]
    pub const fn fault(self) -> Fault {
        match self {
            Self::UserKeyInvalid
            | Self::ApplicationNotFound
            | Self::ApplicationKeyInvalid
            | Self::ApplicationNotActive
            | Self::ReferrerNotAllowed
            | Self::CredentialNotUtf8
            | Self::Other => Fault::Consumer,
            Self::ServiceNotActive | Self::RedirectInvalid => Fault::Provider,
        }
    }

    /// The denial that a `3scale-rejection-reason` header names (protocol section 5).
    /// `limits_exceeded` and `oauth_not_enabled` are no denials and must have been looked for
    /// before.
    pub(super) fn from_rejection_reason(reason: &[u8]) -> Self {
        match reason {
            b"application_key_invalid" => Self::ApplicationKeyInvalid,
            b"application_not_active" => Self::ApplicationNotActive,
            b"service_not_active" => Self::ServiceNotActive,
            b"referrer_not_allowed" => Self::ReferrerNotAllowed,
            b"redirect_url_invalid" | b"redirect_uri_invalid" => Self::RedirectInvalid,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_code_names_one_denial_and_zero_names_none() {
        for denial in Denial::ALL {
            assert_eq!(Denial::from_code(denial.code()), Some(denial));
        }
        assert_eq!(Denial::from_code(0), None);
        let known = (0..=u8::MAX).filter_map(Denial::from_code).count();
        assert_eq!(known, Denial::ALL.len());
    }

    #[test]
    fn every_rejection_reason_of_the_protocol_is_known() {
        for reason in [
            "application_key_invalid",
            "application_not_active",
            "service_not_active",
            "referrer_not_allowed",
            "redirect_url_invalid",
            "redirect_uri_invalid",
        ] {
            let denial = Denial::from_rejection_reason(reason.as_bytes());
            assert_ne!(denial, Denial::Other, "{reason}");
        }
        assert_eq!(Denial::from_rejection_reason(b"new_reason"), Denial::Other);
    }
}
