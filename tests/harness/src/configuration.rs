//! The shipped Envoy configurations, changed only as far as a test must: addresses,
//! paths and the plugin's configuration. Apart from the process so that it can be
//! tested without Envoy.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};

const STATIC: &str = include_str!("../../../envoy/tollgate.yaml");
const BOOTSTRAP: &str = include_str!("../../../envoy/reloadable/bootstrap.yaml");
const LISTENERS: &str = include_str!("../../../envoy/reloadable/listeners.yaml");

/// Which of the shipped configurations to start from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Base {
    /// `envoy/tollgate.yaml`: everything in one file.
    #[default]
    Static,
    /// `envoy/reloadable/`: the listener can be replaced while Envoy runs.
    Reloadable,
}

/// The configuration that the filter is given.
#[derive(Clone, Debug, Default)]
pub enum Plugin {
    /// As shipped.
    #[default]
    Shipped,
    /// The shipped one with a JSON merge patch (RFC 7396) applied: objects are merged,
    /// null removes, anything else (arrays too) replaces.
    Merge(Value),
    /// This one instead.
    Replace(Value),
    /// These characters, which need not be JSON.
    Text(String),
}

/// The last word on the listener, as parsed from the shipped file.
pub type ListenerPatch = Arc<dyn Fn(&mut Value) + Send + Sync>;

/// What is put in place of the values that the shipped files fix.
#[derive(Clone)]
pub(crate) struct Changes {
    pub base: Base,
    pub plugin: Plugin,
    pub module: Option<String>,
    pub filters: Option<Vec<Value>>,
    pub upstream: Option<SocketAddr>,
    pub service_management: Option<SocketAddr>,
    pub clusters: Vec<(String, SocketAddr)>,
    /// `None` turns the access log off.
    pub access_log: Option<String>,
    pub listener: Option<ListenerPatch>,
    /// Where the file with the listener will stand (for [`Base::Reloadable`]).
    pub listeners_path: String,
}

impl Changes {
    /// The bootstrap configuration.
    pub fn bootstrap(&self) -> Result<Value> {
        let mut bootstrap = match self.base {
            Base::Static => parse(STATIC)?,
            Base::Reloadable => parse(BOOTSTRAP)?,
        };
        *at(&mut bootstrap, "/admin/address/socket_address/port_value")? = json!(0);
        for (cluster, address) in [(0, self.upstream), (1, self.service_management)] {
            // Port 9 (discard): what a test does not set up refuses connections.
            let address = address.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 9)));
            let place = format!(
                "/static_resources/clusters/{cluster}/load_assignment/endpoints/0/lb_endpoints/0/endpoint/address/socket_address"
            );
            *at(&mut bootstrap, &place)? =
                json!({ "address": address.ip().to_string(), "port_value": address.port() });
        }
        let clusters = at(&mut bootstrap, "/static_resources/clusters")?;
        let clusters = clusters.as_array_mut().context("clusters is no list")?;
        for (name, address) in &self.clusters {
            let address =
                json!({ "address": address.ip().to_string(), "port_value": address.port() });
            clusters.push(json!({
                "name": name,
                "type": "STATIC",
                "connect_timeout": "0.5s",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{ "lb_endpoints": [
                        { "endpoint": { "address": { "socket_address": address } } },
                    ] }],
                },
            }));
        }
        match self.base {
            Base::Static => {
                self.change_listener(at(&mut bootstrap, "/static_resources/listeners/0")?)?
            }
            Base::Reloadable => {
                *at(
                    &mut bootstrap,
                    "/dynamic_resources/lds_config/path_config_source/path",
                )? = json!(self.listeners_path);
            }
        }
        Ok(bootstrap)
    }

    /// The file with the listener, for [`Base::Reloadable`].
    pub fn listeners(&self) -> Result<Value> {
        let mut listeners = parse(LISTENERS)?;
        self.change_listener(at(&mut listeners, "/resources/0")?)?;
        Ok(listeners)
    }

    fn change_listener(&self, listener: &mut Value) -> Result<()> {
        *at(listener, "/address/socket_address/port_value")? = json!(0);
        let manager = at(listener, MANAGER)?;
        match &self.access_log {
            None => *at(manager, "/access_log")? = json!([]),
            Some(path) => {
                let log = at(manager, "/access_log/0")?;
                *at(log, "/name")? = json!("envoy.access_loggers.file");
                *at(log, "/typed_config/@type")? = json!(
                    "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
                );
                at(log, "/typed_config")?["path"] = json!(path);
            }
        }
        match &self.filters {
            Some(filters) => {
                let all = at(manager, "/http_filters")?
                    .as_array_mut()
                    .context("http_filters is no list")?;
                let router = all.pop();
                *all = filters.iter().cloned().chain(router).collect();
            }
            None => {
                let filter = at(manager, "/http_filters/0/typed_config/config")?;
                if let Some(module) = &self.module {
                    *at(filter, "/vm_config/code/local/filename")? = json!(module);
                }
                let plugin = at(filter, "/configuration/value")?;
                match &self.plugin {
                    Plugin::Shipped => {}
                    Plugin::Merge(patch) => {
                        let shipped = plugin.as_str().context("the configuration is no string")?;
                        let mut merged = serde_json::from_str(shipped)?;
                        merge(&mut merged, patch);
                        *plugin = json!(merged.to_string());
                    }
                    Plugin::Replace(value) => *plugin = json!(value.to_string()),
                    Plugin::Text(text) => *plugin = json!(text),
                }
            }
        }
        if let Some(patch) = &self.listener {
            patch(listener);
        }
        Ok(())
    }
}

