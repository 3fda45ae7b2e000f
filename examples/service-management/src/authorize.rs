//! Authorize and authrep: the checks in the backend's order, and what authrep
//! leaves for the workers (`listener.rb`, `transactor.rb`, `validators/`);
//! protocol sections 2, 4 and 6.

use crate::backend::{Backend, Endpoint, Refusal};
use crate::dataset::{Application, Mode, Service, State, stored_key};
use crate::error::{ApiError, Rejection};
use crate::message::{Request, Response, XML};
use crate::parameters::{Parameter, Parameters, get, is_utf8};
use crate::report::Job;
use crate::status::{Counted, Extensions, Status};
use crate::usage::{strip, without_zeros};

impl Backend {
    /// Answers one of the four authorizing endpoints.
    pub(crate) fn authorization(
        &mut self,
        endpoint: Endpoint,
        request: &Request<'_>,
        parameters: Parameters,
        now: u64,
    ) -> Result<Response, Refusal> {
        if !is_utf8(&parameters) {
            return Err(Refusal::Plain(ApiError::NotValidData));
        }
        let parameters = normalize(parameters);
        let provider = self.provider(&parameters)?;
        if get(&parameters, "user_id").is_some() {
            let error = ApiError::EndUsersNoLongerSupported;
            // The backend knows the service only from the parameters by now, and
            // those of a service token do not tell.
            if get(&parameters, "provider_key").is_some() {
                self.keep_error(&parameters, provider.as_deref(), &error, now);
            }
            return Err(error.into());
        }
        let usage = match get(&parameters, "usage") {
            None => None,
            Some(Parameter::Map(usage)) => Some(usage),
            Some(_) => return Err(Refusal::Forbidden),
        };
        let extensions = Extensions::parse(request.options, &parameters)?;
        let outcome = {
            let call = Call {
                oauth: matches!(endpoint, Endpoint::OauthAuthorize | Endpoint::OauthAuthrep),
                reports_usage: matches!(endpoint, Endpoint::Authrep | Endpoint::OauthAuthrep),
                parameters: &parameters,
                usage,
                extensions,
                now,
            };
            self.judge(&call, provider.as_deref())
        };
        match outcome {
            Ok((response, job)) => {
                if let Some(job) = job {
                    self.enqueue(job, now);
                }
                Ok(response)
            }
            Err(Refusal::Api(error)) => {
                self.keep_error(&parameters, provider.as_deref(), &error, now);
                Err(error.into())
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn judge(
        &self,
        call: &Call<'_>,
        provider: Option<&str>,
    ) -> Result<(Response, Option<Job>), Refusal> {
        let service = self.service(get(call.parameters, "service_id"), provider)?;
        let application = application(service, call)?;
        let mut status = Status {
            service,
            application,
            redirect_element: call.oauth.then_some("redirect_url"),
            usage: call.usage,
            reports_usage: call.reports_usage,
            limits: self.limits(service, application, call)?,
            extensions: call.extensions,
            rejection: None,
            now: call.now,
        };
        status.rejection = validate(&mut status, call)?;
        let job = (call.reports_usage && status.rejection.is_none())
            .then(|| job(service, application, call))
            .flatten();
        Ok((respond(&status), job))
    }

    /// The limits of the application's plan with what is stored for them. With
    /// `no_body` and a usage only those that the usage concerns, and this is
    /// where an unknown metric is noticed then.
    fn limits(
        &self,
        service: &Service,
        application: &Application,
        call: &Call<'_>,
    ) -> Result<Vec<Counted>, ApiError> {
        let concerned = match call.usage {
            Some(usage) if call.extensions.no_body => {
                let mut concerned = Vec::new();
                for name in usage.keys() {
                    let name = String::from_utf8_lossy(name);
                    let metric = service
                        .metrics
                        .find(&name)
                        .ok_or_else(|| ApiError::MetricInvalid(name.into_owned()))?;
                    concerned.push(metric);
                    concerned.extend(service.metrics.ancestors(metric));
                }
                Some(concerned)
            }
            _ => None,
        };
        let seconds = i64::try_from(call.now / 1_000).unwrap_or(i64::MAX);
        let counted = service
            .limits(application)
            .iter()
            .filter(|limit| {
                concerned
                    .as_ref()
                    .is_none_or(|metrics| metrics.contains(&limit.metric))
            })
            .map(|limit| Counted {
                limit: *limit,
                stored: u128::from(self.usage().value(
                    &service.id,
                    &application.id,
                    service.metrics.name(limit.metric),
                    limit.period,
                    seconds,
                )),
            });
        Ok(counted.collect())
    }
}

/// One call, its parameters normalized.
struct Call<'a> {
    oauth: bool,
    reports_usage: bool,
    parameters: &'a Parameters,
    usage: Option<&'a Parameters>,
    extensions: Extensions,
    now: u64,
}

impl Call<'_> {
    fn text(&self, name: &str) -> Option<String> {
        get(self.parameters, name).map(Parameter::display)
    }
}

/// `normalize_non_empty_keys!`: of the parameters that name somebody, those that
/// are blank or not text count as absent. Only `app_key` is trimmed, and it
/// stays when it is empty.
fn normalize(mut parameters: Parameters) -> Parameters {
    for name in [
        "service_id",
        "app_id",
        "app_key",
        "user_key",
        "provider_key",
    ] {
        let Some(value) = parameters.get_mut(name.as_bytes()) else {
            continue;
        };
        let text = value.text().map(|text| strip(&text).to_owned());
        match text {
            Some(text) if name == "app_key" => *value = Parameter::Text(text.into_bytes()),
            Some(text) if !text.is_empty() => {}
            _ => *value = Parameter::Missing,
        }
    }
    parameters
}

fn application<'a>(service: &'a Service, call: &Call<'_>) -> Result<&'a Application, ApiError> {
    let app_id = call.text("app_id");
    let user_key = call.text("user_key");
    if call.oauth && app_id.is_none() {
        return Err(ApiError::ApplicationNotFound(String::new()));
    }
    if app_id.is_some() && user_key.is_some() {
        return Err(ApiError::AuthenticationError);
    }
    let id = if service.mode == Mode::UserKey {
        let key = user_key.unwrap_or_default();
        match service.user_keys.get(&stored_key(&key)) {
            Some(id) => id.clone(),
            None => return Err(ApiError::UserKeyInvalid(key)),
        }
    } else {
        app_id.unwrap_or_default()
    };
    let application = service.applications.get(&id);
    application.ok_or(ApiError::ApplicationNotFound(id))
}

/// The validators, of which the first that fails decides.
fn validate(status: &mut Status<'_>, call: &Call<'_>) -> Result<Option<Rejection>, Refusal> {
    let oauth_service = status.service.mode == Mode::Oauth;
    if call.oauth && !oauth_service {
        return Ok(Some(Rejection::OauthNotEnabled));
    }
    let key_rejection = if call.oauth || oauth_service {
        oauth_key(status.application, call)
    } else {
        key(status, call)
    };
    if key_rejection.is_some() {
        return Ok(key_rejection);
    }
    if call.oauth
        && let Some(rejection) = redirect(status, call)
    {
        return Ok(Some(rejection));
    }
    if let Some(rejection) = referrer(status, call)? {
        return Ok(Some(rejection));
    }
    if status.application.state == State::Suspended {
        return Ok(Some(Rejection::ApplicationNotActive));
    }
    if status.service.state == State::Suspended {
        return Ok(Some(Rejection::ServiceNotActive));
    }
    Ok((!status.within_limits()?).then_some(Rejection::LimitsExceeded))
}

fn key(status: &Status<'_>, call: &Call<'_>) -> Option<Rejection> {
    let keys = &status.application.keys;
    let sent = call.text("app_key").unwrap_or_default();
    let unchecked = status.service.mode == Mode::UserKey || keys.is_empty();
    (!unchecked && !keys.contains(&sent)).then_some(Rejection::ApplicationKeyInvalid(sent))
}

fn oauth_key(application: &Application, call: &Call<'_>) -> Option<Rejection> {
    let sent = call.text("app_key")?;
    let known = !sent.is_empty() && application.keys.contains(&sent);
    (!known).then_some(Rejection::ApplicationKeyInvalid(sent))
}

/// Whether the redirect URL is another; `redirect_url` wins, and the element of
/// the document takes the name that was used.
fn redirect(status: &mut Status<'_>, call: &Call<'_>) -> Option<Rejection> {
    let (name, rejection): (_, fn(String) -> Rejection) =
        if call.parameters.contains_key(&b"redirect_url"[..]) {
            ("redirect_url", Rejection::RedirectUrlInvalid)
        } else if call.parameters.contains_key(&b"redirect_uri"[..]) {
            ("redirect_uri", Rejection::RedirectUriInvalid)
        } else {
            return None;
        };
    status.redirect_element = Some(name);
    let sent = call.text(name).filter(|sent| !sent.is_empty())?;
    (status.application.redirect_url.as_ref() != Some(&sent)).then(|| rejection(sent))
}

fn referrer(status: &Status<'_>, call: &Call<'_>) -> Result<Option<Rejection>, Refusal> {
    let filters = &status.application.referrer_filters;
    if !status.service.referrer_filters_required || filters.is_empty() {
        return Ok(None);
    }
    let sent = match get(call.parameters, "referrer") {
        None => return Ok(Some(Rejection::ReferrerNotAllowed(String::new()))),
        Some(Parameter::Text(bytes)) => String::from_utf8_lossy(bytes).into_owned(),
        // The backend matches it with a regular expression, which raises.
        Some(_) => return Err(Refusal::Internal),
    };
    let allowed = sent == "*" || filters.iter().any(|filter| matches(filter, &sent));
    Ok((!allowed).then_some(Rejection::ReferrerNotAllowed(sent)))
}

/// Whether a filter covers the whole text; `*` is any text of one line.
fn matches(filter: &str, text: &str) -> bool {
    let Some((first, rest)) = filter.split_once('*') else {
        return filter == text;
    };
    let Some(mut text) = text.strip_prefix(first) else {
        return false;
    };
    if text.contains('\n') {
        return false;
    }
    let mut parts: Vec<_> = rest.split('*').collect();
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part).and_then(|at| text.get(at + part.len()..)) {
            Some(after) => text = after,
            None => return false,
        }
    }
    text.ends_with(last)
}

