//! Opaque tokens: what a key manager is asked about them, and what it answers (RFC 7662).
//!
//! Apart from the signed ones because nothing can be read of such a token: whoever made it says
//! whether it is active, and for how long that is believed is the operator's to say. No I/O: who
//! asks, and who waits, is [`crate::host`]'s business.

use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};

use super::cache::Generations;
use super::claims::{ClaimPath, Claims};
use super::{Flaw, LONGEST_TOKEN, Policy, TokenDigest, Url, Verified, json};

/// The longest answer that is read, in bytes.
pub const LONGEST_ANSWER: usize = 65_536;
/// The most tokens that are remembered as not active.
const MOST_INACTIVE: usize = 4_096;
/// How far ahead a `nbf` may be, in seconds: whose clock is right is not known here.
const NOT_BEFORE_LEEWAY: u64 = 5;
/// The pause after a question about a known token failed, in milliseconds; it doubles with each
/// further one.
const FIRST_PAUSE: u64 = 1_000;
/// The longest pause, in milliseconds.
const LONGEST_PAUSE: u64 = 30_000;
/// What stands in a form as it is (the URL Standard's set, as RFC 6749, appendix B has it); a
/// space becomes `+`.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'*')
    .remove(b'-')
    .remove(b'.')
    .remove(b'_');

/// A key manager, and how far its answers are relied on.
#[derive(Clone, Debug)]
pub struct Introspection {
    /// The Envoy cluster that leads to it; not empty.
    pub cluster: String,
    /// Its introspection endpoint.
    pub url: Url,
    /// What answers must have as `iss`, if that is looked at.
    pub issuer: Option<Box<str>>,
    /// One of these must be the `aud` of an answer, or among it; if there are none, it is not
    /// looked at.
    pub audiences: Vec<Box<str>>,
    /// Which member names the application: the first that is there. At least one.
    pub application: Vec<ClaimPath>,
    /// How long a call may take.
    pub timeout: Duration,
    /// How long an answer is believed that said that a token is active.
    pub ttl: Duration,
    /// The same for one that said that it is not.
    pub negative_ttl: Duration,
    /// How long after `ttl` the first is still good while nobody can be asked.
    pub stale_if_error: Duration,
    /// How many unknown tokens a worker asks about in a second.
    pub calls_per_second: u32,
    /// How the gateway shows who it is.
    pub client: Client,
}

/// The key manager's answer is none that RFC 7662, 2.2 has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unreadable;

/// The credentials of this gateway at a key manager. A secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Client(String);

impl Client {
    /// The client of this id and secret.
    #[must_use]
    pub fn new(id: &str, secret: &str) -> Self {
        let pair = format!("{}:{}", form_encoded(id), form_encoded(secret));
        Self(format!("Basic {}", STANDARD.encode(pair)))
    }

    /// The value of `Authorization` that shows it: basic authentication with both parts
    /// form-encoded (RFC 6749, 2.3.1). For the key manager and nobody else.
    #[must_use]
    pub fn authorization(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("[secret]")
    }
}

fn form_encoded(text: &str) -> String {
    utf8_percent_encode(text, FORM)
        .to_string()
        .replace("%20", "+")
}

impl Introspection {
    /// What is asked about a token (RFC 7662, 2.1): a form. `None`: nobody can have that token
    /// (RFC 6749, A.12), or it is too long.
    #[must_use]
    pub fn question(token: &[u8]) -> Option<Vec<u8>> {
        let token = std::str::from_utf8(token).ok()?;
        let visible = token.bytes().all(|byte| byte.is_ascii_graphic());
        if !visible || token.is_empty() || token.len() > LONGEST_TOKEN {
            return None;
        }
        let token = form_encoded(token);
        Some(format!("token={token}&token_type_hint=access_token").into_bytes())
    }

