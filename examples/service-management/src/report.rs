//! Reports: what is checked when they arrive, and what a worker does with them
//! later (`listener.rb`, `transactor/report_job.rb`, `transaction.rb`);
//! protocol section 10.

use crate::backend::{Backend, Refusal};
use crate::calendar::parse_timestamp;
use crate::counters::Usage;
use crate::dataset::{Dataset, Service, stored_key};
use crate::error::ApiError;
use crate::message::{Request, Response, XML};
use crate::parameters::{Parameter, Parameters, get, is_utf8};
use crate::status::Extensions;
use crate::usage::{Amount, process, without_zeros};
use indexmap::IndexMap;

/// How far back, and how far ahead, a transaction may lie (seconds).
const MOST_PAST: i64 = 86_400;
const MOST_FUTURE: i64 = 3_600;

/// What a worker is to apply: all of it, or nothing.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub service: String,
    pub transactions: Vec<Parameters>,
    /// The client has already summed the hierarchy.
    pub flat: bool,
}

/// Why a worker dropped a job.
#[derive(Debug)]
pub(crate) enum JobError {
    /// It is kept as an integration error of the service.
    Api(ApiError),
    /// An exception: the job goes to the queue of failed jobs.
    Failed,
}

impl From<ApiError> for JobError {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl Backend {
    /// Answers `POST /transactions.xml`.
    pub(crate) fn report(
        &mut self,
        request: &Request<'_>,
        parameters: &Parameters,
        now: u64,
    ) -> Result<Response, Refusal> {
        if let Some(media_type) = request.content_type.and_then(media_type)
            && !is_form(&media_type)
        {
            return Err(ApiError::ContentTypeInvalid(media_type).into());
        }
        let provider = self.provider(parameters)?;
        if !is_utf8(parameters) {
            return Err(Refusal::Plain(ApiError::NotValidData));
        }
        let transactions = transactions(parameters)?;
        if transactions
            .values()
            .any(|data| matches!(data, Parameter::List(_)))
        {
            return Err(Refusal::Internal);
        }
        let extensions = Extensions::parse(request.options, parameters)?;
        let service = self.service(get(parameters, "service_id"), provider.as_deref())?;
        let job = Job {
            service: service.id.clone(),
            transactions: without_idle(transactions)?,
            flat: extensions.flat_usage,
        };
        if !job.transactions.is_empty() {
            self.enqueue(job, now);
        }
        Ok(Response::answer(202, XML, Vec::new(), Vec::new()))
    }
}

/// The media type of a `content-type`, without its parameters; none if empty.
pub(crate) fn media_type(content_type: &str) -> Option<String> {
    let end = content_type.find([';', ',']).unwrap_or(content_type.len());
    let media_type = content_type.get(..end)?.trim().to_ascii_lowercase();
    (!media_type.is_empty()).then_some(media_type)
}

pub(crate) fn is_form(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/x-www-form-urlencoded" | "multipart/form-data"
    )
}

fn transactions(parameters: &Parameters) -> Result<&Parameters, ApiError> {
    let transactions = match get(parameters, "transactions") {
        None => return Err(ApiError::TransactionsIsBlank),
        Some(Parameter::Text(text)) if text.is_empty() => {
            return Err(ApiError::TransactionsIsBlank);
        }
        Some(Parameter::Map(transactions)) => transactions,
        Some(_) => return Err(ApiError::TransactionsFormatInvalid),
    };
    if transactions
        .values()
        .any(|data| *data == Parameter::Missing)
    {
        return Err(ApiError::TransactionsHasNilTransaction);
    }
    let names_user = |data: &Parameter| match data {
        Parameter::Map(data) => get(data, "user_id").is_some(),
        _ => false,
    };
    if transactions.values().any(names_user) {
        return Err(ApiError::EndUsersNoLongerSupported);
    }
    Ok(transactions)
}

