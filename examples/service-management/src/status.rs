//! The verdict on an application: whether limits hold, and the document and
//! headers that tell of it (`transactor/status.rb`, `usage_report.rb`,
//! `limit_headers.rb`); protocol sections 7 to 9.

use crate::calendar::{Period, status_time};
use crate::dataset::{Application, Limit, Service};
use crate::error::{ApiError, Rejection};
use crate::message::XML_HEAD;
use crate::parameters::ParseError;
use crate::parameters::{Parameter, Parameters, parse};
use crate::usage::{process, sent};
use quick_xml::escape::partial_escape;
use std::collections::HashSet;
use std::fmt::Write;

/// The most application keys that are listed.
const MOST_KEYS: usize = 256;

/// The options of the `3scale-options` header; protocol section 9.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extensions {
    pub no_body: bool,
    pub rejection_reason_header: bool,
    pub limit_headers: bool,
    pub hierarchy: bool,
    pub flat_usage: bool,
    pub list_app_keys: bool,
}

impl Extensions {
    /// Reads the header; `no_body` may also be a parameter of the request.
    pub fn parse(header: Option<&[u8]>, parameters: &Parameters) -> Result<Self, ParseError> {
        let options = parse(header.unwrap_or_default())?;
        let on = |name: &str| options.get(name.as_bytes()) == Some(&Parameter::Text(b"1".to_vec()));
        let no_body = crate::parameters::get(&options, "no_body")
            .or_else(|| crate::parameters::get(parameters, "no_body"));
        Ok(Self {
            no_body: no_body
                .is_some_and(|value| !matches!(value.text().as_deref(), Some("0" | "false"))),
            rejection_reason_header: on("rejection_reason_header"),
            limit_headers: on("limit_headers"),
            hierarchy: on("hierarchy"),
            flat_usage: on("flat_usage"),
            list_app_keys: on("list_app_keys"),
        })
    }
}

/// A limit and what is stored for its present window.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub limit: Limit,
    pub stored: u128,
}

/// What is known of one authorize or authrep call.
#[derive(Debug)]
pub(crate) struct Status<'a> {
    pub service: &'a Service,
    pub application: &'a Application,
    /// For the `oauth_` endpoints: the element that holds the redirect URL.
    pub redirect_element: Option<&'static str>,
    pub usage: Option<&'a Parameters>,
    /// Whether the usage is to be reported (authrep), not only predicted.
    pub reports_usage: bool,
    /// In the order in which they are listed.
    pub limits: Vec<Counted>,
    pub extensions: Extensions,
    pub rejection: Option<Rejection>,
    /// Unix milliseconds.
    pub now: u64,
}