    /// What an answer says, at this Unix second: of a token that is good, what is remembered of it.
    ///
    /// # Errors
    /// [`Unreadable`]: it is none, and nothing is known of the token.
    pub fn read(
        &self,
        policy: &Policy,
        answer: &[u8],
        now: u64,
    ) -> Result<Result<Verified, Flaw>, Unreadable> {
        let Some(mut members) = Some(answer)
            .filter(|answer| answer.len() <= LONGEST_ANSWER)
            .and_then(json::object)
        else {
            return Err(Unreadable);
        };
        // Some write what they have not to say.
        members.retain(|_, value| !value.is_null());
        match members.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Ok(Err(Flaw::Inactive)),
            _ => return Err(Unreadable),
        }
        if !is_well_formed(&members) {
            return Err(Unreadable);
        }
        let claims = Claims::of(members);
        let expires = claims.moment("exp").map_err(|()| Unreadable)?;
        let begins = claims.moment("nbf").map_err(|()| Unreadable)?;
        Ok(self.judge(policy, &claims, (begins, expires), now))
    }

    fn judge(
        &self,
        policy: &Policy,
        claims: &Claims,
        (begins, expires): (Option<u64>, Option<u64>),
        now: u64,
    ) -> Result<Verified, Flaw> {
        let expires = expires.unwrap_or(u64::MAX);
        if now >= expires {
            return Err(Flaw::Expired);
        }
        if begins.is_some_and(|begins| begins > now.saturating_add(NOT_BEFORE_LEEWAY)) {
            return Err(Flaw::Premature);
        }
        if let Some(issuer) = &self.issuer
            && claims.text("iss") != Some(issuer)
        {
            return Err(Flaw::Issuer);
        }
        if !self.audiences.is_empty() && !claims.is_for(&self.audiences) {
            return Err(Flaw::Audience);
        }
        policy.granted(claims, &self.application, expires)
    }
}

/// Whether the members whose types RFC 7662, 2.2 says are of these; times are looked at as such.
fn is_well_formed(members: &Map<String, Value>) -> bool {
    let text = |value: &Value| value.is_string();
    let texts = |value: &Value| match value {
        Value::Array(values) => values.iter().all(text),
        value => text(value),
    };
    // A list of scopes is what some have in the place of words in a text.
    let of = |name: &str, is: &dyn Fn(&Value) -> bool| members.get(name).is_none_or(is);
    of("iss", &text) && of("client_id", &text) && of("aud", &texts) && of("scope", &texts)
}

/// Whether these bytes look like a signed token: three parts, of which the first begins like the
/// base64 of a JSON object. Others are opaque.
#[must_use]
pub fn looks_signed(token: &[u8]) -> bool {
    matches!(token, [b'e', b'y' | b'w', ..])
        && token.iter().filter(|byte| **byte == b'.').count() == 2
}

/// What was answered of a service's tokens, by their digests.
pub struct Answers {
    active: Generations<Active>,
    inactive: Generations<(Flaw, u64)>,
}

/// A token that was active. All times in monotonic milliseconds; never beyond the token's `exp`,
/// which is looked at each time.
#[derive(Clone)]
struct Active {
    verified: Rc<Verified>,
    /// From then on it is asked about again, if it is in use.
    ahead: u64,
    /// Until then the answer is believed.
    fresh: u64,
    /// Until then it is, if nobody can be asked.
    stale: u64,
    /// How many questions have failed since.
    failures: u32,
    /// It is not asked about again before.
    not_before: u64,
}

/// What is known of a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is active.
    Active(Rc<Verified>),
    /// It is active, and should be asked about again.
    Aging(Rc<Verified>),
    /// It was active. Good if nobody can be asked.
    Stale(Rc<Verified>),
    /// The same, and it should be asked about; but nobody could be not long ago, so nobody should
    /// wait for it.
    StaleInVain(Rc<Verified>),
    /// The same, and it was asked about just now, in vain.
    StaleAndAsked(Rc<Verified>),
    /// It is not good.
    Refused(Flaw),
    /// Nothing.
    Unknown,
}

impl Answers {
    /// Room for so many active tokens, at least two.
    #[must_use]
    pub fn new(most_active: usize) -> Self {
        Self {
            active: Generations::new(most_active),
            inactive: Generations::new(MOST_INACTIVE),
        }
    }

