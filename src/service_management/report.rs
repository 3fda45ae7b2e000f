//! The report of usage: the form body of `POST /transactions.xml`, filled one
//! transaction at a time within what the backend accepts.
//!
//! Apart from who decides what to report: a batcher only has to know that a transaction
//! went in, or why it did not.
//!
//! The backend answers 202 before it looks at metrics, usage and applications, and later
//! drops the whole batch for one bad transaction, without a word to the caller (protocol
//! section 10). What can be seen here to be bad is therefore refused here.

use std::fmt::Write as _;

use super::request::{Application, ServiceAccess, push_access, push_parameter};

/// Where reports go, by `POST`.
pub const REPORT_PATH: &str = "/transactions.xml";

/// The `content-type` of a report.
pub const REPORT_CONTENT_TYPE: &str = "application/x-www-form-urlencoded";

/// The most form parameters that the backend takes: 4,096 pass, 4,098 are a 400 (captures
/// `f32` and `f33`).
pub const MAX_REPORT_PARAMETERS: usize = 4_096;

/// The most bytes that the backend takes in a form: 4 MiB (protocol section 4).
pub const MAX_REPORT_BYTES: usize = 4 * 1_024 * 1_024;

/// The largest usage of one metric in one transaction. The backend takes more and then
/// breaks on it: its counters are signed 64-bit, and the rest of the batch is applied again at
/// every retry (protocol section 11, "poison value").
pub const MAX_USAGE: u64 = i64::MAX.unsigned_abs();

/// Parameters that every report has: the service's token and id.
const ACCESS_PARAMETERS: usize = 2;

/// What one application used at one time.
#[derive(Clone, Copy, Debug)]
pub struct Transaction<'a> {
    /// Whose usage it is.
    pub application: Application<'a>,
    /// When it was admitted, in Unix seconds. The backend accepts 24 hours back and 1 hour
    /// ahead, measured when its worker runs, and takes the window from it.
    pub at: u64,
    /// Metrics and what was used of each, at most [`MAX_USAGE`].
    pub usage: &'a [(&'a str, u64)],
}

/// Why a transaction is not in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPushed {
    /// It goes into the next report: send this one first.
    #[error("the report is full")]
    Full,
    /// It fits into no report, not even alone.
    #[error("the transaction is larger than a report may be")]
    TooLarge,
    /// A metric's name is empty or has a square bracket, which would be read as nesting.
    #[error("a metric's name cannot be written as a form parameter")]
    MetricName,
    /// A usage is above [`MAX_USAGE`].
    #[error("a usage is beyond the backend's counters")]
    Usage,
}

/// A report that is being filled. Holds at most [`MAX_REPORT_PARAMETERS`] parameters and
/// [`MAX_REPORT_BYTES`] bytes, and is a well-formed form at every moment.
pub struct ReportBody {
    text: String,
    parameters: usize,
    transactions: usize,
}

impl ReportBody {
    /// A report of nothing yet, for one service.
    #[must_use]
    pub fn new(service: &ServiceAccess<'_>) -> Self {
        let mut text = String::new();
        push_access(&mut text, service);
        Self {
            text,
            parameters: ACCESS_PARAMETERS,
            transactions: 0,
        }
    }

    /// Adds a transaction, or leaves the report as it was and says why.
    ///
    /// # Errors
    ///
    /// [`NotPushed::Full`] if the transaction is to go into another report; the other
    /// errors if it can go into none.
    pub fn try_push(&mut self, transaction: &Transaction<'_>) -> Result<(), NotPushed> {
        for (metric, value) in transaction.usage {
            if metric.is_empty() || metric.contains(['[', ']']) {
                return Err(NotPushed::MetricName);
            }
            if *value > MAX_USAGE {
                return Err(NotPushed::Usage);
            }
        }
        // One for the application and one for the time.
        let parameters = transaction.usage.len().saturating_add(2);
        let room = || {
            if self.transactions == 0 {
                NotPushed::TooLarge
            } else {
                NotPushed::Full
            }
        };
        let filled = self.parameters.saturating_add(parameters);
        if filled > MAX_REPORT_PARAMETERS {
            return Err(room());
        }
        let before = self.text.len();
        push_transaction(&mut self.text, self.transactions, transaction);
        if self.text.len() > MAX_REPORT_BYTES {
            let why = room();
            self.text.truncate(before);
            return Err(why);
        }
        self.parameters = filled;
        self.transactions = self.transactions.saturating_add(1);
        Ok(())
    }

    /// How many transactions are in it.
    #[must_use]
    pub fn transactions(&self) -> usize {
        self.transactions
    }

    /// How many form parameters it has, the two of the service included.
    #[must_use]
    pub fn parameters(&self) -> usize {
        self.parameters
    }

