//! The Dockerfile, and the version wherever it is written.

use super::{documents, text};

/// The instructions of the last stage of the Dockerfile, without comments.
fn last_stage() -> Vec<String> {
    let whole = text("Dockerfile").replace("\\\n", " ");
    let mut stage = Vec::new();
    for line in whole.lines().map(str::trim) {
        if line.starts_with("FROM ") {
            stage.clear();
        }
        if !line.is_empty() && !line.starts_with('#') {
            stage.push(line.to_owned());
        }
    }
    stage
}

#[test]
fn the_image_is_one_layer_with_the_module_at_its_root() {
    let stage = last_stage();
    assert!(stage[0].starts_with("FROM scratch"), "{}", stage[0]);
    let layers: Vec<&String> = stage[1..]
        .iter()
        .filter(|line| !line.starts_with("LABEL "))
        .collect();
    let ["COPY", "--from=build", from, "./plugin.wasm"] =
        layers[0].split(' ').collect::<Vec<_>>()[..]
    else {
        panic!("{layers:?}");
    };
    assert_eq!(layers.len(), 1, "{layers:?}");
    // Where `cargo xtask build` puts it.
    assert_eq!(from, "/src/target/tollgate.wasm");
}

#[test]
fn the_version_is_that_of_the_package_wherever_it_stands() {
    let version = env!("CARGO_PKG_VERSION");
    let label = format!("org.opencontainers.image.version=\"{version}\"");
    assert!(text("Dockerfile").contains(&label), "{label}");
    for file in [
        "examples/istio/wasmplugin.yaml",
        "examples/istio/sidecar.yaml",
    ] {
        for resource in documents(file) {
            if let Some(url) = resource.pointer("/spec/url") {
                let url = url.as_str().unwrap();
                assert!(url.ends_with(&format!("/tollgate:{version}")), "{url}");
            }
        }
    }
    assert!(text("CHANGELOG.md").contains(&format!("## {version}")));
}