    /// What is known, at this Unix second and this monotonic millisecond.
    pub fn look_up(&mut self, digest: TokenDigest, seconds: u64, monotonic: u64) -> Known {
        if let Some(active) = self.active.get(digest) {
            let verified = || Rc::clone(&active.verified);
            if seconds >= active.verified.expires {
                return Known::Refused(Flaw::Expired);
            }
            let in_vain = monotonic < active.not_before;
            if monotonic < active.fresh {
                return if monotonic < active.ahead || in_vain {
                    Known::Active(verified())
                } else {
                    Known::Aging(verified())
                };
            }
            if monotonic < active.stale {
                let again = active.not_before.saturating_add(LONGEST_PAUSE);
                return if in_vain {
                    Known::StaleAndAsked(verified())
                } else if active.failures > 0 && monotonic < again {
                    Known::StaleInVain(verified())
                } else {
                    Known::Stale(verified())
                };
            }
            return Known::Unknown;
        }
        match self.inactive.get(digest) {
            Some((flaw, until)) if monotonic < *until => Known::Refused(*flaw),
            _ => Known::Unknown,
        }
    }

    /// Remembers what was asked at one monotonic millisecond, and answered at another.
    pub fn learn(
        &mut self,
        digest: TokenDigest,
        answer: Result<Verified, Flaw>,
        of: &Introspection,
        (asked, answered): (u64, u64),
    ) {
        let milliseconds =
            |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let verified = match answer {
            Ok(verified) => Rc::new(verified),
            Err(flaw) => {
                let until = answered.saturating_add(milliseconds(of.negative_ttl));
                self.active.remove(digest);
                self.inactive.insert(digest, (flaw, until));
                return;
            }
        };
        let ttl = milliseconds(of.ttl);
        // Of the moment in which it was asked; but those who wait are decided on it in any case.
        let fresh = asked.saturating_add(ttl).max(answered.saturating_add(1));
        self.inactive.remove(digest);
        self.active.insert(
            digest,
            Active {
                verified,
                ahead: fresh.saturating_sub(ttl / 4),
                fresh,
                stale: fresh.saturating_add(milliseconds(of.stale_if_error)),
                failures: 0,
                not_before: 0,
            },
        );
    }

    /// A question about a token was in vain: if it is known, it is not asked about again for a
    /// while.
    pub fn in_vain(&mut self, digest: TokenDigest, monotonic: u64) {
        let Some(mut active) = self.active.get(digest).cloned() else {
            return;
        };
        let pause = FIRST_PAUSE
            .checked_shl(active.failures.min(16))
            .unwrap_or(LONGEST_PAUSE)
            .min(LONGEST_PAUSE);
        active.failures = active.failures.saturating_add(1);
        active.not_before = monotonic.saturating_add(pause);
        self.active.insert(digest, active);
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cache, ClaimCondition, Requirement, Requirements};
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const NOW: u64 = 1_700_000_000;

    fn introspection() -> Introspection {
        let url = Url::parse("https://id.example.com/introspect").unwrap();
        Introspection {
            cluster: "id".to_owned(),
            url,
            client: Client::new("a b:c", "s&+%\u{e9}-_.*~"),
            issuer: None,
            audiences: Vec::new(),
            application: ["azp", "client_id"]
                .iter()
                .map(|name| ClaimPath::new([*name]).unwrap())
                .collect(),
            timeout: Duration::from_secs(2),
            ttl: Duration::from_secs(60),
            negative_ttl: Duration::from_secs(10),
            stale_if_error: Duration::from_secs(600),
            calls_per_second: 100,
        }
    }

    fn policy() -> Policy {
        let path = ClaimPath::new(["roles"]).unwrap();
        Policy {
            issuers: Vec::new(),
            handover: None,
            requirements: vec![
                Requirement {
                    scopes: vec!["read".into()],
                    claims: Vec::new(),
                },
                Requirement {
                    scopes: Vec::new(),
                    claims: vec![ClaimCondition {
                        path: path.clone(),
                        any_of: vec!["admin".into()],
                        all_of: Vec::new(),
                    }],
                },
            ],
            headers: vec![(
                crate::credentials::HeaderName::new("x-roles").unwrap(),
                path,
            )],
            verifications_per_second: 1,
            remembered: 10,
        }
    }

