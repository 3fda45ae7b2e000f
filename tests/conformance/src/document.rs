//! The document in an answer to a question, as far as it is compared.
//!
//! Apart from those who compare: answers are held against recordings and against captures,
//! and a settled backend is known by what it reports.

use std::collections::{BTreeMap, BTreeSet};

use quick_xml::events::{BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use crate::recording::UsageReport;

/// What is compared of a body: a `<status>`, an `<error>`, or nothing.
#[derive(Debug, Default)]
pub struct Document {
    /// The `<error code>`.
    pub error: Option<String>,
    /// What `<authorized>` says.
    pub authorized: Option<String>,
    /// The plan's name.
    pub plan: Option<String>,
    /// The usage reports, in order.
    pub reports: Vec<UsageReport>,
    /// Metrics and their children.
    pub hierarchy: BTreeMap<String, Vec<String>>,
    /// The application's keys, if they were asked for.
    pub keys: BTreeSet<String>,
}

impl Document {
    /// Reads a body. Of one that is not XML, such as an empty one, nothing is found.
    ///
    /// # Errors
    /// It is not well-formed, which happens: the backend does not escape `<reason>`.
    pub fn read(body: &str) -> Result<Self, quick_xml::Error> {
        let mut document = Self::default();
        let mut reader = Reader::from_str(body);
        reader.config_mut().expand_empty_elements = true;
        let mut text = String::new();
        loop {
            match reader.read_event()? {
                Event::Start(element) => {
                    text.clear();
                    document.open(&element)?;
                }
                Event::Text(more) => text.push_str(&more.into_inner()),
                // As written: `&amp;` stays what it is.
                Event::GeneralRef(name) => text.push_str(&format!("&{};", name.into_inner())),
                Event::End(element) => document.close(element.name().into_inner(), &text),
                Event::Eof => return Ok(document),
                _ => {}
            }
        }
    }

    fn open(&mut self, element: &BytesStart<'_>) -> Result<(), quick_xml::Error> {
        let attribute = |name| -> Result<Option<String>, quick_xml::Error> {
            element
                .try_get_attribute(name)?
                .map(|attribute| {
                    attribute
                        .normalized_value(XmlVersion::Implicit1_0)
                        .map(|value| value.into_owned())
                })
                .transpose()
        };
        match element.name().into_inner() {
            "error" => self.error = attribute("code")?,
            "usage_report" => self.reports.push(UsageReport {
                metric: attribute("metric")?.unwrap_or_default(),
                period: attribute("period")?.unwrap_or_default(),
                start: None,
                end: None,
                max: 0,
                current: 0,
                exceeded: attribute("exceeded")?.as_deref() == Some("true"),
            }),
            "key" => self.keys.extend(attribute("id")?),
            "metric" => {
                let children = attribute("children")?.unwrap_or_default();
                let children = children.split_whitespace().map(str::to_owned);
                let metric = attribute("name")?.unwrap_or_default();
                self.hierarchy.insert(metric, children.collect());
            }
            _ => {}
        }
        Ok(())
    }

    fn close(&mut self, element: &str, text: &str) {
        match element {
            "authorized" => self.authorized = Some(text.to_owned()),
            "plan" => self.plan = Some(text.to_owned()),
            _ => {}
        }
        let Some(report) = self.reports.last_mut() else {
            return;
        };
        match element {
            "period_start" => report.start = Some(text.to_owned()),
            "period_end" => report.end = Some(text.to_owned()),
            "max_value" => report.max = text.parse().unwrap_or(u64::MAX),
            "current_value" => report.current = text.parse().unwrap_or(u64::MAX),
            _ => {}
        }
    }
}
