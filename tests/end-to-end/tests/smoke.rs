//! The least that must work before any other end-to-end test means something: Envoy takes
//! the shipped configurations with the module, serves, and can be asked and reloaded.

use anyhow::Result;
use tollgate_harness::{Base, Echo, Envoy, EnvoyOptions, ListenerUpdate, Plugin, raw_request};

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn the_shipped_configurations_load_the_module_and_serve() -> Result<()> {
    let echo = Echo::start().await?;
    for base in [Base::Static, Base::Reloadable] {
        let envoy = Envoy::start(EnvoyOptions {
            base,
            upstream: Some(echo.address()),
            ..Default::default()
        })
        .await?;
        // `/healthz` is exempt in the shipped configuration.
        let reply = envoy.client()?.get("/healthz", &[]).await?;
        assert_eq!(reply.status, 200, "{base:?}: {}", reply.body);
        let line = envoy
            .wait_for_access_log(|line| line["path"] == "/healthz")
            .await?;
        assert_eq!(line["details"], "via_upstream");
        assert!(envoy.rss_mib()? > 1.0);
        assert!(!envoy.cpu_time()?.is_zero());
    }
    assert_eq!(echo.requests(), 2);
    Ok(())
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_new_listener_is_taken_and_keeps_its_address() -> Result<()> {
    let echo = Echo::start().await?;
    let options = EnvoyOptions {
        base: Base::Reloadable,
        upstream: Some(echo.address()),
        ..Default::default()
    };
    let mut envoy = Envoy::start(options).await?;
    assert_eq!(envoy.client()?.get("/healthz", &[]).await?.status, 200);
    let shorter = Plugin::Merge(serde_json::json!({ "authorization": { "ttl": "30s" } }));
    assert_eq!(
        envoy.update_listener(shorter).await?,
        ListenerUpdate::Accepted
    );
    assert_eq!(envoy.client()?.get("/healthz", &[]).await?.status, 200);
    Ok(())
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_refused_configuration_leaves_the_previous_one_at_work() -> Result<()> {
    let echo = Echo::start().await?;
    let options = EnvoyOptions {
        base: Base::Reloadable,
        upstream: Some(echo.address()),
        ..Default::default()
    };
    let mut envoy = Envoy::start(options).await?;
    for broken in [
        Plugin::Text("{".into()),
        Plugin::Merge(serde_json::json!({ "authorisation": {} })),
    ] {
        assert_eq!(
            envoy.update_listener(broken).await?,
            ListenerUpdate::Rejected
        );
        assert_eq!(envoy.client()?.get("/healthz", &[]).await?.status, 200);
    }
    assert!(envoy.log().contains("authorisation"), "{}", envoy.log());
    Ok(())
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_header_that_is_not_utf8_does_no_harm() -> Result<()> {
    let echo = Echo::start().await?;
    let envoy = Envoy::start(EnvoyOptions {
        upstream: Some(echo.address()),
        ..Default::default()
    })
    .await?;
    for _ in 0..4 {
        let request =
            b"GET /healthz HTTP/1.1\r\nhost: a\r\nx-api-key: \xff\xfe\r\nconnection: close\r\n\r\n";
        assert_eq!(raw_request(envoy.address(), request).await?.0, Some(200));
    }
    assert_eq!(echo.requests(), 4);
    Ok(())
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn a_dropped_handle_leaves_no_process() -> Result<()> {
    let envoy = Envoy::start(EnvoyOptions::default()).await?;
    let process = format!("/proc/{}", envoy.pid());
    assert!(std::path::Path::new(&process).exists());
    drop(envoy);
    assert!(!std::path::Path::new(&process).exists());
    Ok(())
}

#[tokio::test]
#[ignore = "needs Envoy and the module: run cargo xtask test"]
async fn an_envoy_that_cannot_start_says_why() {
    let listener = std::sync::Arc::new(|listener: &mut serde_json::Value| {
        listener["no_such_field"] = true.into();
    });
    let error = Envoy::start(EnvoyOptions {
        listener: Some(listener),
        ..Default::default()
    })
    .await
    .err()
    .unwrap();
    assert!(format!("{error:#}").contains("no_such_field"), "{error:#}");
}