const MANAGER: &str = "/filter_chains/0/filters/0/typed_config";

/// The HTTP connection manager inside a listener, for a [`ListenerPatch`].
///
/// # Panics
/// If `listener` is not one of the shipped listeners.
pub fn connection_manager(listener: &mut Value) -> &mut Value {
    listener
        .pointer_mut(MANAGER)
        .expect("the shipped listener has a connection manager")
}

/// An entry of `http_filters` that loads some other module, without a configuration.
pub fn wasm_filter(name: &str, module: &Path) -> Value {
    json!({
        "name": name,
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": name,
                "root_id": name,
                "failure_policy": "FAIL_RELOAD",
                "vm_config": {
                    "vm_id": name,
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": { "local": { "filename": module } },
                },
            },
        },
    })
}

fn parse(yaml: &str) -> Result<Value> {
    Ok(serde_yaml::from_str(yaml)?)
}

fn at<'a>(value: &'a mut Value, pointer: &str) -> Result<&'a mut Value> {
    value
        .pointer_mut(pointer)
        .with_context(|| format!("the shipped configuration has no {pointer}"))
}

/// JSON merge patch, RFC 7396.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(target) = target.as_object_mut() {
                target.remove(key);
            }
        } else {
            merge(&mut target[key], value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(base: Base) -> Changes {
        Changes {
            base,
            plugin: Plugin::Shipped,
            module: Some("/m.wasm".into()),
            filters: None,
            upstream: Some(([127, 0, 0, 1], 1234).into()),
            service_management: None,
            clusters: Vec::new(),
            access_log: Some("/a.log".into()),
            listener: None,
            listeners_path: "/l.yaml".into(),
        }
    }

    #[test]
    fn the_two_shipped_configurations_say_the_same() {
        let mut whole = parse(STATIC).unwrap();
        let mut listeners = parse(LISTENERS).unwrap();
        let mut bootstrap = parse(BOOTSTRAP).unwrap();
        let mut listener = listeners["resources"][0].take();
        listener.as_object_mut().unwrap().remove("@type");
        assert_eq!(
            whole["static_resources"]["listeners"].take(),
            json!([listener])
        );

        bootstrap.as_object_mut().unwrap().remove("node");
        bootstrap
            .as_object_mut()
            .unwrap()
            .remove("dynamic_resources");
        whole["static_resources"]
            .as_object_mut()
            .unwrap()
            .remove("listeners");
        assert_eq!(whole, bootstrap);
    }

    #[test]
    fn both_bases_are_changed_alike() {
        let whole = changes(Base::Static).bootstrap().unwrap();
        let bootstrap = changes(Base::Reloadable).bootstrap().unwrap();
        let mut listener = changes(Base::Reloadable).listeners().unwrap()["resources"][0].take();
        listener.as_object_mut().unwrap().remove("@type");
        assert_eq!(whole["static_resources"]["listeners"][0], listener);
        assert_eq!(
            whole["static_resources"]["clusters"],
            bootstrap["static_resources"]["clusters"]
        );
        let text = listener.to_string();
        assert!(
            text.contains("/m.wasm") && text.contains("/a.log"),
            "{text}"
        );
        assert!(bootstrap.to_string().contains("1234"));
    }

    #[test]
    fn the_plugin_is_given_the_shipped_configuration_with_the_patch_in_it() {
        let mut changes = changes(Base::Static);
        changes.plugin = Plugin::Merge(json!({ "authorization": { "ttl": "7s" } }));
        let whole = changes.bootstrap().unwrap();
        let place = "/http_filters/0/typed_config/config/configuration/value";
        let text = whole
            .pointer(&format!("/static_resources/listeners/0{MANAGER}{place}"))
            .unwrap();
        let plugin: Value = serde_json::from_str(text.as_str().unwrap()).unwrap();
        assert_eq!(plugin["authorization"]["ttl"], "7s");
        assert_eq!(plugin["authorization"]["negative_ttl"], "10s");
        assert_eq!(plugin["services"][0]["id"], "1001");
    }

    #[test]
    fn given_filters_stand_in_place_of_tollgate_and_before_the_router() {
        let mut changes = changes(Base::Static);
        changes.filters = Some(vec![wasm_filter("hello", Path::new("/hello.wasm"))]);
        let whole = changes.bootstrap().unwrap();
        let filters = whole
            .pointer(&format!(
                "/static_resources/listeners/0{MANAGER}/http_filters"
            ))
            .unwrap();
        let names: Vec<_> = filters
            .as_array()
            .unwrap()
            .iter()
            .map(|f| f["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["hello", "envoy.filters.http.router"]);
    }

    #[test]
    fn a_plugin_patch_merges_objects_replaces_lists_and_removes_nulls() {
        let mut value = json!({ "a": { "b": 1, "c": [1, 2] }, "d": 4 });
        merge(
            &mut value,
            &json!({ "a": { "c": [3], "e": {} }, "d": null }),
        );
        assert_eq!(value, json!({ "a": { "b": 1, "c": [3], "e": {} } }));
    }
}