    /// The bytes to send. They hold the service token and consumers' keys.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.text.into_bytes()
    }
}

fn push_transaction(text: &mut String, index: usize, transaction: &Transaction<'_>) {
    let mut prefix = String::new();
    // Writing to a string cannot fail.
    let _ = write!(prefix, "&transactions[{index}]");
    text.push_str(&prefix);
    match &transaction.application {
        Application::UserKey(key) => push_parameter(text, "[user_key]=", key),
        Application::AppId { id, .. } => push_parameter(text, "[app_id]=", id),
    }
    let _ = write!(text, "{prefix}[timestamp]={}", transaction.at);
    for (metric, value) in transaction.usage {
        text.push_str(&prefix);
        push_parameter(text, "[usage][", metric.as_bytes());
        let _ = write!(text, "]={value}");
    }
}

#[cfg(test)]
mod tests {
    use super::super::Right;
    use super::*;
    #[cfg(all(target_family = "wasm", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    const SERVICE: ServiceAccess<'_> = ServiceAccess {
        id: "1001",
        right: Right::ServiceToken("svc-token"),
    };

    fn transaction<'a>(usage: &'a [(&'a str, u64)]) -> Transaction<'a> {
        Transaction {
            application: Application::UserKey(b"key 1"),
            at: 1_795_294_077,
            usage,
        }
    }

    #[test]
    fn a_report_is_written_as_the_backend_reads_it() {
        let mut report = ReportBody::new(&SERVICE);
        report
            .try_push(&transaction(&[("hits", 1), ("orders", 20)]))
            .unwrap();
        report
            .try_push(&Transaction {
                application: Application::AppId {
                    id: b"app&2",
                    key: Some(b"not sent"),
                },
                at: 7,
                usage: &[("a=b", 3)],
            })
            .unwrap();
        assert_eq!((report.transactions(), report.parameters()), (2, 9));
        assert_eq!(
            String::from_utf8(report.into_bytes()).unwrap(),
            "service_token=svc-token&service_id=1001\
             &transactions[0][user_key]=key%201&transactions[0][timestamp]=1795294077\
             &transactions[0][usage][hits]=1&transactions[0][usage][orders]=20\
             &transactions[1][app_id]=app%262&transactions[1][timestamp]=7\
             &transactions[1][usage][a%3Db]=3"
        );
    }

    #[test]
    fn a_report_never_has_more_parameters_than_the_backend_takes() {
        let mut report = ReportBody::new(&SERVICE);
        let one = transaction(&[("hits", 1), ("orders", 1)]);
        while report.try_push(&one).is_ok() {}
        assert_eq!(report.try_push(&one), Err(NotPushed::Full));
        // (4096 - 2) / 4
        assert_eq!(report.transactions(), 1_023);
        // Two more parameters fit, and no third.
        let bytes = report.text.len();
        assert_eq!(
            report.try_push(&transaction(&[("hits", 1)])),
            Err(NotPushed::Full)
        );
        assert_eq!(report.text.len(), bytes);
        report.try_push(&transaction(&[])).unwrap();
        assert_eq!(report.parameters(), MAX_REPORT_PARAMETERS);
    }

    #[test]
    fn a_report_never_has_more_bytes_than_the_backend_takes() {
        let key = vec![b'%'; 500_000];
        let long = Transaction {
            application: Application::UserKey(&key),
            ..transaction(&[("hits", 1)])
        };
        let mut report = ReportBody::new(&SERVICE);
        report.try_push(&long).unwrap();
        report.try_push(&long).unwrap();
        let bytes = report.text.len();
        assert_eq!(report.try_push(&long), Err(NotPushed::Full));
        assert_eq!((report.text.len(), report.transactions()), (bytes, 2));
        report.try_push(&transaction(&[("hits", 1)])).unwrap();
    }

    #[test]
    fn what_fits_nowhere_is_told_from_what_fits_later() {
        let mut report = ReportBody::new(&SERVICE);
        let usage: Vec<_> = (0..MAX_REPORT_PARAMETERS).map(|_| ("hits", 1)).collect();
        assert_eq!(
            report.try_push(&transaction(&usage)),
            Err(NotPushed::TooLarge)
        );
    }

    #[test]
    fn what_would_spoil_a_batch_stays_out() {
        let mut report = ReportBody::new(&SERVICE);
        for (usage, why) in [
            (("hits][orders", 1), NotPushed::MetricName),
            (("", 1), NotPushed::MetricName),
            (("hits", MAX_USAGE + 1), NotPushed::Usage),
        ] {
            assert_eq!(report.try_push(&transaction(&[usage])), Err(why));
        }
        report
            .try_push(&transaction(&[("hits", MAX_USAGE)]))
            .unwrap();
        assert_eq!(report.transactions(), 1);
    }
}
