//! Istio's resources: fields of its API, names that must agree between files, and an end
//! of the pods that leaves time for the last report.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use serde_json::{Value, json};
use tollgate::config::Configuration;

use super::{
    BACKEND_IDLE, at, document, documents, duration, list, load, root, string, text, with_field,
};

const FILES: [&str; 5] = [
    "examples/istio/connection-manager.yaml",
    "examples/istio/gateway.yaml",
    "examples/istio/service-management.yaml",
    "examples/istio/sidecar.yaml",
    "examples/istio/wasmplugin.yaml",
];

fn resources() -> Vec<Value> {
    FILES.iter().flat_map(|path| documents(path)).collect()
}

fn of_kind(kind: &str) -> Vec<Value> {
    let resources: Vec<Value> = resources()
        .into_iter()
        .filter(|resource| resource["kind"] == kind)
        .collect();
    assert!(!resources.is_empty(), "no {kind}");
    resources
}

/// Fails on a field that the API does not have.
fn only(value: &Value, place: &str, fields: &[&str]) {
    for field in value
        .as_object()
        .unwrap_or_else(|| panic!("{place}"))
        .keys()
    {
        assert!(
            fields.contains(&field.as_str()),
            "{place} has no field {field}"
        );
    }
}

fn one_of(value: &Value, pointer: &str, values: &[&str]) {
    let value = string(value, pointer);
    assert!(values.contains(&value), "{pointer} cannot be {value}");
}

fn plugin_configuration(plugin: &Value) -> Configuration {
    let environment = list(plugin, "/spec/vmConfig/env")
        .iter()
        .map(|variable| string(variable, "/name"))
        .collect();
    let place = string(plugin, "/metadata/name");
    load(
        &at(plugin, "/spec/pluginConfig").to_string(),
        &environment,
        place,
    )
}

/// The Deployment whose pods a selector's labels select.
fn deployment(labels: &Value) -> Value {
    of_kind("Deployment")
        .into_iter()
        .find(|deployment| {
            let pods = at(deployment, "/spec/template/metadata/labels");
            labels
                .as_object()
                .unwrap()
                .iter()
                .all(|(name, value)| pods[name] == *value)
        })
        .unwrap_or_else(|| panic!("no deployment has pods with {labels}"))
}

fn container<'a>(deployment: &'a Value, name: &str) -> &'a Value {
    list(deployment, "/spec/template/spec/containers")
        .iter()
        .find(|container| container["name"] == name)
        .unwrap_or_else(|| panic!("no container {name}"))
}

