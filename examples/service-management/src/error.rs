//! The errors that the API names, with their codes, words and status codes.

/// An error as the backend words it (`errors.rb`); protocol section 5.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("{0}")]
    BadRequest(String),
    #[error("Provider key or service token are required")]
    ProviderKeyOrServiceTokenRequired,
    #[error("Service ID is missing")]
    ServiceIdMissing,
    #[error("service token \"{token}\" or service id \"{service}\" is invalid")]
    ServiceTokenInvalid { token: String, service: String },
    #[error("provider key \"{0}\" is invalid")]
    ProviderKeyInvalid(String),
    #[error("provider key \"{0}\" invalid and/or service ID missing")]
    ProviderKeyInvalidOrServiceMissing(String),
    #[error("service id \"{0}\" is invalid")]
    ServiceIdInvalid(String),
    #[error("{}", or_missing("user key", .0, "is invalid"))]
    UserKeyInvalid(String),
    #[error("either app_id or user_key is allowed, not both")]
    AuthenticationError,
    #[error("{}", application_not_found(.0))]
    ApplicationNotFound(String),
    #[error("metric \"{0}\" is invalid")]
    MetricInvalid(String),
    #[error("{}", usage_value(.metric, .value.as_deref()))]
    UsageValueInvalid {
        metric: String,
        value: Option<String>,
    },
    #[error("End-users are no longer supported, do not specify the user_id parameter")]
    EndUsersNoLongerSupported,
    #[error("invalid Content-Type: {0}")]
    ContentTypeInvalid(String),
    #[error("transactions parameter is blank")]
    TransactionsIsBlank,
    #[error("transactions format is invalid")]
    TransactionsFormatInvalid,
    #[error("transactions has a nil transaction")]
    TransactionsHasNilTransaction,
    #[error("all data must be valid UTF8")]
    NotValidData,
    #[error("reporting transactions older than 86400 seconds is not allowed")]
    TransactionTimestampTooOld,
    #[error("reporting transactions more than 3600 seconds in the future is not allowed")]
    TransactionTimestampTooNew,
}

impl ApiError {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::BadRequest(_) => "bad_request",
            Self::ProviderKeyOrServiceTokenRequired => "provider_key_or_service_token_required",
            Self::ServiceIdMissing => "service_id_missing",
            Self::ServiceTokenInvalid { .. } => "service_token_invalid",
            Self::ProviderKeyInvalid(_) => "provider_key_invalid",
            Self::ProviderKeyInvalidOrServiceMissing(_) => {
                "provider_key_invalid_or_service_missing"
            }
            Self::ServiceIdInvalid(_) => "service_id_invalid",
            Self::UserKeyInvalid(_) => "user_key_invalid",
            Self::AuthenticationError => "authentication_error",
            Self::ApplicationNotFound(_) => "application_not_found",
            Self::MetricInvalid(_) => "metric_invalid",
            Self::UsageValueInvalid { .. } => "usage_value_invalid",
            Self::EndUsersNoLongerSupported => "end_users_no_longer_supported",
            Self::ContentTypeInvalid(_) => "content_type_invalid",
            Self::TransactionsIsBlank => "transactions_is_blank",
            Self::TransactionsFormatInvalid => "transactions_format_invalid",
            Self::TransactionsHasNilTransaction => "transactions_has_nil_transaction",
            Self::NotValidData => "not_valid_data",
            Self::TransactionTimestampTooOld => "transaction_timestamp_too_old",
            Self::TransactionTimestampTooNew => "transaction_timestamp_too_new",
        }
    }

    pub const fn status(&self) -> u16 {
        match self {
            Self::BadRequest(_)
            | Self::EndUsersNoLongerSupported
            | Self::ContentTypeInvalid(_)
            | Self::TransactionsIsBlank
            | Self::TransactionsFormatInvalid
            | Self::TransactionsHasNilTransaction => 400,
            Self::ApplicationNotFound(_) | Self::MetricInvalid(_) => 404,
            Self::ServiceIdMissing | Self::NotValidData => 422,
            _ => 403,
        }
    }

    /// The words, without what a consumer or provider must keep to itself.
    pub fn public_message(&self) -> String {
        match self {
            Self::UserKeyInvalid(key) if !is_blank(key) => "user key is invalid".to_owned(),
            Self::ProviderKeyInvalid(_) => "provider key is invalid".to_owned(),
            error => error.to_string(),
        }
    }
}

/// Whether there is nothing but white space (Ruby's `blank?`).
pub(crate) fn is_blank(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_whitespace() || byte == 0x0b)
}

fn or_missing(what: &str, value: &str, verdict: &str) -> String {
    if is_blank(value) {
        format!("{what} is missing")
    } else {
        format!("{what} \"{value}\" {verdict}")
    }
}

fn application_not_found(id: &str) -> String {
    if is_blank(id) {
        "application id is missing".to_owned()
    } else {
        format!("application with id=\"{id}\" was not found")
    }
}

fn usage_value(metric: &str, value: Option<&str>) -> String {
    match value {
        Some(value) if !is_blank(value) => {
            format!("usage value \"{value}\" for metric \"{metric}\" is invalid")
        }
        _ => format!("usage value for metric \"{metric}\" can not be empty"),
    }
}

/// Why a call that is well formed was denied; protocol section 5, the second table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejection {
    #[error("usage limits are exceeded")]
    LimitsExceeded,
    #[error("{}", or_missing("application key", .0, "is invalid"))]
    ApplicationKeyInvalid(String),
    #[error("application is not active")]
    ApplicationNotActive,
    #[error("service is not active")]
    ServiceNotActive,
    #[error("{}", or_missing("referrer", .0, "is not allowed"))]
    ReferrerNotAllowed(String),
    #[error("oauth is not enabled")]
    OauthNotEnabled,
    #[error("redirect_url \"{0}\" is invalid")]
    RedirectUrlInvalid(String),
    #[error("redirect_uri \"{0}\" is invalid")]
    RedirectUriInvalid(String),
}

impl Rejection {
    pub const fn code(&self) -> &'static str {
        match self {
            Self::LimitsExceeded => "limits_exceeded",
            Self::ApplicationKeyInvalid(_) => "application_key_invalid",
            Self::ApplicationNotActive => "application_not_active",
            Self::ServiceNotActive => "service_not_active",
            Self::ReferrerNotAllowed(_) => "referrer_not_allowed",
            Self::OauthNotEnabled => "oauth_not_enabled",
            Self::RedirectUrlInvalid(_) => "redirect_url_invalid",
            Self::RedirectUriInvalid(_) => "redirect_uri_invalid",
        }
    }
}