    fn read(answer: &str) -> Result<Result<Verified, Flaw>, Unreadable> {
        introspection().read(&policy(), answer.as_bytes(), NOW)
    }

    #[test]
    fn a_question_is_a_form_and_the_client_shows_itself_by_form_encoded_basic() {
        let question = |token: &[u8]| {
            Introspection::question(token).map(|form| String::from_utf8(form).unwrap())
        };
        assert_eq!(
            question(b"aZ09-._~+/=&").unwrap(),
            "token=aZ09-._%7E%2B%2F%3D%26&token_type_hint=access_token"
        );
        for token in [
            &b""[..],
            b"a b",
            b"a\n",
            b"\xc3\xa9",
            b"\xff",
            &[b'a'; 16_385],
        ] {
            assert_eq!(question(token), None);
        }
        let authorization = introspection().client.authorization().to_owned();
        let pair = STANDARD.decode(authorization.strip_prefix("Basic ").unwrap());
        assert_eq!(pair.unwrap(), b"a+b%3Ac:s%26%2B%25%C3%A9-_.*%7E");
    }

    #[test]
    fn no_debug_output_has_the_secret() {
        let introspection = introspection();
        let text = format!("{introspection:?}");
        assert!(text.contains("client: [secret]"), "{text}");
        let shown = introspection.client.authorization();
        let pair = shown.strip_prefix("Basic ").unwrap();
        let of_the_pair = ["a b:c", "a+b%3Ac", "s&+%", "s%26%2B", "Basic", pair];
        for secret in of_the_pair {
            assert!(!text.contains(secret), "{secret}: {text}");
        }
    }

