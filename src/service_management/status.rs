//! The `<status>` document: what an application may do, its limits, its keys and the
//! hierarchy of its limited metrics (protocol section 7).
//!
//! Apart from [`super::answer`], which has decided by the HTTP status that the document is
//! to be believed before it comes here.
//!
//! # Key ids
//!
//! The backend writes metric names and key ids without escaping them. Metric names are the
//! provider's. Key ids may be the consumer's own, so `<app_keys>` may hold anything: text
//! that is no XML, or that is XML of the consumer's making. The order of the elements is
//! fixed and ends `usage_reports`, `app_keys`, `hierarchy`, so everything that a key can
//! touch lies between the first `<app_keys` and the last `<hierarchy` of the body. That
//! stretch is cut out before parsing. The rest has to be one whole, well-formed document,
//! so limits and hierarchy are as strictly read as in a reply without keys, and no key
//! can add, hide or change one. The stretch itself is read apart and never makes an answer
//! fail: if it cannot be read in exactly one way, the keys are unknown.
//!
//! Replies of the `oauth_*` endpoints hold a key in `<application>`, too, unescaped and before the
//! limits. That element is cut out as well, up to its last end before the keys, and is read by nobody.

use std::borrow::Cow;
use std::fmt;

use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::xml::{Document, MAX_BODY, Malformed, attribute};
use crate::authorization::{Period, Window};

/// Limits of one application.
const MAX_USAGE_REPORTS: usize = 256;
/// Pairs of the hierarchy: a few children for each limited metric.
const MAX_HIERARCHY: usize = 1_024;
/// Children, with repetitions: 256 for each limit. Each is looked for among the pairs, and half a million, which a body can
/// hold, would keep the worker busy for seconds.
const MAX_CHILDREN: usize = 65_536;
/// Bytes of a metric's name.
const MAX_METRIC: usize = 128;
/// The backend lists at most 256 keys (protocol section 9), so 256 may be some of more.
const MAX_KEYS: usize = 255;
/// Bytes of a key.
const MAX_KEY: usize = 512;

/// What service management says of an application that it knows and lets in.
///
/// `Debug` shows how many keys there are, and no key.
#[derive(Clone, PartialEq, Eq)]
pub struct Authorization {
    /// One for each limit of the plan, at most 256. None: everything is unlimited.
    pub limits: Vec<UsageReport>,
    /// Parent and child metrics, each pair once, as far as parents have limits. Empty also
    /// where the answer had no hierarchy at all.
    pub hierarchy: Vec<(String, String)>,
    /// All keys of the application, at most 255; empty if it has none, and then any key
    /// is as good as no key.
    ///
    /// `None` if they were not asked for, or if they are not surely all of them and
    /// surely these: the list was full, or a key can be read in more than one way. Then the key
    /// that was asked about is good, and nothing is known of any other: ask for each.
    ///
    /// The backend trims white space from the key it is shown before it compares.
    pub app_keys: Option<Vec<String>>,
}

impl fmt::Debug for Authorization {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Authorization")
            .field("limits", &self.limits)
            .field("hierarchy", &self.hierarchy)
            .field("app_keys", &self.app_keys.as_ref().map(Vec::len))
            .finish()
    }
}

/// One limit, and how much of it the backend had counted when it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageReport {
    /// The metric's name: 1 to 128 bytes.
    pub metric: String,
    /// The limit's period.
    pub period: Period,
    /// The window that `current` was counted in, as the backend gave it, never empty;
    /// for [`Period::Eternity`] all time.
    pub window: Window,
    /// The most that the window may hold. 0 disables the metric.
    pub maximum: u64,
    /// What the window held, by the reports that the backend had applied. Can be above
    /// `maximum`.
    pub current: u64,
}

/// Reads a `<status>` that says `authorized`.
pub(super) fn read(body: &[u8], authorized: bool) -> Result<Authorization, Malformed> {
    if body.len() > MAX_BODY {
        return Err(Malformed::TooLarge);
    }
    let parts = cut_out_app_keys(body)?;
    let text = str::from_utf8(&parts.document).map_err(|_| Malformed::NotUtf8)?;
    let mut authorization = read_status(&mut Document::new(text), authorized)?;
    authorization.app_keys = parts.app_keys.and_then(read_app_keys);
    Ok(authorization)
}