#[test]
fn every_file_is_looked_at_and_every_resource_is_of_a_known_kind() {
    let mut files: Vec<String> = fs::read_dir(root().join("examples/istio"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .map(|name| format!("examples/istio/{name}"))
        .collect();
    files.sort();
    assert_eq!(files, FILES);
    for resource in resources() {
        only(
            &resource,
            "a resource",
            &["apiVersion", "kind", "metadata", "spec"],
        );
        only(at(&resource, "/metadata"), "metadata", &["name"]);
        let version = match string(&resource, "/kind") {
            "WasmPlugin" => "extensions.istio.io/v1alpha1",
            "ServiceEntry" | "DestinationRule" => "networking.istio.io/v1",
            "EnvoyFilter" => "networking.istio.io/v1alpha3",
            "Deployment" => "apps/v1",
            kind => panic!("a {kind} is not checked here"),
        };
        assert_eq!(string(&resource, "/apiVersion"), version);
    }
}

#[test]
fn the_fields_are_those_of_istios_api() {
    for plugin in of_kind("WasmPlugin") {
        let spec = at(&plugin, "/spec");
        let fields = [
            "selector",
            "url",
            "sha256",
            "imagePullPolicy",
            "imagePullSecret",
            "phase",
            "priority",
            "failStrategy",
            "match",
            "vmConfig",
            "pluginConfig",
            "pluginName",
        ];
        only(spec, "WasmPlugin", &fields);
        only(at(spec, "/selector"), "selector", &["matchLabels"]);
        only(at(spec, "/vmConfig"), "vmConfig", &["env"]);
        one_of(spec, "/imagePullPolicy", &["IfNotPresent", "Always"]);
        assert!(string(spec, "/url").starts_with("oci://"));
        for traffic in list(spec, "/match") {
            only(traffic, "match", &["mode", "ports"]);
        }
    }
    for entry in of_kind("ServiceEntry") {
        let spec = at(&entry, "/spec");
        let fields = ["hosts", "exportTo", "location", "resolution", "ports"];
        only(spec, "ServiceEntry", &fields);
        assert_eq!(string(spec, "/location"), "MESH_EXTERNAL");
        assert_eq!(string(spec, "/resolution"), "DNS");
        for port in list(spec, "/ports") {
            only(port, "port", &["number", "name", "protocol", "targetPort"]);
            one_of(
                port,
                "/protocol",
                &["HTTP", "HTTPS", "HTTP2", "GRPC", "TCP", "TLS"],
            );
        }
    }
    for rule in of_kind("DestinationRule") {
        let spec = at(&rule, "/spec");
        only(
            spec,
            "DestinationRule",
            &["host", "exportTo", "trafficPolicy"],
        );
        let policy = at(spec, "/trafficPolicy");
        only(policy, "trafficPolicy", &["tls", "connectionPool"]);
        let fields = ["mode", "sni", "subjectAltNames", "caCertificates"];
        only(at(policy, "/tls"), "tls", &fields);
        only(
            at(policy, "/connectionPool"),
            "connectionPool",
            &["tcp", "http"],
        );
        let fields = ["connectTimeout", "maxConnections"];
        only(at(policy, "/connectionPool/tcp"), "tcp", &fields);
        let fields = ["idleTimeout", "http1MaxPendingRequests", "http2MaxRequests"];
        only(at(policy, "/connectionPool/http"), "http", &fields);
    }
}

#[test]
fn the_filter_stands_before_authorization_and_is_never_bypassed() {
    for plugin in of_kind("WasmPlugin") {
        let spec = at(&plugin, "/spec");
        assert_eq!(string(spec, "/phase"), "AUTHZ");
        assert_eq!(string(spec, "/failStrategy"), "FAIL_RELOAD");
        let gateway = at(spec, "/selector/matchLabels").get("istio").is_some();
        // In a sidecar, anything else would meter the workload's own calls.
        let mode = if gateway { "CLIENT" } else { "SERVER" };
        for traffic in list(spec, "/match") {
            assert_eq!(string(traffic, "/mode"), mode);
        }
    }
}

#[test]
fn the_token_comes_from_a_secret_in_the_environment_of_the_proxy() {
    for plugin in of_kind("WasmPlugin") {
        assert_eq!(plugin_configuration(&plugin).services[0].id, "1001");
        let deployment = deployment(at(&plugin, "/spec/selector/matchLabels"));
        let proxy = container(&deployment, "istio-proxy");
        for variable in list(&plugin, "/spec/vmConfig/env") {
            only(variable, "env", &["name", "valueFrom"]);
            assert_eq!(string(variable, "/valueFrom"), "HOST");
            let set = list(proxy, "/env")
                .iter()
                .find(|set| set["name"] == variable["name"])
                .unwrap_or_else(|| panic!("{variable} is not set"));
            // What README.md makes.
            let secret = at(set, "/valueFrom/secretKeyRef");
            assert_eq!(
                *secret,
                json!({ "name": "tollgate", "key": "service-token" })
            );
        }
    }
    let readme = text("examples/istio/README.md");
    assert!(readme.contains("create secret generic tollgate --from-literal=service-token="));
}

#[test]
fn the_cluster_that_the_configuration_names_is_the_service_entrys() {
    let entry = &of_kind("ServiceEntry")[0];
    let rule = &of_kind("DestinationRule")[0];
    let host = string(entry, "/spec/hosts/0");
    let port = at(entry, "/spec/ports/0/number");
    assert_eq!(string(rule, "/spec/host"), host);
    assert_eq!(entry["spec"]["exportTo"], rule["spec"]["exportTo"]);
    for plugin in of_kind("WasmPlugin") {
        let service_management = plugin_configuration(&plugin).service_management;
        assert_eq!(
            service_management.cluster,
            format!("outbound|{port}||{host}")
        );
        assert_eq!(service_management.authority, host);
    }
    let tls = at(rule, "/spec/trafficPolicy/tls");
    assert_eq!(string(tls, "/mode"), "SIMPLE");
    assert_eq!(string(tls, "/sni"), host);
    assert_eq!(*at(tls, "/subjectAltNames"), json!([host]));
}

#[test]
fn the_connection_pool_suits_the_backend() {
    let rule = &of_kind("DestinationRule")[0];
    let pool = at(rule, "/spec/trafficPolicy/connectionPool");
    assert!(duration(pool, "/http/idleTimeout") < BACKEND_IDLE);
    for plugin in of_kind("WasmPlugin") {
        let configuration = plugin_configuration(&plugin);
        let connect = duration(pool, "/tcp/connectTimeout");
        assert!(connect < configuration.service_management.timeout);
    }
}

#[test]
fn a_pod_lives_on_until_the_last_report_is_answered() {
    let route = at(&document("envoy/tollgate.yaml"), "/static_resources").clone();
    let longest_request = duration(with_field(&route, "route")[0], "/route/timeout");
    for plugin in of_kind("WasmPlugin") {
        let reporting = plugin_configuration(&plugin).reporting;
        let deployment = deployment(at(&plugin, "/spec/selector/matchLabels"));
        let pod = at(&deployment, "/spec/template");
        let proxy: Value =
            serde_yaml::from_str(string(pod, "/metadata/annotations/proxy.istio.io~1config"))
                .unwrap();
        let drain = duration(&proxy, "/terminationDrainDuration");
        let needed = longest_request + reporting.interval + reporting.timeout;
        assert!(drain > needed, "{drain:?} is not more than {needed:?}");
        let mut hooks = BTreeSet::new();
        for container in list(pod, "/spec/containers") {
            let sleep = at(container, "/lifecycle/preStop/sleep/seconds");
            hooks.insert(sleep.as_u64().unwrap());
        }
        let grace = at(pod, "/spec/terminationGracePeriodSeconds")
            .as_u64()
            .unwrap();
        let hook = Duration::from_secs(*hooks.last().unwrap());
        assert!(Duration::from_secs(grace) > hook + drain);
        // Of a sidecar and its application, none goes first.
        assert_eq!(hooks.len(), 1, "{hooks:?}");
    }
}

#[test]
fn the_gateway_reads_requests_as_the_shipped_envoy_does() {
    let shipped = document("envoy/tollgate.yaml");
    let shipped = at(
        &shipped,
        "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config",
    );
    let filter = &of_kind("EnvoyFilter")[0];
    only(
        at(filter, "/spec"),
        "EnvoyFilter",
        &["workloadSelector", "configPatches"],
    );
    let selector = at(filter, "/spec/workloadSelector/labels");
    deployment(selector);
    let plugin = &documents("examples/istio/wasmplugin.yaml")[0];
    assert_eq!(selector, at(plugin, "/spec/selector/matchLabels"));
    let patch = at(filter, "/spec/configPatches/0");
    assert_eq!(string(patch, "/applyTo"), "NETWORK_FILTER");
    assert_eq!(string(patch, "/match/context"), "GATEWAY");
    assert_eq!(string(patch, "/patch/operation"), "MERGE");
    let patched = at(patch, "/patch/value/typed_config").as_object().unwrap();
    for (field, value) in patched {
        match value.as_object() {
            None => assert_eq!(*value, shipped[field], "{field}"),
            Some(fields) => {
                for (inner, value) in fields {
                    assert_eq!(*value, shipped[field][inner], "{field}.{inner}");
                }
            }
        }
    }
    for needed in [
        "normalize_path",
        "merge_slashes",
        "path_with_escaped_slashes_action",
        "common_http_protocol_options",
        "stream_idle_timeout",
        "request_timeout",
    ] {
        assert!(patched.contains_key(needed), "{needed}");
    }
}