    #[test]
    fn an_active_token_has_application_scopes_claims_and_headers_as_a_signed_one() {
        let exp = NOW + 1;
        let answer = format!(
            r#"{{"active":true,"client_id":"app","scope":"write read","roles":["admin","x"],"exp":{exp},"nbf":{NOW}}}"#
        );
        let verified = read(&answer).unwrap().unwrap();
        assert_eq!(&*verified.application, "app");
        assert_eq!(verified.expires, exp);
        assert_eq!(verified.meets, Requirements::default().with(0).with(1));
        assert_eq!(verified.headers[0].as_deref(), Some("admin,x"));
        let least = read(r#"{"active":true,"azp":"a","client_id":"b","exp":null}"#);
        let least = least.unwrap().unwrap();
        assert_eq!((&*least.application, least.expires), ("a", u64::MAX));
        assert_eq!(least.meets, Requirements::default());
    }

    #[test]
    fn what_makes_an_active_answer_no_good_token() {
        let (now, soon) = (NOW, NOW + 6);
        for (rest, flaw) in [
            (format!(r#""client_id":"a","exp":{now}"#), Flaw::Expired),
            (format!(r#""client_id":"a","nbf":{soon}"#), Flaw::Premature),
            (r#""sub":"a""#.to_owned(), Flaw::Application),
            (r#""azp":["a","b"]"#.to_owned(), Flaw::Application),
        ] {
            let answer = format!(r#"{{"active":true,{rest}}}"#);
            assert_eq!(read(&answer).unwrap().unwrap_err(), flaw, "{answer}");
        }
        assert_eq!(
            read(r#"{"active":false,"client_id":7,"exp":"x"}"#).unwrap(),
            Err(Flaw::Inactive)
        );
    }

    #[test]
    fn issuer_and_audience_must_be_there_and_right_where_they_are_looked_at() {
        let strict = Introspection {
            issuer: Some("https://id".into()),
            audiences: vec!["orders".into(), "search".into()],
            ..introspection()
        };
        let read = |rest: &str| {
            let answer = format!(r#"{{"active":true,"client_id":"a"{rest}}}"#);
            let read = strict.read(&policy(), answer.as_bytes(), NOW).unwrap();
            read.map(|verified| verified.application.into_string())
        };
        assert_eq!(
            read(r#","iss":"https://id","aud":["x","search"]"#).as_deref(),
            Ok("a")
        );
        assert_eq!(
            read(r#","iss":"https://id","aud":"orders""#).as_deref(),
            Ok("a")
        );
        assert_eq!(read(r#","aud":"orders""#), Err(Flaw::Issuer));
        assert_eq!(
            read(r#","iss":"https://id/","aud":"orders""#),
            Err(Flaw::Issuer)
        );
        assert_eq!(read(r#","iss":"https://id""#), Err(Flaw::Audience));
        assert_eq!(
            read(r#","iss":"https://id","aud":"order""#),
            Err(Flaw::Audience)
        );
        assert_eq!(read(r#","iss":"https://id","aud":[]"#), Err(Flaw::Audience));
    }

    #[test]
    fn what_is_no_answer_says_nothing_of_the_token() {
        for answer in [
            "",
            "true",
            "[]",
            "{}",
            "<html>",
            r#"{"active":"true"}"#,
            r#"{"active":1}"#,
            r#"{"active":null}"#,
            r#"{"active":"false"}"#,
            r#"{"Active":true,"client_id":"a"}"#,
            r#"{"active":true,"active":true,"client_id":"a"}"#,
            r#"{"active":false,"active":true,"client_id":"a"}"#,
            r#"{"active":true,"client_id":"a","client_id":"b"}"#,
            r#"{"active":true,"client_id":7}"#,
            r#"{"active":true,"client_id":"a","exp":"1800000000"}"#,
            r#"{"active":true,"client_id":"a","exp":-1}"#,
            r#"{"active":true,"client_id":"a","exp":{}}"#,
            r#"{"active":true,"client_id":"a","nbf":true}"#,
            r#"{"active":true,"client_id":"a","iss":1}"#,
            r#"{"active":true,"client_id":"a","aud":1}"#,
            r#"{"active":true,"client_id":"a","aud":["a",1]}"#,
            r#"{"active":true,"client_id":"a","scope":7}"#,
            r#"{"active":true,"client_id":"a"} x"#,
        ] {
            assert_eq!(read(answer), Err(Unreadable), "{answer}");
        }
        let long = format!(
            r#"{{"active":true,"client_id":"{}"}}"#,
            "a".repeat(LONGEST_ANSWER)
        );
        assert_eq!(read(&long), Err(Unreadable));
    }

    #[test]
    fn a_signed_token_is_told_from_an_opaque_one() {
        for signed in ["eyJhbGciOiJSUzI1NiJ9.e30.AA", "eyJ.a.", "ewogImEiOjF9.b.c"] {
            assert!(looks_signed(signed.as_bytes()), "{signed}");
        }
        for opaque in [
            "",
            "e",
            "eyJhbGci",
            "a.b.c",
            "eyJ.a.b.c.d",
            "eyJ.a",
            "xyJ.a.b",
        ] {
            assert!(!looks_signed(opaque.as_bytes()), "{opaque}");
        }
    }

    fn verified(expires: u64) -> Verified {
        Verified {
            application: "app".into(),
            expires,
            issuer: None,
            key: None,
            meets: Requirements::default(),
            headers: Box::default(),
        }
    }

    fn digest(token: &[u8]) -> TokenDigest {
        Cache::new([1; 16], 2).digest(token)
    }

    /// What is known, as a word.
    fn known(answers: &mut Answers, seconds: u64, monotonic: u64) -> &'static str {
        match answers.look_up(digest(b"t"), seconds, monotonic) {
            Known::Active(_) => "active",
            Known::Aging(_) => "aging",
            Known::Stale(_) => "stale",
            Known::StaleInVain(_) => "stale, in vain",
            Known::StaleAndAsked(_) => "asked",
            Known::Refused(flaw) => flaw.as_str(),
            Known::Unknown => "unknown",
        }
    }

    #[test]
    fn an_active_answer_ages_and_ends() {
        let mut answers = Answers::new(10);
        assert_eq!(known(&mut answers, 0, 0), "unknown");
        answers.learn(
            digest(b"t"),
            Ok(verified(u64::MAX)),
            &introspection(),
            (1_000, 2_000),
        );
        for (monotonic, expected) in [
            (2_000, "active"),
            (45_999, "active"),
            (46_000, "aging"),
            (60_999, "aging"),
            (61_000, "stale"),
            (660_999, "stale"),
            (661_000, "unknown"),
        ] {
            assert_eq!(known(&mut answers, 0, monotonic), expected, "{monotonic}");
        }
    }

    #[test]
    fn exp_ends_an_answer_in_whatever_state_it_is() {
        let mut answers = Answers::new(10);
        answers.learn(digest(b"t"), Ok(verified(100)), &introspection(), (0, 0));
        for monotonic in [0, 50_000, 61_000] {
            assert_ne!(known(&mut answers, 99, monotonic), "token_expired");
            assert_eq!(known(&mut answers, 100, monotonic), "token_expired");
        }
    }

    #[test]
    fn a_question_in_vain_is_not_asked_again_at_once() {
        let mut answers = Answers::new(10);
        answers.learn(
            digest(b"t"),
            Ok(verified(u64::MAX)),
            &introspection(),
            (0, 0),
        );
        answers.in_vain(digest(b"t"), 50_000);
        assert_eq!(known(&mut answers, 0, 50_999), "active");
        assert_eq!(known(&mut answers, 0, 51_000), "aging");
        let mut now = 60_000;
        assert_eq!(known(&mut answers, 0, 61_000), "stale, in vain");
        assert_eq!(known(&mut answers, 0, 81_000), "stale");
        for pause in [2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            assert_eq!(known(&mut answers, 0, now), "stale, in vain");
            answers.in_vain(digest(b"t"), now);
            assert_eq!(known(&mut answers, 0, now + pause - 1), "asked", "{pause}");
            now += pause;
        }
        // An answer ends it.
        answers.learn(
            digest(b"t"),
            Ok(verified(u64::MAX)),
            &introspection(),
            (now, now),
        );
        answers.in_vain(digest(b"t"), now + 50_000);
        assert_eq!(known(&mut answers, 0, now + 51_000), "aging");
    }

    #[test]
    fn an_answer_that_took_longer_than_it_is_believed_still_serves_who_waited() {
        let mut answers = Answers::new(10);
        answers.learn(
            digest(b"t"),
            Ok(verified(u64::MAX)),
            &introspection(),
            (0, 90_000),
        );
        assert_eq!(known(&mut answers, 0, 90_000), "aging");
        assert_eq!(known(&mut answers, 0, 90_001), "stale");
    }

    #[test]
    fn an_answer_takes_the_place_of_another() {
        let mut answers = Answers::new(10);
        let of = introspection();
        answers.learn(digest(b"t"), Ok(verified(u64::MAX)), &of, (0, 0));
        answers.learn(digest(b"t"), Err(Flaw::Inactive), &of, (1, 5));
        assert_eq!(known(&mut answers, 0, 10_004), "token_inactive");
        assert_eq!(known(&mut answers, 0, 10_005), "unknown");
        answers.learn(digest(b"t"), Ok(verified(u64::MAX)), &of, (10, 10));
        assert_eq!(known(&mut answers, 0, 11), "active");
    }

    #[test]
    fn made_up_tokens_push_no_active_one_out() {
        let mut answers = Answers::new(10);
        let of = introspection();
        answers.learn(digest(b"t"), Ok(verified(u64::MAX)), &of, (0, 0));
        for number in 0..20_000_u32 {
            answers.learn(
                digest(&number.to_le_bytes()),
                Err(Flaw::Inactive),
                &of,
                (0, 0),
            );
        }
        assert_eq!(known(&mut answers, 0, 0), "active");
        assert!(answers.inactive.len() <= MOST_INACTIVE);
    }
}
