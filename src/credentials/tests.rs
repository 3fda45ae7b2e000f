//! What is found in requests, and what is not.
//!
//! Apart from the room only for its length.

use super::*;
use crate::request::Headers;
#[cfg(all(target_family = "wasm", target_os = "unknown"))]
use wasm_bindgen_test::wasm_bindgen_test as test;

fn query(name: &str) -> Source {
    Source::Query(ParameterName::new(name).unwrap())
}

fn header(name: &str) -> Source {
    Source::Header(HeaderName::new(name).unwrap())
}

/// What these sources find: the value, or which of the two other outcomes.
fn find(sources: Vec<Source>, target: &[u8], pairs: &[(&[u8], &[u8])]) -> String {
    let credentials = Credentials::user_key(sources).unwrap();
    match credentials.find(
        &Request {
            method: b"GET",
            authority: b"api.example.com",
            target,
            headers: Headers { pairs },
        },
        Body::None,
    ) {
        Found::Credential(credential) => credential.expose().to_owned(),
        Found::Unusable => "(unusable)".to_owned(),
        Found::Token(token) => String::from_utf8_lossy(&token).into_owned(),
        Found::InBody => "(in the body)".to_owned(),
        Found::Missing => "(missing)".to_owned(),
    }
}

fn in_query(target: &[u8]) -> String {
    find(vec![query("user_key")], target, &[])
}

fn in_header(value: &[u8]) -> String {
    find(vec![header("X-Api-Key")], b"/", &[(b"x-api-key", value)])
}

#[test]
fn a_query_parameter_is_found_wherever_it_stands() {
    assert_eq!(in_query(b"/a?user_key=abc"), "abc");
    assert_eq!(in_query(b"/a?x=1&user_key=abc&y=2"), "abc");
    assert_eq!(in_query(b"/a?x=1&&user_key=a=b?c"), "a=b?c");
}

#[test]
fn only_the_query_is_searched_for_a_query_parameter() {
    assert_eq!(in_query(b"/user_key=abc"), "(missing)");
    assert_eq!(
        in_query(b"/a?other_user_key=abc&user_key2=abc&user=abc"),
        "(missing)"
    );
    assert_eq!(in_query(b"/a?x=1;user_key=abc"), "(missing)");
    assert_eq!(in_query(b"/a?USER_KEY=abc"), "(missing)");
    assert_eq!(in_query(b""), "(missing)");
}

#[test]
fn a_query_value_is_decoded_exactly_once() {
    assert_eq!(in_query(b"/?user_key=a%62c%2Be"), "abc+e");
    assert_eq!(in_query(b"/?user_key=%2561"), "%61");
    assert_eq!(in_query(b"/?user_key=100%"), "100%");
    assert_eq!(in_query(b"/?user_key=%c3%a4%zz"), "\u{e4}%zz");
}

