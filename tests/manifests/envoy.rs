//! Envoy's own configurations: settings on which authorization depends, and that those
//! which are shipped several times are the same.

use std::time::Duration;

use serde_json::{Value, json};
use tollgate::config::Configuration;

use super::{BACKEND_IDLE, at, document, duration, list, load, string, with_field};

/// An Envoy with the filter, of one file or of several.
struct Gateway {
    name: &'static str,
    /// With the listeners that it would get from elsewhere.
    bootstrap: Value,
}

fn gateways() -> Vec<Gateway> {
    let mut reloadable = document("envoy/reloadable/bootstrap.yaml");
    reloadable["static_resources"]["listeners"] =
        document("envoy/reloadable/listeners.yaml")["resources"].take();
    let gateways = vec![
        Gateway {
            name: "envoy/tollgate.yaml",
            bootstrap: document("envoy/tollgate.yaml"),
        },
        Gateway {
            name: "envoy/reloadable",
            bootstrap: reloadable,
        },
        Gateway {
            name: "examples/docker-compose/envoy.yaml",
            bootstrap: document("examples/docker-compose/envoy.yaml"),
        },
    ];
    for gateway in &gateways {
        assert_eq!(gateway.filters().len(), 1, "{}", gateway.name);
    }
    gateways
}

impl Gateway {
    fn filters(&self) -> Vec<&Value> {
        with_field(&self.bootstrap, "vm_config")
    }

    fn connection_manager(&self) -> &Value {
        at(
            &self.bootstrap,
            "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config",
        )
    }

    fn configuration(&self) -> Configuration {
        let filter = self.filters()[0];
        let environment = list(filter, "/vm_config/environment_variables/host_env_keys")
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect();
        load(
            string(filter, "/configuration/value"),
            &environment,
            self.name,
        )
    }
}

#[test]
fn every_configuration_loads_with_the_environment_its_file_hands_on() {
    for gateway in gateways() {
        assert_eq!(gateway.configuration().services[0].id, "1001");
    }
}

#[test]
fn a_trapped_vm_is_replaced_and_never_bypassed() {
    for gateway in gateways() {
        let filter = gateway.filters()[0];
        let name = gateway.name;
        assert_eq!(string(filter, "/failure_policy"), "FAIL_RELOAD", "{name}");
        // Deprecated, and stronger than the policy.
        assert_eq!(filter.get("fail_open"), None, "{name}");
        let vm = at(filter, "/vm_config");
        assert_eq!(vm.get("allow_precompiled"), None, "{name}");
        assert_eq!(string(vm, "/vm_id"), "tollgate", "{name}");
        assert_eq!(string(vm, "/runtime"), "envoy.wasm.runtime.v8", "{name}");
    }
}

#[test]
fn paths_are_read_alike_by_envoy_filter_and_api() {
    for gateway in gateways() {
        let manager = gateway.connection_manager();
        for field in ["/normalize_path", "/merge_slashes", "/use_remote_address"] {
            assert_eq!(*at(manager, field), json!(true), "{} {field}", gateway.name);
        }
        for field in [
            "/path_with_escaped_slashes_action",
            "/common_http_protocol_options/headers_with_underscores_action",
        ] {
            assert_eq!(string(manager, field), "REJECT_REQUEST", "{}", gateway.name);
        }
    }
}

#[test]
fn a_request_ends_even_if_the_vm_it_waits_in_died() {
    for gateway in gateways() {
        let manager = gateway.connection_manager();
        let idle = duration(manager, "/stream_idle_timeout");
        let whole = duration(manager, "/request_timeout");
        let configuration = gateway.configuration();
        assert!(
            configuration.service_management.timeout < idle,
            "{}: a request that waits for an answer would be ended before it",
            gateway.name
        );
        let routes = with_field(manager, "route");
        assert!(!routes.is_empty());
        for route in routes {
            let timeout = duration(route, "/route/timeout");
            assert!(timeout > Duration::ZERO, "{}: never ends", gateway.name);
            assert!(timeout < idle && timeout < whole, "{}", gateway.name);
        }
    }
}

#[test]
fn the_cluster_that_the_configuration_names_suits_the_backend() {
    for gateway in gateways() {
        let name = gateway.name;
        let configuration = gateway.configuration();
        let cluster = list(&gateway.bootstrap, "/static_resources/clusters")
            .iter()
            .find(|cluster| cluster["name"] == configuration.service_management.cluster)
            .unwrap_or_else(|| panic!("{name}: no such cluster"));
        let options = "/typed_extension_protocol_options/\
                       envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        let idle = format!("{options}/common_http_protocol_options/idle_timeout");
        assert!(duration(cluster, &idle) < BACKEND_IDLE, "{name}");
        let connect = duration(cluster, "/connect_timeout");
        assert!(
            connect < configuration.service_management.timeout,
            "{name}: not connected would look like no answer"
        );
        assert!(connect < configuration.reporting.timeout, "{name}");
        // The filter decides what is sent twice.
        let retries = at(cluster, "/circuit_breakers/thresholds/0/max_retries");
        assert_eq!(*retries, json!(0), "{name}");
    }
}

#[test]
fn what_is_logged_holds_no_credential() {
    for gateway in gateways() {
        let log = at(gateway.connection_manager(), "/access_log").to_string();
        for field in [
            "REQ(:PATH",
            "REQ(X-ENVOY-ORIGINAL-PATH",
            "%PATH%",
            "%PATH(WQ",
        ] {
            assert!(!log.contains(field), "{}: {field} in {log}", gateway.name);
        }
        assert!(!log.to_lowercase().contains("api-key"), "{}", gateway.name);
        assert!(log.contains("%RESPONSE_CODE_DETAILS%"), "{}", gateway.name);
    }
}

#[test]
fn the_service_in_a_counters_name_becomes_a_label() {
    for gateway in gateways() {
        let tag = at(&gateway.bootstrap, "/stats_config/stats_tags/0");
        let prefix = string(tag, "/regex");
        assert!(prefix.starts_with(r"^wasmcustom\.tollgate\."), "{prefix}");
    }
}

#[test]
fn the_admin_port_is_on_loopback_where_no_container_hides_it() {
    for gateway in gateways().iter().take(2) {
        let address = "/admin/address/socket_address/address";
        assert_eq!(
            string(&gateway.bootstrap, address),
            "127.0.0.1",
            "{}",
            gateway.name
        );
    }
}

#[test]
fn the_composed_envoy_is_the_shipped_one_at_other_addresses() {
    let listener = "/static_resources/listeners/0";
    let filter = format!(
        "{listener}/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config"
    );
    let endpoint = "load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address";
    let differing = [
        "/admin/address/socket_address/address".to_owned(),
        format!("{listener}/address/socket_address/address"),
        format!("{filter}/vm_config/code/local/filename"),
        format!("{filter}/configuration/value"),
        "/static_resources/clusters/0/type".to_owned(),
        format!("/static_resources/clusters/0/{endpoint}/address"),
        "/static_resources/clusters/1/type".to_owned(),
        format!("/static_resources/clusters/1/{endpoint}/address"),
    ];
    let [shipped, composed] =
        ["envoy/tollgate.yaml", "examples/docker-compose/envoy.yaml"].map(|path| {
            let mut bootstrap = document(path);
            for place in &differing {
                *bootstrap
                    .pointer_mut(place)
                    .unwrap_or_else(|| panic!("{place}")) = json!("-");
            }
            bootstrap
        });
    assert_eq!(composed, shipped);
}