impl Status<'_> {
    /// Whether the usage of the call, or what is stored if it has none, is
    /// within the limits.
    pub fn within_limits(&self) -> Result<bool, ApiError> {
        let Some(usage) = self.usage else {
            let mut limits = self.limits.iter();
            return Ok(limits.all(|counted| counted.stored <= u128::from(counted.limit.maximum)));
        };
        let usage = process(usage, &self.service.metrics, self.extensions.flat_usage)?;
        Ok(self.limits.iter().all(|counted| {
            usage.get(&counted.limit.metric).is_none_or(|amount| {
                amount.apply(counted.stored) <= u128::from(counted.limit.maximum)
            })
        }))
    }

    /// The status document.
    pub fn document(&self) -> String {
        let mut xml = format!("{XML_HEAD}<status>");
        match &self.rejection {
            None => xml.push_str("<authorized>true</authorized>"),
            // The backend does not escape the reason (protocol section 14).
            Some(rejection) => push(
                &mut xml,
                format_args!("<authorized>false</authorized><reason>{rejection}</reason>"),
            ),
        }
        if let Some(element) = self.redirect_element {
            let application = self.application;
            let key = application.keys.first().map_or("", String::as_str);
            let url = application.redirect_url.as_deref().unwrap_or_default();
            push(
                &mut xml,
                format_args!(
                    "<application><id>{}</id><key>{key}</key><{element}>{}</{element}></application>",
                    application.id,
                    partial_escape(url)
                ),
            );
        }
        // How the plans of the recorded data are named.
        let plan = format!("Plan {} & <co>", self.application.plan);
        push(
            &mut xml,
            format_args!("<plan>{}</plan>", partial_escape(plan.as_str())),
        );
        if !self.limits.is_empty() {
            xml.push_str("<usage_reports>");
            for counted in &self.limits {
                self.usage_report(&mut xml, counted);
            }
            xml.push_str("</usage_reports>");
        }
        if self.extensions.list_app_keys {
            push(
                &mut xml,
                format_args!(
                    "<app_keys app=\"{}\" svc=\"{}\">",
                    self.application.id, self.service.id
                ),
            );
            for key in self.application.keys.iter().take(MOST_KEYS) {
                push(&mut xml, format_args!("<key id=\"{key}\"/>"));
            }
            xml.push_str("</app_keys>");
        }
        if self.extensions.hierarchy {
            self.hierarchy(&mut xml);
        }
        xml.push_str("</status>");
        xml
    }

    fn usage_report(&self, xml: &mut String, counted: &Counted) {
        let Limit {
            metric,
            period,
            maximum,
        } = counted.limit;
        let name = self.service.metrics.name(metric);
        let exceeded = if counted.stored > u128::from(maximum) {
            " exceeded=\"true\""
        } else {
            ""
        };
        push(
            xml,
            format_args!(
                "<usage_report metric=\"{name}\" period=\"{}\"{exceeded}>",
                period.name()
            ),
        );
        if let (start, Some(end)) = period.window(self.seconds()) {
            push(
                xml,
                format_args!(
                    "<period_start>{}</period_start><period_end>{}</period_end>",
                    status_time(start),
                    status_time(end)
                ),
            );
        }
        push(
            xml,
            format_args!(
                "<max_value>{maximum}</max_value><current_value>{}</current_value></usage_report>",
                self.current(counted)
            ),
        );
    }

    fn hierarchy(&self, xml: &mut String) {
        let metrics = &self.service.metrics;
        xml.push_str("<hierarchy>");
        for counted in &self.limits {
            let children: Vec<_> = metrics
                .children(counted.limit.metric)
                .map(|child| metrics.name(child))
                .collect();
            push(
                xml,
                format_args!(
                    "<metric name=\"{}\" children=\"{}\"/>",
                    metrics.name(counted.limit.metric),
                    children.join(" ")
                ),
            );
        }
        xml.push_str("</hierarchy>");
    }

    /// The `3scale-limit-*` headers.
    pub fn limit_headers(&self) -> Vec<(&'static str, String)> {
        let usage = self.usage.filter(|usage| !usage.is_empty());
        let concerned = usage.map(|usage| self.with_ancestors(usage));
        let concerned = self
            .limits
            .iter()
            .filter(|counted| {
                concerned
                    .as_ref()
                    .is_none_or(|metrics| metrics.contains(&counted.limit.metric))
            })
            .map(|counted| (self.remaining_calls(counted), counted.limit));
        // The backend's comparison is no order: an unconstrained limit precedes a
        // constrained one and follows it. So this must be its very procedure,
        // which keeps the first and replaces it by what precedes it.
        let tightest =
            concerned.reduce(|best, next| if precedes(next, best) { next } else { best });
        match tightest {
            Some((Some(remaining), limit)) => vec![
                ("3scale-limit-remaining", remaining.to_string()),
                ("3scale-limit-reset", self.reset(limit.period)),
                ("3scale-limit-max-value", limit.maximum.to_string()),
            ],
            _ => vec![
                ("3scale-limit-remaining", "-1".to_owned()),
                ("3scale-limit-reset", "-1".to_owned()),
            ],
        }
    }

    fn with_ancestors(&self, usage: &Parameters) -> HashSet<usize> {
        let metrics = &self.service.metrics;
        usage
            .keys()
            .filter_map(|name| metrics.find(&String::from_utf8_lossy(name)))
            .flat_map(|metric| std::iter::once(metric).chain(metrics.ancestors(metric)))
            .collect()
    }

    /// Seconds to the end of the present window, rounded up.
    fn reset(&self, period: Period) -> String {
        let (_, end) = period.window(self.seconds());
        end.map_or_else(
            || "-1".to_owned(),
            |end| {
                let end = u64::try_from(end).unwrap_or(0).saturating_mul(1_000);
                end.saturating_sub(self.now).div_ceil(1_000).to_string()
            },
        )
    }

    /// How many more calls like this one the limit lets through; none: any number.
    fn remaining_calls(&self, counted: &Counted) -> Option<u128> {
        let maximum = u128::from(counted.limit.maximum);
        let remaining = maximum.saturating_sub(self.current(counted));
        if remaining == 0 {
            return Some(0);
        }
        let usage = self
            .usage
            .map_or(0, |usage| self.applied(usage, counted.limit.metric, 0));
        remaining.checked_div(usage)
    }

    /// The value that is shown: with what this call will report, if it will.
    fn current(&self, counted: &Counted) -> u128 {
        match self.usage {
            Some(usage) if self.reports_usage && self.rejection.is_none() => {
                self.applied(usage, counted.limit.metric, counted.stored)
            }
            _ => counted.stored,
        }
    }

    /// A counter after the usage of the metric and of all below it. The backend
    /// does this by name, and so also when the usage is flat.
    fn applied(&self, usage: &Parameters, metric: usize, counter: u128) -> u128 {
        let metrics = &self.service.metrics;
        std::iter::once(metric)
            .chain(metrics.descendants(metric))
            .fold(counter, |counter, metric| {
                sent(usage, metrics.name(metric)).apply(counter)
            })
    }

    fn seconds(&self) -> i64 {
        i64::try_from(self.now / 1_000).unwrap_or(i64::MAX)
    }
}

/// Whether the backend holds one limit for tighter than another.
fn precedes(one: (Option<u128>, Limit), other: (Option<u128>, Limit)) -> bool {
    match (one.0, other.0) {
        (left, right) if left == right => one.1.period > other.1.period,
        (None, _) | (_, None) => true,
        (Some(left), Some(right)) => left < right,
    }
}

fn push(xml: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = xml.write_fmt(text);
}