/// What these sources find for an `app_id` and an `app_key`.
fn pair(
    app_id: Vec<Source>,
    app_key: Vec<Source>,
    target: &[u8],
    pairs: &[(&[u8], &[u8])],
) -> String {
    let credentials = Credentials::new(Sources::AppId { app_id, app_key }).unwrap();
    let request = Request {
        method: b"GET",
        authority: b"",
        target,
        headers: Headers { pairs },
    };
    match credentials.find(&request, Body::None) {
        Found::Credential(found) => {
            format!("{}/{}", found.expose(), found.app_key().unwrap_or("-"))
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn an_app_id_and_its_key_are_each_found_on_their_own() {
    let find = |target: &[u8], pairs| {
        let ids = vec![query("id"), header("x-id")];
        pair(ids, vec![header("x-key"), query("key")], target, pairs)
    };
    assert_eq!(find(b"/?id=1&key=2", &[]), "1/2");
    assert_eq!(find(b"/?id=1", &[(b"x-key", b" 2 ")]), "1/2");
    assert_eq!(
        find(b"/?key=1", &[(b"x-key", b"2"), (b"x-id", b"3")]),
        "3/2"
    );
    assert_eq!(find(b"/?id=1", &[]), "1/-");
    assert_eq!(find(b"/?id=1&key=%20+", &[]), "1/-");
    assert_eq!(find(b"/?id=a+b&key=+%0ac+d%00", &[]), "a+b/c d");
    assert_eq!(find(b"/?key=2", &[]), "Missing");
    assert_eq!(find(b"/?user_key=2", &[]), "Missing");
    assert_eq!(find(b"/?id=1&key=a%0ab", &[]), "Unusable");
    assert_eq!(find(b"/?id=%ff&key=a", &[]), "Unusable");
}

#[test]
fn basic_authentication_holds_both_parts() {
    let basic = |value: &[u8]| {
        let user = vec![Source::Basic(BasicPart::Username)];
        let password = vec![Source::Basic(BasicPart::Password)];
        pair(user, password, b"/", &[(b"authorization", value)])
    };
    assert_eq!(basic(b"Basic aWQ6a2V5OjE="), "id/key:1");
    assert_eq!(basic(b"basic   aWQ6a2V5OjE"), "id/key:1");
    assert_eq!(basic(b"Basic aWQ6"), "id/-");
    assert_eq!(basic(b"Basic aWQ="), "id/-");
    assert_eq!(basic(b"Basic OmtleQ=="), "Missing");
    assert_eq!(basic(b"Basic"), "Missing");
    assert_eq!(basic(b"Bearer aWQ6a2V5"), "Missing");
    assert_eq!(basic(b"Basic !"), "Unusable");
    assert_eq!(basic(b"Basic aWQ6a2V5, Basic aWQ6a2V5"), "Unusable");
    assert_eq!(basic(b"Basic /zph"), "Unusable");
}

#[test]
fn a_bearer_token_is_taken_as_it_is() {
    let bearer = |value: &[u8]| find(vec![Source::Bearer], b"/", &[(b"authorization", value)]);
    assert_eq!(bearer(b"Bearer a%20/+="), "a%20/+=");
    assert_eq!(bearer(b"  bearer\t a b "), "a+b");
    assert_eq!(bearer(b"Bearer"), "(missing)");
    assert_eq!(bearer(b"Bearera"), "(missing)");
    assert_eq!(bearer(b"Basic YQ=="), "(missing)");
    assert_eq!(bearer(b"Bearer a\xff"), "(unusable)");
    let several: &[(&[u8], &[u8])] = &[
        (b"authorization", b"Basic YQ=="),
        (b"authorization", b"Bearer b"),
    ];
    assert_eq!(find(vec![Source::Bearer], b"/", several), "b");
}

#[test]
fn a_cookie_is_found_in_any_of_its_headers_and_not_decoded() {
    let cookie = |pairs| {
        find(
            vec![Source::Cookie(CookieName::new("k").unwrap())],
            b"/",
            pairs,
        )
    };
    assert_eq!(cookie(&[(b"cookie", b"a=1; k=%41+b; k=2")]), "%41+b");
    assert_eq!(
        cookie(&[(b"cookie", b"a=1; K=3"), (b"cookie", b"k=\"x=y\"")]),
        "x=y"
    );
    assert_eq!(cookie(&[(b"cookie", b"k=; k=\" \";k=3")]), "3");
    assert_eq!(cookie(&[(b"cookie", b"a=k=1; kk=2")]), "(missing)");
    assert_eq!(
        cookie(&[(b"cookies", b"k=1"), (b"set-cookie", b"k=1")]),
        "(missing)"
    );
    assert_eq!(cookie(&[(b"cookie", b"k=\xc3\x28")]), "(unusable)");
}

#[test]
fn a_form_is_waited_for_only_where_its_turn_comes() {
    let form: (&[u8], &[u8]) = (b"content-type", b"application/x-www-form-urlencoded");
    let find = |sources: &[Source], pairs: &[(&[u8], &[u8])], body| {
        let credentials = Credentials::user_key(sources.to_vec()).unwrap();
        let request = Request {
            method: b"POST",
            authority: b"",
            target: b"/",
            headers: Headers { pairs },
        };
        match credentials.find(&request, body) {
            Found::Credential(credential) => credential.expose().to_owned(),
            other => format!("{other:?}"),
        }
    };
    let body = Source::Body(ParameterName::new("k").unwrap());
    let first = [body.clone(), header("k")];
    let last = [header("k"), body];
    let key: (&[u8], &[u8]) = (b"k", b"1");
    assert_eq!(find(&first, &[form, key], Body::Ahead), "InBody");
    assert_eq!(find(&last, &[form, key], Body::Ahead), "1");
    assert_eq!(find(&last, &[form], Body::Ahead), "InBody");
    assert_eq!(find(&last, &[form], Body::None), "Missing");
    assert_eq!(find(&first, &[key], Body::Ahead), "1", "not a form");
    let whole = Body::Whole(b"a=1&k=&k=%41%26&k=2");
    assert_eq!(find(&first, &[form, key], whole), "A&");
    assert_eq!(find(&first, &[form, key], Body::Whole(b"k=+")), "1");
    assert_eq!(find(&first, &[key], whole), "1", "not a form");
    assert_eq!(find(&last, &[form], Body::Whole(b"")), "Missing");
    assert_eq!(find(&last, &[form], Body::Whole(b"k=%ff")), "Unusable");
}

/// Whether a request with this id and this key, if any, has a credential where a blank key is
/// a wrong one.
fn with_oauth(id: Option<&[u8]>, keys: &[&[u8]]) -> String {
    let credentials = Credentials::new(Sources::AppId {
        app_id: vec![header("app-id")],
        app_key: vec![header("app-key"), Source::Basic(BasicPart::Password)],
    });
    let id = id.map(|id| (&b"app-id"[..], id));
    let keys = keys.iter().map(|key| (&b"app-key"[..], *key));
    let pairs: Vec<_> = id.into_iter().chain(keys).collect();
    let request = Request {
        method: b"GET",
        authority: b"api.example.com",
        target: b"/",
        headers: Headers { pairs: &pairs },
    };
    match credentials
        .unwrap()
        .refusing_blank_keys()
        .find(&request, Body::None)
    {
        Found::Credential(credential) => credential.app_key().unwrap_or("(no key)").to_owned(),
        other => format!("{other:?}"),
    }
}

#[test]
fn with_oauth_a_blank_key_is_a_wrong_one_and_no_key_is_none() {
    assert_eq!(with_oauth(Some(b"a"), &[]), "(no key)");
    assert_eq!(with_oauth(Some(b"a"), &[b"k"]), "k");
    assert_eq!(with_oauth(Some(b"a"), &[b" "]), "Unusable");
    assert_eq!(with_oauth(Some(b"a"), &[b""]), "Unusable");
    assert_eq!(with_oauth(Some(b"a"), &[b" ", b"k"]), "k");
    assert_eq!(with_oauth(None, &[b" "]), "Missing");
    assert_eq!(with_oauth(Some(b" "), &[b" "]), "Missing");
    assert_eq!(with_oauth(Some(b" "), &[b"k"]), "Missing");
}

#[test]
fn a_blank_value_is_none_as_in_the_backend() {
    assert_eq!(in_query(b"/?user_key=%20"), "(missing)");
    assert_eq!(in_query(b"/?user_key=+%09%00&user_key=a"), "a");
}

#[test]
fn an_anonymous_credential_is_for_requests_without_any() {
    let credential = Credential::new(Kind::AppId, Cow::Borrowed(b"nobody")).unwrap();
    let sources = Sources::AppId {
        app_id: vec![query("id")],
        app_key: vec![query("key")],
    };
    let credentials = Credentials::new(sources).unwrap();
    let credentials = credentials.with_anonymous(credential).unwrap();
    let find = |target: &'static [u8]| {
        let request = Request {
            method: b"GET",
            authority: b"",
            target,
            headers: Headers { pairs: &[] },
        };
        match credentials.find(&request, Body::None) {
            Found::Credential(credential) => credential.expose().to_owned(),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(find(b"/"), "nobody");
    assert_eq!(find(b"/?id="), "nobody");
    assert_eq!(find(b"/?id=1"), "1");
    assert_eq!(find(b"/?id=%ff"), "Unusable");
    assert_eq!(find(b"/?key=1"), "Missing");
}

#[test]
fn a_referrer_that_cannot_be_sent_is_refused() {
    let credentials = Credentials::default().with_referrer();
    let find = |referrer: &'static [u8]| {
        let pairs: &[(&[u8], &[u8])] = &[(b"referer", referrer)];
        let request = Request {
            method: b"GET",
            authority: b"",
            target: b"/?user_key=a",
            headers: Headers { pairs },
        };
        match credentials.find(&request, Body::None) {
            Found::Credential(credential) => format!("{:?}", credential.referrer()),
            other => format!("{other:?}"),
        }
    };
    assert_eq!(
        find(b" https://a.example/?b c "),
        "Some(\"https://a.example/?b c\")"
    );
    assert_eq!(find(b" "), "None");
    assert_eq!(find(b"\xff"), "Unusable");
    assert_eq!(find(&[b'a'; 257]), "Unusable");
}

#[test]
fn a_space_in_a_user_key_is_the_plus_that_3scale_takes_it_for() {
    for written in ["a+b", "a%2Bb", "a%20b"] {
        let target = format!("/?user_key={written}");
        assert_eq!(in_query(target.as_bytes()), "a+b", "{written}");
    }
}

#[test]
fn a_query_name_is_compared_decoded() {
    assert_eq!(in_query(b"/?user%5Fkey=abc"), "abc");
    assert_eq!(in_query(b"/?%75%73%65%72%5F%6B%65%79=abc"), "abc");
    assert_eq!(in_query(b"/?user%255Fkey=abc"), "(missing)");
    assert_eq!(find(vec![query("my key")], b"/?my+key=abc", &[]), "abc");
    assert_eq!(find(vec![query("my key")], b"/?my%20key=abc", &[]), "abc");
    assert_eq!(find(vec![query("a+b")], b"/?a%2bb=abc", &[]), "abc");
    assert_eq!(find(vec![query("a+b")], b"/?a+b=abc", &[]), "(missing)");
    assert_eq!(find(vec![query("a%41")], b"/?a%41=abc", &[]), "(missing)");
}

#[test]
fn the_first_value_of_a_repeated_parameter_or_header_counts() {
    assert_eq!(in_query(b"/?user_key=first&user_key=second"), "first");
    assert_eq!(in_query(b"/?user_key=&user_key&user_key=third"), "third");
    let pairs: &[(&[u8], &[u8])] = &[(b"k", b" "), (b"k", b"two"), (b"k", b"three")];
    assert_eq!(find(vec![header("k")], b"/", pairs), "two");
}

#[test]
fn the_order_of_the_sources_decides() {
    let both = |sources| find(sources, b"/?key=query", &[(b"key", b"header")]);
    assert_eq!(both(vec![query("key"), header("key")]), "query");
    assert_eq!(both(vec![header("key"), query("key")]), "header");
    let empty = find(
        vec![query("key"), header("key")],
        b"/?key=",
        &[(b"key", b"header")],
    );
    assert_eq!(empty, "header");
}

#[test]
fn a_header_value_is_taken_as_it_is_but_for_white_space_around_it() {
    assert_eq!(in_header(b" \ta%20b+c \t"), "a%20b+c");
    assert_eq!(in_header(b"   "), "(missing)");
    assert_eq!(in_header(b""), "(missing)");
}

#[test]
fn a_value_that_the_backend_would_refuse_is_unusable() {
    assert_eq!(in_header(b"a\xffb"), "(unusable)");
    assert_eq!(in_header(b"a\tb"), "(unusable)");
    assert_eq!(in_header(b"a\x7fb"), "(unusable)");
    assert_eq!(in_query(b"/?user_key=%ff"), "(unusable)");
    assert_eq!(in_query(b"/?user_key=a%00b"), "(unusable)");
    assert_eq!(in_query(b"/?user_key=a%0d%0a"), "(unusable)");
    assert_eq!(in_query(b"/?user_key=%c2%85"), "(unusable)");
}

#[test]
fn a_value_may_have_256_bytes_after_decoding_and_no_more() {
    let of = |unit: &str, count: usize| {
        in_query(format!("/?user_key={}", unit.repeat(count)).as_bytes())
    };
    assert_eq!(of("a", 256), "a".repeat(256));
    assert_eq!(of("%61", 256), "a".repeat(256));
    assert_eq!(of("a", 257), "(unusable)");
    assert_eq!(of("%61", 257), "(unusable)");
    assert_eq!(of("a", 60_000), "(unusable)");
    assert_eq!(in_header(&[b'a'; 256]), "a".repeat(256));
    assert_eq!(in_header(&[b'a'; 257]), "(unusable)");
}

#[test]
fn an_unusable_value_is_not_made_up_for_by_a_later_source() {
    let sources = vec![query("key"), header("key")];
    assert_eq!(
        find(sources, b"/?key=%ff", &[(b"key", b"good")]),
        "(unusable)"
    );
}

#[test]
fn sources_are_neither_none_nor_repeated() {
    let error = |sources| Credentials::user_key(sources).unwrap_err();
    assert_eq!(error(vec![]), CredentialsError::Empty(List::UserKey));
    let repeated = vec![header("key"), query("key"), header("KEY")];
    assert_eq!(
        error(repeated),
        CredentialsError::Repeated(List::UserKey, 2)
    );
}

#[test]
fn by_default_the_query_parameter_user_key_is_the_credential() {
    let expected = Sources::UserKey(vec![query("user_key")]);
    assert_eq!(*Credentials::default().sources(), expected);
}
