//! The question which metrics a service has: about an application, with a usage of 0 of each.
//!
//! Apart from the usual question, which names no usage: this one is about the service, and its answer
//! is none about the application, of which it may say less (with usage, only limits of
//! the metrics in it are looked at; protocol section 8).
//!
//! A usage of 0 is added to what is counted, so it exceeds nothing that is not exceeded, and authorize
//! counts nothing. Each name is looked up, in the order of the parameters, whether the
//! application has a limit of it or not, and the first that is unknown ends the question with 404
//! `metric_invalid` (`lib/3scale/backend/metric/collection.rb`; capture `a21`). A refusal for
//! the key, the referrer or a state comes before that and says nothing of metrics (section 6).

use super::answer::AuthorizeAnswer;
use super::misconfiguration::Misconfiguration;
use super::reply::{Failure, Reply};
use super::request::push_encoded;
use super::xml::error_text;

/// What service management said of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsAnswer {
    /// It has all that were asked about.
    AllKnown,
    /// It does not have this one of those; or one of them, if the answer does not say
    /// which.
    Unknown(Option<String>),
    /// It said something else: of the application, of this gateway, or that it failed.
    Useless,
    /// It did not answer.
    Failed,
}

/// Appends a usage of 0 of each metric to the target of a question about an application.
pub fn push_no_usage(target: &mut String, metrics: &[String]) {
    for metric in metrics {
        target.push_str("&usage%5B");
        push_encoded(target, metric.as_bytes());
        target.push_str("%5D=0");
    }
}

/// What a reply says of the metrics that were asked about, given what it says otherwise.
#[must_use]
pub fn metrics_answer(
    answer: &AuthorizeAnswer,
    reply: &Reply<'_>,
    metrics: &[String],
) -> MetricsAnswer {
    match answer {
        AuthorizeAnswer::Known(_) => MetricsAnswer::AllKnown,
        AuthorizeAnswer::Misconfigured(Misconfiguration::MetricInvalid) => {
            let text = error_text(reply.body);
            let named = metrics
                .iter()
                .find(|metric| text.as_ref() == Some(&format!("metric \"{metric}\" is invalid")));
            MetricsAnswer::Unknown(named.cloned())
        }
        // It can fail here and take reports all the same.
        AuthorizeAnswer::Failed(
            Failure::ServerError(_) | Failure::UnexpectedStatus(_) | Failure::Malformed(_),
        )
        | AuthorizeAnswer::Denied(_)
        | AuthorizeAnswer::Misconfigured(_) => MetricsAnswer::Useless,
        AuthorizeAnswer::Failed(_) => MetricsAnswer::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::authorize_answer;
    use super::super::request::Identification;
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn answer(status: u16, reason: Option<&str>, body: &str) -> MetricsAnswer {
        let reply = Reply {
            status,
            rejection_reason: reason.map(str::as_bytes),
            from_upstream: true,
            body: body.as_bytes(),
        };
        let metrics = ["hits", "<nope>"].map(str::to_owned);
        let answer = authorize_answer(&reply, Identification::UserKey);
        metrics_answer(&answer, &reply, &metrics)
    }

    #[test]
    fn a_metric_cannot_become_a_parameter() {
        let mut target = "/x?y=z".to_owned();
        push_no_usage(&mut target, &["a&b=c#".to_owned(), "d/e".to_owned()]);
        assert_eq!(
            target,
            "/x?y=z&usage%5Ba%26b%3Dc%23%5D=0&usage%5Bd%2Fe%5D=0"
        );
    }

    #[test]
    fn the_metric_that_is_unknown_is_read_escaped_or_not_and_only_if_it_was_asked_about() {
        let named = |text: &str| {
            let body =
                format!("<?xml version=\"1.0\"?><error code=\"metric_invalid\">{text}</error>");
            answer(404, None, &body)
        };
        let unknown = |name: &str| MetricsAnswer::Unknown(Some(name.to_owned()));
        assert_eq!(named("metric \"hits\" is invalid"), unknown("hits"));
        assert_eq!(
            named("metric &quot;&lt;nope&gt;&quot; is invalid"),
            unknown("<nope>")
        );
        for text in [
            "metric \"other\" is invalid",
            "metric \"<nope>\" is invalid",
            "no metric \"hits\" is invalid",
            "",
        ] {
            assert_eq!(named(text), MetricsAnswer::Unknown(None), "{text}");
        }
    }

    #[test]
    fn only_what_comes_after_the_look_at_metrics_says_that_all_are_known() {
        let authorized = "<status><authorized>true</authorized></status>";
        let limited = "<status><authorized>false</authorized><usage_reports>\
            <usage_report metric=\"hits\" period=\"eternity\"><max_value>1</max_value>\
            <current_value>2</current_value></usage_report></usage_reports></status>";
        let denied = "<status><authorized>false</authorized></status>";
        assert_eq!(answer(200, None, authorized), MetricsAnswer::AllKnown);
        let over = Some("limits_exceeded");
        assert_eq!(answer(409, over, limited), MetricsAnswer::AllKnown);
        for reason in ["application_not_active", "application_key_invalid"] {
            assert_eq!(answer(409, Some(reason), denied), MetricsAnswer::Useless);
        }
        let error = |code| format!("<error code=\"{code}\">text</error>");
        for (status, code) in [(403, "user_key_invalid"), (403, "service_token_invalid")] {
            assert_eq!(answer(status, None, &error(code)), MetricsAnswer::Useless);
        }
        for status in [429, 500, 503] {
            assert_eq!(answer(status, None, ""), MetricsAnswer::Useless, "{status}");
        }
        assert_eq!(answer(0, None, ""), MetricsAnswer::Failed);
    }
}
