//! Configurations: a checked one or an error, and never a secret.
//!
//! An input is JSON, or is not.

use serde_json::Value;
use tollgate::config::Configuration;
use tollgate::request::{Headers, Request};

/// What stands wherever a secret belongs.
const SECRET: &str = "s3cr3t-0f-the-0perat0r";

/// Neither errors nor `Debug` show a secret, and what was checked can be used.
///
/// # Panics
/// If that is not so.
pub fn configuration(data: &[u8]) {
    // An input may have the text in itself, where none belongs.
    let known = data
        .windows(SECRET.len())
        .any(|window| window == SECRET.as_bytes());
    try_out(data, known);
    let Ok(mut value) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    // Escaped, it was not seen before.
    let known = known || value.to_string().contains(SECRET);
    let services = value.get_mut("services").and_then(Value::as_array_mut);
    for service in services.into_iter().flatten() {
        for name in ["token", "provider_key"] {
            service.get_mut(name).into_iter().for_each(plant);
        }
        let anonymous = service
            .get_mut("credentials")
            .and_then(|credentials| credentials.get_mut("anonymous"))
            .and_then(Value::as_object_mut);
        for (_, value) in anonymous.into_iter().flatten() {
            plant(value);
        }
    }
    try_out(value.to_string().as_bytes(), known);
}

fn try_out(bytes: &[u8], known: bool) {
    let environment = |name: &str| match name {
        "TOKEN" => Some(SECRET.to_owned()),
        "SPLIT" => Some(format!("{SECRET}\n")),
        _ => None,
    };
    match Configuration::parse(bytes, &environment) {
        Err(error) => {
            let told = format!("{error} {error:?}");
            assert!(known || !told.contains(SECRET), "{told}");
        }
        Ok(configuration) => {
            let shown = format!("{configuration:?}");
            assert!(known || !shown.contains(SECRET), "{shown}");
            for target in [&b"/"[..], b"/v1/x?user_key=a", b"*", b""] {
                let request = Request {
                    method: b"GET",
                    authority: b"api.example.com",
                    target,
                    headers: Headers { pairs: &[] },
                };
                let _ = configuration.service_for(b"api.example.com", target, || None);
                for service in &configuration.services {
                    let _ = service.is_exempt(&request);
                    let _ = configuration.service_for(service.id.as_bytes(), target, || None);
                }
            }
        }
    }
}

/// Puts the secret into every text that stands where a secret belongs, and into the names
/// of fields: YAML makes an object of `{ the-token }`.
fn plant(value: &mut Value) {
    match value {
        Value::String(text) => SECRET.clone_into(text),
        Value::Array(values) => values.iter_mut().for_each(plant),
        Value::Object(fields) => {
            let old = std::mem::take(fields);
            for (name, mut value) in old {
                plant(&mut value);
                let name = if name == "env" {
                    name
                } else {
                    SECRET.to_owned()
                };
                fields.insert(name, value);
            }
        }
        _ => {}
    }
}
