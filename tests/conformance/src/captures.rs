//! Exchanges captured from the real backend (`tests/data/captures/`): what was sent, and
//! what came back.
//!
//! Apart from [`crate::replay`], which sends them again, because reading them has its own
//! difficulties: long requests were shortened when they were written down, and nothing
//! says when an exchange took place.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::replay::Answer;

/// The captures that are in the repository.
#[must_use]
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/captures")
}

/// The data that the backend held when they were captured, as YAML.
#[must_use]
pub fn dataset() -> &'static str {
    include_str!("../../data/dataset.yaml")
}

/// A request as it was sent.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The method, in capitals.
    pub method: String,
    /// Path and query, byte for byte.
    pub target: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Sent {
    /// A question: a GET of this target, without headers.
    #[must_use]
    pub fn get(target: impl Into<String>) -> Self {
        Self {
            method: "GET".to_owned(),
            target: target.into(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A report with this form.
    #[must_use]
    pub fn report(form: impl Into<String>) -> Self {
        let media_type = "application/x-www-form-urlencoded";
        Self {
            method: "POST".to_owned(),
            target: "/transactions.xml".to_owned(),
            headers: vec![("content-type".to_owned(), media_type.to_owned())],
            body: form.into().into_bytes(),
        }
    }

    /// The first header of that name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

/// An exchange.
#[derive(Clone, Debug)]
pub struct Capture {
    /// The name of its file, without the ending; the names are in the order of capturing.
    pub name: String,
    /// What was sent.
    pub sent: Sent,
    /// What came back.
    pub answer: Answer,
}

impl Capture {
    /// Reads every capture of a folder, in order.
    ///
    /// # Errors
    /// The folder or a file does not read, or a file is no capture. The message names it.
    pub fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
            .with_context(|| folder.display().to_string())?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()?;
        paths.retain(|path| {
            path.extension()
                .is_some_and(|extension| extension == "http")
        });
        paths.sort();
        ensure!(!paths.is_empty(), "{}: no capture", folder.display());
        paths
            .iter()
            .map(|path| Self::read(path).with_context(|| path.display().to_string()))
            .collect()
    }

    fn read(path: &Path) -> Result<Self> {
        let name = path.file_stem().context("no name")?;
        let text = std::fs::read_to_string(path)?;
        let (request, answer) = text.split_once("\n<<<<\n").context("no answer")?;
        let (head, body) = request.split_once("\r\n\r\n").unwrap_or((request, ""));
        let mut lines = head.split("\r\n");
        let mut first = lines.next().unwrap_or_default().split(' ');
        let (Some(method), Some(target)) = (first.next(), first.next()) else {
            bail!("no request line");
        };
        let headers = headers(lines);
        let length = header(&headers, "content-length").map_or(Ok(0), str::parse)?;
        let body = restore(body, length)?;
        let (head, answer_body) = answer.split_once("\r\n\r\n").context("no answer's head")?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            sent: Sent {
                method: method.to_owned(),
                target: restore_target(target)?,
                headers,
                body,
            },
            answer: Answer {
                status: status.context("no status")?.parse()?,
                headers: self::headers(lines),
                // The line break is the file's own.
                body: answer_body
                    .strip_suffix('\n')
                    .unwrap_or(answer_body)
                    .to_owned(),
            },
        })
    }

    /// The moment (Unix seconds) that the answer was given at: as far as it tells, and
    /// else as close as can be to that of the capture before.
    ///
    /// # Errors
    /// The answer has a time that is none.
    pub fn moment(&self, before: i64) -> Result<i64> {
        const FORMAT: &[BorrowedFormatItem<'_>] = format_description!(
            "[year]-[month]-[day] [hour]:[minute]:[second] [offset_hour sign:mandatory][offset_minute]"
        );
        let mut reports = self.answer.body.split("<usage_report ").skip(1);
        let minute = match reports.find(|report| report.contains("period=\"minute\"")) {
            Some(report) => {
                let start = between(report, "<period_start>", "</period_start>");
                OffsetDateTime::parse(start.context("no start")?, FORMAT)?.unix_timestamp()
            }
            None => before - before % 60,
        };
        let reset = self.answer.header("3scale-limit-reset");
        Ok(match reset.map(str::parse::<i64>).transpose()? {
            Some(reset @ 1..=60) => minute + 60 - reset,
            // Of limits that end later than the minute there are only those of a day.
            Some(reset) if reset > 60 => minute - minute % 86_400 + 86_400 - reset,
            _ => before.max(minute),
        })
    }
}

fn headers<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<(String, String)> {
    lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect()
}

pub(crate) fn header<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    let mut headers = headers.iter();
    headers
        .find(|(other, _)| other == name)
        .map(|(_, value)| value.as_str())
}

pub(crate) fn between<'a>(text: &'a str, start: &str, end: &str) -> Option<&'a str> {
    Some(text.split_once(start)?.1.split_once(end)?.0)
}

/// Long bodies were shortened when they were written down: `start...[N bytes]`.
fn restore(body: &str, length: usize) -> Result<Vec<u8>> {
    let Some((start, _)) = body.split_once("...[") else {
        // The file has a line break of its own after the body.
        let body = body.as_bytes();
        return Ok(body.get(..length).unwrap_or(body).to_vec());
    };
    if start.ends_with('y') {
        let mut body = start.as_bytes().to_vec();
        body.resize(length, b'y');
        return Ok(body);
    }
    let mut body = "service_token=svc-token&service_id=1001".to_owned();
    for index in 0.. {
        if body.len() >= length {
            break;
        }
        body.push_str(&format!(
            "&transactions[{index}][user_key]=allpkey&transactions[{index}][usage][hits]=1"
        ));
    }
    ensure!(body.len() == length, "the body is not what was captured");
    Ok(body.into_bytes())
}

fn restore_target(target: &str) -> Result<String> {
    let Some((start, rest)) = target.split_once("...[") else {
        return Ok(target.to_owned());
    };
    let digits = rest.split(|digit: char| !digit.is_ascii_digit()).next();
    let request: usize = digits.unwrap_or_default().parse()?;
    let others = "GET  HTTP/1.1\r\nHost: backend.local\r\n\r\n".len();
    Ok(format!(
        "{start}{}",
        "y".repeat(request - others - start.len())
    ))
}
