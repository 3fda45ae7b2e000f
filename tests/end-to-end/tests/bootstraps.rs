//! Envoy itself judges the configurations that are shipped as files: those that the harness
//! starts, and those of the examples, which it does not.
//!
//! `--mode validate` loads the module, too, and lets it judge its configuration.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document(path: &str) -> Result<Value> {
    let text = std::fs::read_to_string(root().join(path)).with_context(|| path.to_owned())?;
    serde_yaml::from_str(&text).with_context(|| path.to_owned())
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set: run cargo xtask test"))
}

/// What Envoy says of a bootstrap whose module is the one under test: `Err` with its log
/// if it refuses it.
fn validate(mut bootstrap: Value) -> Result<std::result::Result<(), String>> {
    let module = variable("TOLLGATE_WASM")?;
    let mut modules = 0;
    for listener in bootstrap["static_resources"]["listeners"]
        .as_array_mut()
        .into_iter()
        .flatten()
    {
        let filters = "/filter_chains/0/filters/0/typed_config/http_filters";
        let filters = listener.pointer_mut(filters).context("no filters")?;
        for filter in filters.as_array_mut().into_iter().flatten() {
            let place = "/typed_config/config/vm_config/code/local/filename";
            if let Some(name) = filter.pointer_mut(place) {
                *name = json!(module);
                modules += 1;
            }
        }
    }
    assert_eq!(modules, 1, "the module is not judged");
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("bootstrap.json");
    std::fs::write(&path, bootstrap.to_string())?;
    let output = Command::new(variable("ENVOY")?)
        .args(["--mode", "validate", "--log-level", "info", "-c"])
        .arg(&path)
        .env("TG_SERVICE_TOKEN", "svc-token")
        .output()?;
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() {
        // A module that was not loaded has judged nothing.
        assert!(log.contains("tollgate: configured with"), "{log}");
        Ok(())
    } else {
        Err(log)
    })
}

/// The shipped gateway with its listener in a file of its own, put together.
fn reloadable() -> Result<Value> {
    let mut bootstrap = document("envoy/reloadable/bootstrap.yaml")?;
    let mut listeners = document("envoy/reloadable/listeners.yaml")?["resources"].take();
    for listener in listeners.as_array_mut().context("resources")? {
        listener
            .as_object_mut()
            .context("listener")?
            .remove("@type");
    }
    bootstrap["static_resources"]["listeners"] = listeners;
    Ok(bootstrap)
}

#[test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
fn envoy_accepts_every_bootstrap() -> Result<()> {
    for path in ["envoy/tollgate.yaml", "examples/docker-compose/envoy.yaml"] {
        let verdict = validate(document(path)?)?;
        assert_eq!(verdict, Ok(()), "{path}");
    }
    assert_eq!(validate(reloadable()?)?, Ok(()), "envoy/reloadable");
    Ok(())
}

#[test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
fn envoy_accepts_what_the_istio_example_merges_into_its_connection_manager() -> Result<()> {
    let filter = document("examples/istio/connection-manager.yaml")?;
    let patch = filter
        .pointer("/spec/configPatches/0/patch/value/typed_config")
        .and_then(Value::as_object)
        .context("no patch")?;
    let mut bootstrap = document("envoy/tollgate.yaml")?;
    let manager = bootstrap
        .pointer_mut("/static_resources/listeners/0/filter_chains/0/filters/0/typed_config")
        .and_then(Value::as_object_mut)
        .context("no connection manager")?;
    manager.extend(patch.clone());
    assert_eq!(validate(bootstrap)?, Ok(()));
    Ok(())
}

#[test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
fn envoy_accepts_the_rate_limit_headers_in_its_route_configuration() -> Result<()> {
    let fields = document("envoy/rate-limit-headers.yaml")?;
    let mut bootstrap = document("envoy/tollgate.yaml")?;
    let routes =
        "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/route_config";
    bootstrap
        .pointer_mut(routes)
        .and_then(Value::as_object_mut)
        .context("no routes")?
        .extend(fields.as_object().context("no fields")?.clone());
    assert_eq!(validate(bootstrap)?, Ok(()));
    Ok(())
}

#[test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
fn envoy_accepts_the_filters_and_clusters_for_tokens() -> Result<()> {
    for path in ["envoy/tokens.yaml", "envoy/behind-jwt-authn.yaml"] {
        let parts = document(path)?;
        let part = |name: &str| parts[name].as_array().cloned().context(name.to_owned());
        let mut bootstrap = document("envoy/tollgate.yaml")?;
        let filters =
            "/static_resources/listeners/0/filter_chains/0/filters/0/typed_config/http_filters";
        bootstrap
            .pointer_mut(filters)
            .and_then(Value::as_array_mut)
            .context("no filters")?
            .splice(..1, part("http_filters")?);
        bootstrap["static_resources"]["clusters"]
            .as_array_mut()
            .context("no clusters")?
            .extend(part("clusters")?);
        assert_eq!(validate(bootstrap)?, Ok(()), "{path}");
    }
    Ok(())
}

#[test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
fn envoy_refuses_a_field_or_a_plugin_configuration_that_is_wrong() -> Result<()> {
    let listener = "/static_resources/listeners/0";
    let mut unknown_field = document("envoy/tollgate.yaml")?;
    unknown_field.pointer_mut(listener).context("listener")?["no_such_field"] = json!(1);
    let log = validate(unknown_field)?.expect_err("Envoy took an unknown field");
    assert!(log.contains("no_such_field"), "{log}");

    let mut plugin = document("envoy/tollgate.yaml")?;
    let place = format!(
        "{listener}/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config/config/\
         configuration/value"
    );
    *plugin.pointer_mut(&place).context("configuration")? = json!(r#"{ "services": [] }"#);
    let log = validate(plugin)?.expect_err("Envoy took a configuration that Tollgate refuses");
    assert!(log.contains("tollgate: configuration refused"), "{log}");
    Ok(())
}
