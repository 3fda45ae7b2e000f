//! What `Debug` shows of whatever holds a credential: everything but the credential.
//!
//! Apart, and by hand, so that no derived `Debug` shows one by and by.

use super::applications::Identity;
use super::record::Record;
use super::refresh::Question;
use super::shown::{Asked, Referrer, Shown};
use std::fmt;

impl fmt::Debug for Identity<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Identity")
            .field("digest", &self.digest)
            .field("scope", &self.scope)
            .field("kind", &self.kind)
            .field("shown", &self.shown)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Shown")
            .field("rule", &self.rule)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Referrer<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Ignored => "Ignored",
            Self::Named(_) => "Named",
        })
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Asked").finish_non_exhaustive()
    }
}

impl fmt::Debug for Question {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Question")
            .field("slot", &self.slot)
            .field("digest", &self.digest)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Record")
            .field("state", &self.state)
            .field("digest", &self.digest)
            .field("scope", &self.scope)
            .field("kind", &self.kind)
            .field("denial", &self.denial)
            .field("refresh_marked", &self.refresh_marked)
            .field("alone", &self.alone)
            .field("fetched_at", &self.fetched_at)
            .field("fresh_until", &self.fresh_until)
            .field("stale_until", &self.stale_until)
            .field("last_used", &self.last_used)
            .field("batch", &self.batch)
            .field("batch_deadline", &self.batch_deadline)
            .field("acknowledged_at", &self.acknowledged_at)
            .field("keys", &self.keys)
            .field("names", &self.names)
            .field("ledger", &self.ledger)
            .field("limits", &self.limits)
            .field("usage", &self.usage)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::{KeyList, KeyRule, Keys, Learned, Slot};
    use crate::config;
    use crate::credentials::{Body, Credential, Credentials, Digest, Found, Kind};
    use crate::request::{Headers, Request};
    use crate::service_management::{
        Application, Authorization, Reply, Right, ServiceAccess, Transaction,
    };
    use std::borrow::Cow;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const CANARY: &[u8] = b"canary";

    #[test]
    fn debug_never_shows_a_credential() {
        let digest = Digest([7; 16]);
        let kind = Kind::UserKey;
        let canary = std::str::from_utf8(CANARY).ok();
        let shown = Shown {
            app_key: canary,
            referrer: Referrer::Named(canary),
            ..Shown::default()
        };
        let identity = Identity {
            digest,
            scope: 1,
            kind,
            value: CANARY,
            shown,
            tells: false,
        };
        let question = Question {
            slot: Slot(1),
            digest,
            kind,
            value: CANARY.to_vec(),
            app_key: shown.app_key.map(str::to_owned),
            attempt: 0,
        };
        let mut record = Record::vacant();
        record.identity = CANARY.to_vec();
        let learned = Learned::Uncached(Box::new(record.clone()));
        let headers = Headers {
            pairs: &[(b"x-api-key", CANARY)],
        };
        let request = Request {
            method: b"GET",
            authority: CANARY,
            target: CANARY,
            headers,
        };
        let mut shown = vec![
            format!("{identity:?}"),
            format!("{question:?}"),
            format!("{shown:?}"),
            format!("{:?}", shown.to_asked()),
            format!("{record:?}"),
            format!("{learned:?}"),
            format!("{headers:?}"),
            format!("{request:?}"),
        ];
        let credential = Credential::new(kind, Cow::Borrowed(CANARY)).unwrap();
        let credentials = Credentials::default().with_anonymous(credential.clone());
        let application = Application::AppId {
            id: CANARY,
            key: Some(CANARY),
        };
        let transaction = Transaction {
            application,
            at: 0,
            usage: &[],
        };
        let right = Right::ProviderKey("canary");
        let access = ServiceAccess { id: "1", right };
        let authorization = Authorization {
            limits: Vec::new(),
            hierarchy: Vec::new(),
            app_keys: Some(vec!["canary".to_owned()]),
        };
        let keys = KeyList::new(digest, &authorization, KeyRule::IfAny, canary);
        let reply = Reply {
            status: 200,
            rejection_reason: None,
            from_upstream: true,
            body: CANARY,
        };
        let secret = config::Secret::new("canary".to_owned());
        let json = br#"{"service_management":{"cluster":"a","authority":"b"},"services":[{"id":"1",
            "token":"canary","hosts":["a"],"mapping_rules":[{"pattern":"/","usage":{"hits":1}}],
            "credentials":{"user_key":[{"body":"k"}],"anonymous":{"user_key":"canary"}}}]}"#;
        let configuration = config::Configuration::parse(json, &|_| None).unwrap();
        shown.extend([
            format!("{credential:?} {credentials:?}"),
            format!("{:?}", Found::Credential(credential.clone())),
            format!("{:?}", Body::Whole(CANARY)),
            format!("{application:?} {transaction:?} {access:?}"),
            format!("{authorization:?} {keys:?} {reply:?} {secret:?}"),
            format!(
                "{:?} {:?}",
                Keys::Listed(1),
                config::Right::ServiceToken(secret.clone())
            ),
            format!("{configuration:?}"),
        ]);
        // A derived `Debug` shows bytes as a list of numbers.
        let numbers = format!("{CANARY:?}");
        let numbers = numbers.trim_matches(['[', ']']);
        shown.retain(|shown| shown.contains("canary") || shown.contains(numbers));
        assert_eq!(shown, [""; 0]);
    }
}
