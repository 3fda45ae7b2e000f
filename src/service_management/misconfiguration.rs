//! What service management refuses because the gateway's own configuration or code is
//! wrong: never a consumer's fault, never told to one as an invalid key, and never a
//! reason to replace what is known of an application.
//!
//! Apart from [`super::denial`] because 403 and 404 carry both (protocol section 4).

/// An error of ours, by the backend's `<error code>` (protocol section 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Misconfiguration {
    /// The token is not valid for this service id.
    ServiceTokenInvalid,
    /// The call had neither a service token nor a provider key.
    ServiceTokenMissing,
    /// The provider key is not valid.
    ProviderKeyInvalid,
    /// There is no such service.
    ServiceIdInvalid,
    /// The call had no service id.
    ServiceIdMissing,
    /// The service knows its applications the other way: a `user_key` was sent to a service
    /// of `app_id`s, or the reverse.
    WrongIdentification,
    /// An `oauth_*` question was put to a service that is not in OAuth mode.
    OauthNotEnabled,
    /// Both a `user_key` and an `app_id` were sent.
    BothIdentifications,
    /// There is no such metric in the service.
    MetricInvalid,
    /// A usage is not a number that the backend takes.
    UsageInvalid,
    /// The removed `user_id` parameter was sent.
    EndUsers,
    /// The request could not be parsed, or has too many parameters or bytes.
    BadRequest,
    /// A report had a content type that is no form.
    ContentTypeInvalid,
    /// A report had no transactions, or misshapen ones.
    TransactionsInvalid,
    /// A report was not UTF-8.
    NotUtf8,
    /// An `<error>` with a code that is not known here.
    Other,
}

impl Misconfiguration {
    /// Every misconfiguration.
    pub const ALL: [Self; 16] = [
        Self::ServiceTokenInvalid,
        Self::ServiceTokenMissing,
        Self::ProviderKeyInvalid,
        Self::ServiceIdInvalid,
        Self::ServiceIdMissing,
        Self::WrongIdentification,
        Self::OauthNotEnabled,
        Self::BothIdentifications,
        Self::MetricInvalid,
        Self::UsageInvalid,
        Self::EndUsers,
        Self::BadRequest,
        Self::ContentTypeInvalid,
        Self::TransactionsInvalid,
        Self::NotUtf8,
        Self::Other,
    ];

    /// A short, stable name of letters, digits and underscores, for logs, statistics and
    /// response-code details.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceTokenInvalid => "service_token_invalid",
            Self::ServiceTokenMissing => "service_token_missing",
            Self::ProviderKeyInvalid => "provider_key_invalid",
            Self::ServiceIdInvalid => "service_id_invalid",
            Self::ServiceIdMissing => "service_id_missing",
            Self::WrongIdentification => "wrong_identification",
            Self::OauthNotEnabled => "oauth_not_enabled",
            Self::BothIdentifications => "both_identifications",
            Self::MetricInvalid => "metric_invalid",
            Self::UsageInvalid => "usage_invalid",
            Self::EndUsers => "end_users",
            Self::BadRequest => "bad_request",
            Self::ContentTypeInvalid => "content_type_invalid",
            Self::TransactionsInvalid => "transactions_invalid",
            Self::NotUtf8 => "not_utf8",
            Self::Other => "other_error",
        }
    }

    /// Whether it can lie in a single transaction of a report, so that the others would be
    /// taken in a report of their own. Where not, the whole service is refused until
    /// somebody changes a configuration, and splitting a report helps nobody.
    #[must_use]
    pub const fn may_lie_in_one_transaction(self) -> bool {
        match self {
            Self::ServiceTokenInvalid
            | Self::ServiceTokenMissing
            | Self::ProviderKeyInvalid
            | Self::ServiceIdInvalid
            | Self::ServiceIdMissing
            | Self::OauthNotEnabled
            | Self::EndUsers
            | Self::ContentTypeInvalid => false,
            Self::WrongIdentification
            | Self::BothIdentifications
            | Self::MetricInvalid
            | Self::UsageInvalid
            | Self::BadRequest
            | Self::TransactionsInvalid
            | Self::NotUtf8
            | Self::Other => true,
        }
    }

    /// The misconfiguration that an `<error code>` names. Codes that are about an
    /// application (`user_key_invalid`, `application_not_found`) are not looked for.
    pub(super) fn from_error_code(code: &str) -> Self {
        match code {
            "service_token_invalid" => Self::ServiceTokenInvalid,
            "provider_key_or_service_token_required" => Self::ServiceTokenMissing,
            "provider_key_invalid" | "provider_key_invalid_or_service_missing" => {
                Self::ProviderKeyInvalid
            }
            "service_id_invalid" => Self::ServiceIdInvalid,
            "service_id_missing" => Self::ServiceIdMissing,
            "authentication_error" => Self::BothIdentifications,
            "metric_invalid" => Self::MetricInvalid,
            "usage_value_invalid" => Self::UsageInvalid,
            "end_users_no_longer_supported" => Self::EndUsers,
            "bad_request" => Self::BadRequest,
            "content_type_invalid" => Self::ContentTypeInvalid,
            "transactions_is_blank"
            | "transactions_format_invalid"
            | "transactions_has_nil_transaction" => Self::TransactionsInvalid,
            "not_valid_data" => Self::NotUtf8,
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
    fn names_are_distinct() {
        for (position, one) in Misconfiguration::ALL.iter().enumerate() {
            let same = |other: &Misconfiguration| other.as_str() == one.as_str();
            assert_eq!(Misconfiguration::ALL.iter().position(same), Some(position));
        }
    }

    #[test]
    fn a_rotated_token_is_no_reason_to_split_a_report() {
        let code = Misconfiguration::from_error_code("service_token_invalid");
        assert!(!code.may_lie_in_one_transaction());
        let code = Misconfiguration::from_error_code("not_valid_data");
        assert!(code.may_lie_in_one_transaction());
    }
}
