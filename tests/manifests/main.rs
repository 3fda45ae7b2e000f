//! The files that people deploy with agree with the code and with each other: Envoy's
//! configurations, Docker Compose, Istio and the Dockerfile.
//!
//! Apart from `configuration_docs.rs`, which reads what is written for people, and from the
//! end-to-end tests, where Envoy itself judges its files. No container runtime and no
//! cluster is needed here, so what these would say of the files is not known.

#![cfg(not(target_family = "wasm"))]

mod compose;
mod envoy;
mod image;
mod istio;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tollgate::config::Configuration;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents of a YAML file, with merge keys (`<<`) applied.
fn documents(path: &str) -> Vec<Value> {
    let text = text(path);
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| {
            let mut value: serde_yaml::Value = serde::Deserialize::deserialize(document)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            value.apply_merge().unwrap();
            serde_json::to_value(value).unwrap()
        })
        .collect()
}

fn document(path: &str) -> Value {
    let [document] = <[Value; 1]>::try_from(documents(path))
        .unwrap_or_else(|all| panic!("{path}: {} documents", all.len()));
    document
}

/// What is at the pointer, or the test fails.
fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value
        .pointer(pointer)
        .unwrap_or_else(|| panic!("no {pointer} in {value}"))
}

fn string<'a>(value: &'a Value, pointer: &str) -> &'a str {
    at(value, pointer)
        .as_str()
        .unwrap_or_else(|| panic!("{pointer} is no string in {value}"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a Vec<Value> {
    at(value, pointer)
        .as_array()
        .unwrap_or_else(|| panic!("{pointer} is no list in {value}"))
}

/// A duration as protobuf writes it in JSON, which Envoy and Istio both take: `15s`, `0.5s`.
fn duration(value: &Value, pointer: &str) -> Duration {
    let text = string(value, pointer);
    text.strip_suffix('s')
        .and_then(|seconds| seconds.parse().ok())
        .map(Duration::from_secs_f64)
        .unwrap_or_else(|| panic!("{pointer}: {text} is no duration"))
}

/// Every value in it that is a mapping with this field.
fn with_field<'a>(value: &'a Value, field: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    let mut open = vec![value];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(fields) => {
                if fields.contains_key(field) {
                    found.push(value);
                }
                open.extend(fields.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    found
}

/// Loads a configuration where only these variables exist.
fn load(configuration: &str, environment: &BTreeSet<&str>, place: &str) -> Configuration {
    let variable = |name: &str| environment.contains(name).then(|| "token".to_owned());
    Configuration::parse(configuration.as_bytes(), &variable)
        .unwrap_or_else(|error| panic!("{place}: {error}"))
}

/// The longest time the backend leaves a connection idle (protocol: Puma closes it then).
const BACKEND_IDLE: Duration = Duration::from_secs(20);