/// A body in two: what no key can touch, and what a key can. See the module's text.
struct Parts<'a> {
    document: Cow<'a, [u8]>,
    app_keys: Option<&'a [u8]>,
}

/// The part of the body before the keys, without the element that the `oauth_*` endpoints add.
fn cut_out_application(head: &[u8]) -> Result<Cow<'_, [u8]>, Malformed> {
    const END: &[u8] = b"</application>";
    let cut = find(head, b"<application>").and_then(|start| {
        let (before, rest) = head.split_at_checked(start)?;
        let end = rfind(rest, END)?.checked_add(END.len())?;
        let (application, after) = rest.split_at_checked(end)?;
        Some((before, application, after))
    });
    let Some((before, application, after)) = cut else {
        return Ok(Cow::Borrowed(head));
    };
    // Limits come after it. If they were in it, they must not be lost.
    if find(application, b"<usage_report").is_some() {
        return Err(Malformed::NotAStatus);
    }
    Ok(Cow::Owned([before, after].concat()))
}

fn cut_out_app_keys(body: &[u8]) -> Result<Parts<'_>, Malformed> {
    let Some((head, rest)) =
        find(body, b"<app_keys").and_then(|start| body.split_at_checked(start))
    else {
        return Ok(Parts {
            document: cut_out_application(body)?,
            app_keys: None,
        });
    };
    let (app_keys, tail) = rfind(rest, b"<hierarchy")
        .or_else(|| rfind(rest, b"</status"))
        .and_then(|end| rest.split_at_checked(end))
        .ok_or(Malformed::NotWellFormed)?;
    // Limits have no place after the keys. If they were there, they must not be lost.
    if find(app_keys, b"<usage_report").is_some() {
        return Err(Malformed::NotAStatus);
    }
    Ok(Parts {
        document: Cow::Owned([&cut_out_application(head)?, tail].concat()),
        app_keys: Some(app_keys),
    })
}

fn read_status(document: &mut Document<'_>, authorized: bool) -> Result<Authorization, Malformed> {
    let root = document.child()?.ok_or(Malformed::NotAStatus)?;
    if root.name().into_inner() != "status" {
        return Err(Malformed::NotAStatus);
    }
    let mut said = None;
    let mut limits = None;
    let mut hierarchy = None;
    while let Some(element) = document.child()? {
        let again = match element.name().into_inner() {
            "authorized" => said.replace(document.text()?).is_some(),
            "usage_reports" => limits.replace(read_usage_reports(document)?).is_some(),
            "hierarchy" => hierarchy.replace(read_hierarchy(document)?).is_some(),
            _ => {
                document.skip()?;
                false
            }
        };
        if again {
            return Err(Malformed::NotAStatus);
        }
    }
    if document.child()?.is_some() {
        return Err(Malformed::NotWellFormed);
    }
    let expected = if authorized { "true" } else { "false" };
    if said.as_deref() != Some(expected) {
        return Err(Malformed::Authorized);
    }
    Ok(Authorization {
        limits: limits.unwrap_or_default(),
        hierarchy: hierarchy.unwrap_or_default(),
        app_keys: None,
    })
}

fn read_usage_reports(document: &mut Document<'_>) -> Result<Vec<UsageReport>, Malformed> {
    let mut reports = Vec::new();
    while let Some(element) = document.child()? {
        if element.name().into_inner() != "usage_report" {
            return Err(Malformed::UsageReport);
        }
        if reports.len() >= MAX_USAGE_REPORTS {
            return Err(Malformed::TooManyUsageReports);
        }
        let metric = attribute(&element, "metric")?;
        let period = attribute(&element, "period")?;
        let values = read_values(document)?;
        reports.push(usage_report(metric, period, values).ok_or(Malformed::UsageReport)?);
    }
    Ok(reports)
}