/// What authrep queues: the usage, unless there is none left without zeros.
fn job(service: &Service, application: &Application, call: &Call<'_>) -> Option<Job> {
    let usage = without_zeros(call.usage?);
    if usage.is_empty() {
        return None;
    }
    let transaction = Parameters::from_iter([
        (
            b"app_id".to_vec(),
            Parameter::Text(application.id.clone().into_bytes()),
        ),
        (b"usage".to_vec(), Parameter::Map(usage)),
    ]);
    Some(Job {
        service: service.id.clone(),
        transactions: vec![transaction],
        flat: call.extensions.flat_usage,
    })
}

fn respond(status: &Status<'_>) -> Response {
    let extensions = status.extensions;
    let mut headers = Vec::new();
    let code = status.rejection.as_ref().map(Rejection::code);
    if extensions.rejection_reason_header
        && let Some(code) = code
    {
        headers.push(("3scale-rejection-reason", code.to_owned()));
    }
    if extensions.limit_headers
        && matches!(status.rejection, None | Some(Rejection::LimitsExceeded))
    {
        headers.extend(status.limit_headers());
    }
    let body = if extensions.no_body {
        Vec::new()
    } else {
        status.document().into_bytes()
    };
    let http_status = if code.is_some() { 409 } else { 200 };
    Response {
        code,
        ..Response::answer(http_status, XML, headers, body)
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn referrer_filters_cover_the_whole_referrer() {
        for (filter, text, expected) in [
            ("a.com", "a.com", true),
            ("a.com", "a.com.evil", false),
            ("*.a.com", "x.a.com", true),
            ("*.a.com", ".a.com", true),
            ("*.a.com", "a.com", false),
            ("a*b*c", "a1b2c", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("ab*ba", "aba", false),
            ("*", "anything", true),
            ("a.c", "abc", false),
            ("*.a.com", "evil\n.a.com", false),
        ] {
            assert_eq!(matches(filter, text), expected, "{filter} {text:?}");
        }
    }
}
