//! The control interface under `/stand-in/`: what tests in other processes do
//! that those in the same process do through the handle.

use crate::dataset::ApplicationChange;
use crate::faults::FaultRule;
use crate::journal::Calls;
use crate::server::{Shared, plain};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{get, post, put};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

type Control = State<Arc<Shared>>;

/// The routes.
pub(crate) fn router() -> Router<Arc<Shared>> {
    Router::new()
        .route("/stand-in/usage", get(usage))
        .route("/stand-in/calls", get(calls))
        .route("/stand-in/errors", get(errors))
        .route(
            "/stand-in/faults",
            get(faults).put(put_faults).delete(delete_faults),
        )
        .route("/stand-in/reset", post(reset))
        .route(
            "/stand-in/applications/{service}/{application}",
            put(put_application).delete(delete_application),
        )
}

async fn usage(State(shared): Control) -> Response<Body> {
    json(shared.lock().backend.usage())
}

async fn calls(State(shared): Control) -> Response<Body> {
    json(&shared.lock().calls)
}

async fn errors(State(shared): Control) -> Response<Body> {
    json(shared.lock().backend.errors())
}

async fn faults(State(shared): Control) -> Response<Body> {
    json(&shared.lock().faults)
}

async fn put_faults(State(shared): Control, body: Bytes) -> Response<Body> {
    match parse::<Vec<FaultRule>>(&body) {
        Ok(faults) => {
            shared.lock().faults = faults;
            plain(StatusCode::NO_CONTENT)
        }
        Err(problem) => refused(problem),
    }
}

async fn delete_faults(State(shared): Control) -> Response<Body> {
    shared.lock().faults.clear();
    plain(StatusCode::NO_CONTENT)
}

async fn reset(State(shared): Control) -> Response<Body> {
    let mut inner = shared.lock();
    inner.backend.reset();
    inner.calls = Calls::default();
    plain(StatusCode::NO_CONTENT)
}

async fn put_application(
    State(shared): Control,
    Path((service, application)): Path<(String, String)>,
    body: Bytes,
) -> Response<Body> {
    let change = match parse::<ApplicationChange>(&body) {
        Ok(change) => change,
        Err(problem) => return refused(problem),
    };
    let mut inner = shared.lock();
    match inner
        .backend
        .put_application(&service, &application, change)
    {
        Ok(()) => plain(StatusCode::NO_CONTENT),
        Err(error) => refused(error.to_string()),
    }
}

async fn delete_application(
    State(shared): Control,
    Path((service, application)): Path<(String, String)>,
) -> Response<Body> {
    let mut inner = shared.lock();
    plain(
        if inner.backend.remove_application(&service, &application) {
            StatusCode::NO_CONTENT
        } else {
            StatusCode::NOT_FOUND
        },
    )
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    serde_path_to_error::deserialize(&mut json)
        .map_err(|error| format!("{}: {}", error.path(), error.inner()))
}

fn refused(problem: String) -> Response<Body> {
    let mut response = plain(StatusCode::BAD_REQUEST);
    *response.body_mut() = Body::from(format!("{problem}\n"));
    response
}

fn json(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(text) => {
            let mut response = plain(StatusCode::OK);
            *response.body_mut() = Body::from(text);
            response.headers_mut().insert(
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            );
            response
        }
        Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR),
    }
}