/// The children of a `<usage_report>`, as text.
#[derive(Default)]
struct Values {
    start: Option<String>,
    end: Option<String>,
    maximum: Option<String>,
    current: Option<String>,
}

fn read_values(document: &mut Document<'_>) -> Result<Values, Malformed> {
    let mut values = Values::default();
    while let Some(element) = document.child()? {
        let value = match element.name().into_inner() {
            "period_start" => &mut values.start,
            "period_end" => &mut values.end,
            "max_value" => &mut values.maximum,
            "current_value" => &mut values.current,
            _ => {
                document.skip()?;
                continue;
            }
        };
        if value.replace(document.text()?).is_some() {
            return Err(Malformed::UsageReport);
        }
    }
    Ok(values)
}

fn usage_report(
    metric: Option<String>,
    period: Option<String>,
    values: Values,
) -> Option<UsageReport> {
    let metric = metric.filter(|name| is_metric(name))?;
    let period = Period::from_name(period?.as_bytes())?;
    let window = if period == Period::Eternity {
        period.window_at(0)
    } else {
        Window {
            start: unix_seconds(&values.start?)?,
            end: unix_seconds(&values.end?)?,
        }
    };
    (window.start < window.end).then_some(UsageReport {
        metric,
        period,
        window,
        maximum: number(&values.maximum?)?,
        current: number(&values.current?)?,
    })
}

/// `<metric name="parent" children="child child"/>`, once for every limit, so with
/// repetitions.
fn read_hierarchy(document: &mut Document<'_>) -> Result<Vec<(String, String)>, Malformed> {
    let mut pairs = Vec::new();
    let mut names = 0_usize;
    let mut entries = 0_usize;
    while let Some(element) = document.child()? {
        entries = entries.saturating_add(1);
        let parent = attribute(&element, "name")?.filter(|name| is_metric(name));
        let children = attribute(&element, "children")?;
        document.skip()?;
        let (Some(parent), Some(children), "metric", true) = (
            parent,
            children,
            element.name().into_inner(),
            entries <= MAX_USAGE_REPORTS,
        ) else {
            return Err(Malformed::Hierarchy);
        };
        for child in children.split_ascii_whitespace() {
            names = names.saturating_add(1);
            if !is_metric(child) || pairs.len() >= MAX_HIERARCHY || names > MAX_CHILDREN {
                return Err(Malformed::Hierarchy);
            }
            let pair = (parent.clone(), child.to_owned());
            if !pairs.contains(&pair) {
                pairs.push(pair);
            }
        }
    }
    Ok(pairs)
}

/// The keys of an `<app_keys>` that can be read in one way only.
///
/// An ampersand can be a key's own (the backend does not escape) or begin an entity (if it
/// did), so there is no telling which key it stands for.
fn read_app_keys(element: &[u8]) -> Option<Vec<String>> {
    let mut document = Document::new(str::from_utf8(element).ok()?);
    document
        .child()
        .ok()?
        .filter(|root| root.name().into_inner() == "app_keys")?;
    let mut keys = Vec::new();
    while let Some(element) = document.child().ok()? {
        document.skip().ok()?;
        let mut attributes = element.attributes();
        let (Some(Ok(id)), None) = (attributes.next(), attributes.next()) else {
            return None;
        };
        let key = id.value;
        let is_key = element.name().into_inner() == "key" && id.key.into_inner() == "id";
        let is_plain = !key.is_empty() && !key.contains('&') && key.len() <= MAX_KEY;
        if !is_key || !is_plain || keys.len() >= MAX_KEYS {
            return None;
        }
        keys.push(key.into_owned());
    }
    document.child().ok()?.is_none().then_some(keys)
}

fn is_metric(name: &str) -> bool {
    (1..=MAX_METRIC).contains(&name.len())
}