/// Drops zeros, and the transactions of which nothing is left by that. One that
/// never had a usage stays: its application will be looked for.
fn without_idle(transactions: &Parameters) -> Result<Vec<Parameters>, Refusal> {
    let mut kept = Vec::new();
    for data in transactions.values() {
        // The backend asks any value for its usage, and text raises.
        let Parameter::Map(data) = data else {
            return Err(Refusal::Internal);
        };
        let mut data = data.clone();
        match get(&data, "usage") {
            None => {}
            Some(Parameter::Map(usage)) => {
                let usage = without_zeros(usage);
                if usage.is_empty() {
                    continue;
                }
                data.insert(b"usage".to_vec(), Parameter::Map(usage));
            }
            Some(Parameter::List(_)) => {}
            Some(_) => return Err(Refusal::Internal),
        }
        kept.push(data);
    }
    Ok(kept)
}

/// One transaction, checked.
struct Transaction<'a> {
    application: &'a str,
    usage: IndexMap<usize, Amount>,
    seconds: i64,
}

/// What a worker does with a job at this moment (Unix seconds).
pub(crate) fn apply(
    job: &Job,
    dataset: &Dataset,
    usage: &mut Usage,
    now: i64,
) -> Result<(), JobError> {
    // A service that is gone has no applications either.
    let Some(service) = dataset.services.get(&job.service) else {
        return Err(ApiError::ApplicationNotFound(String::new()).into());
    };
    let mut by_application: IndexMap<&str, Vec<&Parameters>> = IndexMap::new();
    for data in &job.transactions {
        let application = application(service, data)?;
        by_application.entry(application).or_default().push(data);
    }
    let mut transactions = Vec::new();
    for (application, group) in by_application {
        for data in group {
            let Some(usage) = usage_of(data, service, job.flat)? else {
                continue;
            };
            let timestamp = get(data, "timestamp").map(Parameter::display);
            transactions.push(Transaction {
                application,
                usage,
                seconds: timestamp
                    .and_then(|text| parse_timestamp(&text))
                    .unwrap_or(now),
            });
        }
    }
    for transaction in &transactions {
        let ahead = transaction.seconds.saturating_sub(now);
        if ahead < -MOST_PAST {
            return Err(ApiError::TransactionTimestampTooOld.into());
        }
        if ahead > MOST_FUTURE {
            return Err(ApiError::TransactionTimestampTooNew.into());
        }
    }
    let mut outcome = Ok(());
    for transaction in transactions {
        for (metric, amount) in transaction.usage {
            let applied = usage.apply(
                &service.id,
                transaction.application,
                service.metrics.name(metric),
                amount,
                transaction.seconds,
            );
            if applied.is_err() {
                outcome = Err(JobError::Failed);
            }
        }
    }
    outcome
}

/// `extract_id!`: either of the two ways to name an application, in any service.
fn application<'a>(service: &'a Service, data: &Parameters) -> Result<&'a str, ApiError> {
    let id = match (get(data, "app_id"), get(data, "user_key")) {
        (Some(_), Some(_)) => return Err(ApiError::AuthenticationError),
        (None, None) => return Err(ApiError::ApplicationNotFound(String::new())),
        (Some(id), None) => id.display(),
        (None, Some(key)) => {
            let key = key.display();
            match service.user_keys.get(&stored_key(&key)) {
                Some(id) => id.clone(),
                None => return Err(ApiError::UserKeyInvalid(key)),
            }
        }
    };
    match service.applications.get(&id) {
        Some(application) => Ok(&application.id),
        None => Err(ApiError::ApplicationNotFound(id)),
    }
}

fn usage_of(
    data: &Parameters,
    service: &Service,
    flat: bool,
) -> Result<Option<IndexMap<usize, Amount>>, JobError> {
    match get(data, "usage") {
        None => Ok(None),
        Some(Parameter::Map(usage)) if usage.is_empty() => Ok(None),
        Some(Parameter::Map(usage)) => Ok(Some(process(usage, &service.metrics, flat)?)),
        // The first item is taken for a name without a value.
        Some(Parameter::List(items)) => match items.first() {
            Some(Parameter::Text(name)) => Err(ApiError::UsageValueInvalid {
                metric: String::from_utf8_lossy(name).trim().to_owned(),
                value: None,
            }
            .into()),
            _ => Err(JobError::Failed),
        },
        Some(_) => Err(JobError::Failed),
    }
}