/// A decimal number without a sign. Overflow is no number: a limit is never guessed.
fn number(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

/// `2026-11-21 20:48:00 +0000`, in Unix seconds; no earlier than 1970.
fn unix_seconds(text: &str) -> Option<u64> {
    const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
    );
    let moment = OffsetDateTime::parse(text, FORMAT).ok()?;
    u64::try_from(moment.unix_timestamp()).ok()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

fn rfind(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .rposition(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const MINUTE: &str = "<usage_report metric=\"hits\" period=\"minute\">\
        <period_start>2026-11-21 20:48:00 +0000</period_start>\
        <period_end>2026-11-21 20:49:00 +0000</period_end>\
        <max_value>5</max_value><current_value>9</current_value></usage_report>";
    const HIERARCHY: &str = "<hierarchy><metric name=\"hits\" children=\"orders ads\"/>\
        <metric name=\"hits\" children=\"orders ads\"/><metric name=\"ads\" children=\"\"/></hierarchy>";

    fn read_true(inside: &str) -> Result<Authorization, Malformed> {
        let body = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><status><authorized>true</authorized>\
             <plan>P</plan>{inside}</status>"
        );
        read(body.as_bytes(), true)
    }

    fn with_report(report: &str) -> Result<Authorization, Malformed> {
        read_true(&format!("<usage_reports>{report}</usage_reports>"))
    }

    /// A reply with one limit, these keys as the backend writes them, and a hierarchy.
    fn with_keys(keys: &[&str]) -> Authorization {
        let keys: String = keys
            .iter()
            .map(|key| format!("<key id=\"{key}\"/>"))
            .collect();
        let authorization = read_true(&format!(
            "<usage_reports>{MINUTE}</usage_reports>\
             <app_keys app=\"a\" svc=\"1\">{keys}</app_keys>{HIERARCHY}"
        ))
        .unwrap();
        assert_eq!(authorization.limits.len(), 1);
        assert_eq!(authorization.hierarchy.len(), 2);
        authorization
    }

    #[test]
    fn a_limit_is_read_with_its_window() {
        let authorization = with_report(MINUTE).unwrap();
        let start = u64::try_from(datetime!(2026-11-21 20:48 UTC).unix_timestamp()).unwrap();
        assert_eq!(
            authorization.limits,
            [UsageReport {
                metric: "hits".into(),
                period: Period::Minute,
                window: Window {
                    start,
                    end: start + 60
                },
                maximum: 5,
                current: 9,
            }]
        );
        assert_eq!(
            authorization.limits[0].window,
            Period::Minute.window_at(start + 1)
        );
    }

    #[test]
    fn eternity_has_no_window_but_all_time() {
        let report = "<usage_report metric=\"a\" period=\"eternity\"><max_value>0</max_value>\
             <current_value>18446744073709551615</current_value></usage_report>";
        let limit = with_report(report).unwrap().limits.remove(0);
        assert_eq!(
            limit.window,
            Window {
                start: 0,
                end: u64::MAX
            }
        );
        assert_eq!((limit.maximum, limit.current), (0, u64::MAX));
    }

    #[test]
    fn a_key_in_an_oauth_reply_changes_no_limit() {
        let with_key = |key: &str| {
            read_true(&format!(
                "<application><id>a</id><key>{key}</key><redirect_url></redirect_url></application>\
                 <plan>p</plan><usage_reports>{MINUTE}</usage_reports>"
            ))
        };
        let plain = with_key("k").unwrap();
        assert_eq!(plain.limits.len(), 1);
        for key in [
            "a&b",
            "<",
            "</key></application><authorized>false</authorized>",
            "]]>",
        ] {
            assert_eq!(with_key(key), Ok(plain.clone()), "{key}");
        }
        let more = format!("</key></application><usage_reports>{MINUTE}</usage_reports><key>");
        assert!(with_key(&more).is_err());
        assert!(with_key("<app_keys").is_err());
    }

    #[test]
    fn white_space_between_elements_is_nothing() {
        let spaced = MINUTE.replace('>', ">\n ").replace('<', " \t<");
        assert_eq!(with_report(&spaced), with_report(MINUTE));
    }

    #[test]
    fn a_limit_that_cannot_be_read_is_not_left_out() {
        for (from, to) in [
            ("\"minute\"", "\"fortnight\""),
            ("metric=\"hits\"", "metric=\"\""),
            ("metric=\"hits\"", ""),
            ("<max_value>5</max_value>", ""),
            (
                "<max_value>5</max_value>",
                "<max_value>5</max_value><max_value>5</max_value>",
            ),
            (">5<", ">-5<"),
            (">5<", ">+5<"),
            (">5<", "><"),
            (">5<", ">18446744073709551616<"),
            (">9<", ">9.5<"),
            ("20:49:00", "20:48:00"),
            ("20:49:00", "20:60:00"),
            ("2026-11-21 20:48", "1969-11-21 20:48"),
            ("<period_end>2026-11-21 20:49:00 +0000</period_end>", ""),
        ] {
            let report = MINUTE.replace(from, to);
            assert_ne!(report, MINUTE);
            assert_eq!(
                with_report(&report),
                Err(Malformed::UsageReport),
                "{report}"
            );
        }
        let long = MINUTE.replace("hits", &"h".repeat(MAX_METRIC + 1));
        assert_eq!(with_report(&long), Err(Malformed::UsageReport));
        assert_eq!(with_report("<limit/>"), Err(Malformed::UsageReport));
    }

    #[test]
    fn limits_beyond_the_bound_are_not_left_out() {
        assert!(with_report(&MINUTE.repeat(MAX_USAGE_REPORTS)).is_ok());
        assert_eq!(
            with_report(&MINUTE.repeat(MAX_USAGE_REPORTS + 1)),
            Err(Malformed::TooManyUsageReports)
        );
        let body = vec![b' '; MAX_BODY + 1];
        assert_eq!(read(&body, true), Err(Malformed::TooLarge));
    }

    #[test]
    fn a_reply_that_is_cut_off_anywhere_is_not_believed() {
        let body = format!(
            "<status><authorized>true</authorized><usage_reports>{MINUTE}</usage_reports>\
             <app_keys app=\"a\" svc=\"1\"><key id=\"k\"/></app_keys>{HIERARCHY}</status>"
        );
        assert!(read(body.as_bytes(), true).is_ok());
        for end in 0..body.len() {
            assert!(read(&body.as_bytes()[..end], true).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_body_must_say_what_the_status_said() {
        for (body, why) in [
            (
                "<status><authorized>false</authorized></status>",
                Malformed::Authorized,
            ),
            (
                "<status><authorized>TRUE</authorized></status>",
                Malformed::Authorized,
            ),
            ("<status><plan>true</plan></status>", Malformed::Authorized),
            (
                "<status><reason><authorized>true</authorized></reason></status>",
                Malformed::Authorized,
            ),
            (
                "<status><authorized>true</authorized><authorized>true</authorized></status>",
                Malformed::NotAStatus,
            ),
            ("<error code=\"x\"/>", Malformed::NotAStatus),
            ("", Malformed::NotAStatus),
            (
                "<status><authorized>true</authorized></status><status/>",
                Malformed::NotWellFormed,
            ),
        ] {
            assert_eq!(read(body.as_bytes(), true), Err(why), "{body}");
        }
    }

    #[test]
    fn two_lists_of_limits_are_one_too_many() {
        let twice = format!("<usage_reports>{MINUTE}</usage_reports>").repeat(2);
        assert_eq!(read_true(&twice), Err(Malformed::NotAStatus));
    }

    #[test]
    fn children_are_separated_by_spaces_and_pairs_stand_once() {
        let authorization = read_true(HIERARCHY).unwrap();
        let pair = |parent: &str, child: &str| (parent.to_owned(), child.to_owned());
        assert_eq!(
            authorization.hierarchy,
            [pair("hits", "orders"), pair("hits", "ads")]
        );
        assert_eq!(
            read_true("<hierarchy><metric children=\"a\"/></hierarchy>"),
            Err(Malformed::Hierarchy)
        );
        assert_eq!(
            read_true("<hierarchy><metric name=\"a\"/></hierarchy>"),
            Err(Malformed::Hierarchy)
        );
    }

    #[test]
    fn plain_keys_are_listed() {
        let keys = |keys: &[&str]| with_keys(keys).app_keys;
        assert_eq!(
            keys(&["k3", "k 1"]),
            Some(vec!["k3".to_owned(), "k 1".to_owned()])
        );
        assert_eq!(keys(&[]), Some(vec![]));
        assert_eq!(read_true("").unwrap().app_keys, None);
    }

    #[test]
    fn keys_that_break_the_document_are_unknown_and_change_nothing_else() {
        for key in [
            "a&b",
            "a&amp;b",
            "a\"b",
            "a\" b=\"c",
            "",
            "\"/></app_keys><hierarchy></hierarchy></status><!--",
            "\"/></app_keys></status>",
            "\"/></app_keys><hierarchy><metric name=\"ads\" children=\"hits\"/></hierarchy>",
            "\"/><plan/><key id=\"",
            "\"></key></app_keys><app_keys><key id=\"x",
            "\"/>text<key id=\"x",
        ] {
            let authorization = with_keys(&["k1", key]);
            assert_eq!(authorization.app_keys, None, "{key}");
        }
    }

    #[test]
    fn keys_that_are_not_utf8_are_unknown_and_change_nothing_else() {
        let body = [
            b"<status><authorized>true</authorized><app_keys><key id=\"\xff\"/></app_keys>"
                .as_slice(),
            HIERARCHY.as_bytes(),
            b"</status>",
        ]
        .concat();
        let authorization = read(&body, true).unwrap();
        assert_eq!(
            (authorization.app_keys, authorization.hierarchy.len()),
            (None, 2)
        );
    }

    #[test]
    fn a_full_list_may_not_be_the_whole_list() {
        let keys = vec!["k"; MAX_KEYS + 1];
        assert_eq!(
            with_keys(&keys[1..]).app_keys.map(|keys| keys.len()),
            Some(255)
        );
        assert_eq!(with_keys(&keys).app_keys, None);
        assert_eq!(
            with_keys(&["k".repeat(MAX_KEY + 1).as_str()]).app_keys,
            None
        );
    }

    #[test]
    fn limits_after_the_keys_are_not_lost() {
        let inside =
            format!("<app_keys></app_keys><usage_reports>{MINUTE}</usage_reports>{HIERARCHY}");
        assert_eq!(read_true(&inside), Err(Malformed::NotAStatus));
    }

    #[test]
    fn debug_output_shows_no_key() {
        let shown = format!("{:?}", with_keys(&["hidden"]));
        assert!(shown.contains("app_keys: Some(1)"), "{shown}");
        assert!(!shown.contains("hidden"));
    }

    /// Each as large as a body may be, and made so that something in it is looked at often.
    #[test]
    fn a_bomb_is_malformed_or_of_no_consequence() {
        let of = |children: String, entries: u32| {
            let entry = |number| format!("<metric name=\"p{number}\" children=\"{children}\"/>");
            let entries: String = (0..entries).map(entry).collect();
            read_true(&format!("<hierarchy>{entries}</hierarchy>"))
        };
        let known = of("a b c d ".repeat(60), 255).unwrap();
        assert_eq!(known.hierarchy.len(), 1_020);
        assert_eq!(of("a b c d ".repeat(500), 250), Err(Malformed::Hierarchy));
        let attributes: String = (0..90_000)
            .map(|number| format!(" a{number}=\"\""))
            .collect();
        assert_eq!(
            with_report(&format!("<usage_report{attributes}/>")),
            Err(Malformed::UsageReport)
        );
        let entities = "&amp;".repeat(200_000);
        assert!(read_true(&format!("<reason>{entities}</reason>")).is_ok());
        assert_eq!(
            read_true(&format!("<authorized>{entities}</authorized>")),
            Err(Malformed::TooLarge)
        );
        assert_eq!(read_true(&"<a>".repeat(300_000)), Err(Malformed::TooDeep));
        assert!(read_true(&"<app_keys>".repeat(90_000)).is_ok());
    }
}
