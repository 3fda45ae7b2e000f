//! The configurations in the documentation are ones that Tollgate accepts, the
//! reference says what the code does, and links lead somewhere.
//!
//! Apart from the unit tests because it reads files of the repository. A block that
//! is a whole configuration is marked as `title=configuration` after its language;
//! `title=defaults` is one that spells out every default. Configurations inside of
//! Envoy's and Istio's own, and parts of a service, are found by their fields.

#![cfg(not(target_family = "wasm"))]

use std::fs;
use std::path::{Path, PathBuf};

use serde_yaml::Value;
use tollgate::config::Configuration;

/// A fenced block of YAML: where it begins, what is behind its language, its text.
struct Block {
    place: String,
    title: String,
    text: String,
}

/// README.md and all of docs/, where they are.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> = fs::read_dir(root.join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain([root.join("README.md")])
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .filter(|path| path.exists())
        .collect();
    documents.sort();
    documents
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for path in documents() {
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let Some(info) = line.trim_start().strip_prefix("```") else {
                continue;
            };
            let indentation = line.len() - line.trim_start().len();
            let text: String = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| line.trim() != "```")
                .map(|line| format!("{}\n", line.get(indentation..).unwrap_or_default()))
                .collect();
            if let Some(title) = info.strip_prefix("yaml") {
                blocks.push(Block {
                    place: format!("{}:{}", path.display(), number + 1),
                    title: title.trim().to_owned(),
                    text,
                });
            }
        }
    }
    blocks
}

fn load(json: &str, place: &str) -> Configuration {
    load_where(json, place, &|_| true)
}

/// Loads it where only the variables are set that `is_set` says.
fn load_where(json: &str, place: &str, is_set: &dyn Fn(&str) -> bool) -> Configuration {
    Configuration::parse(json.as_bytes(), &|name| {
        is_set(name).then(|| "token".to_owned())
    })
    .unwrap_or_else(|error| panic!("{place}: {error}"))
}

fn load_yaml(value: &Value, place: &str) -> Configuration {
    load(&serde_json::to_string(value).unwrap(), place)
}

fn yaml(block: &Block) -> Value {
    serde_yaml::from_str(&block.text).unwrap_or_else(|error| panic!("{}: {error}", block.place))
}

#[test]
fn every_configuration_in_the_documentation_is_accepted() {
    let mut loaded = 0;
    for block in blocks() {
        // Also what is not marked must at least be YAML.
        let value = yaml(&block);
        if block.title.starts_with("title=") {
            load_yaml(&value, &block.place);
            loaded += 1;
        } else {
            let whole =
                value.get("service_management").is_some() && value.get("services").is_some();
            assert!(!whole, "{}: mark this as title=configuration", block.place);
        }
    }
    assert!(loaded >= 3, "only {loaded} configurations found");
}

#[test]
fn every_configuration_inside_of_envoys_and_istios_is_accepted_with_the_environment_it_has() {
    let mut loaded = 0;
    for block in blocks() {
        let value = yaml(&block);
        let hands_on = |list: Option<&Value>, name: &str, field: Option<&str>| {
            let list = list.and_then(Value::as_sequence);
            list.into_iter().flatten().any(|item| match field {
                Some(field) => item.get(field).is_some_and(|item| item == name),
                None => item == name,
            })
        };
        if let Some(filter) = value.get("typed_config").and_then(|it| it.get("config")) {
            let json = filter
                .get("configuration")
                .and_then(|it| it.get("value")?.as_str());
            let keys = filter
                .get("vm_config")
                .and_then(|it| it.get("environment_variables")?.get("host_env_keys"));
            load_where(json.unwrap(), &block.place, &|name| {
                hands_on(keys, name, None)
            });
            loaded += 1;
        }
        if let Some(spec) = value
            .get("spec")
            .filter(|it| it.get("pluginConfig").is_some())
        {
            let json = serde_json::to_string(&spec["pluginConfig"]).unwrap();
            let env = spec.get("vmConfig").and_then(|it| it.get("env"));
            load_where(&json, &block.place, &|name| {
                hands_on(env, name, Some("name"))
            });
            loaded += 1;
        }
    }
    assert!(loaded >= 2, "only {loaded} configurations found");
}

#[test]
fn every_part_of_a_service_in_the_documentation_is_accepted() {
    const PARTS: [&str; 5] = [
        "credentials",
        "mapping_rules",
        "metrics",
        "exempt",
        "replies",
    ];
    let mut loaded = Vec::new();
    for block in blocks() {
        // A whole configuration has some of these fields at its top.
        if !block.title.is_empty() {
            continue;
        }
        let value = yaml(&block);
        for part in PARTS {
            let Some(fragment) = value.get(part) else {
                continue;
            };
            let mut configuration = serde_json::json!({
                "service_management": { "cluster": "c", "authority": "a" },
                "services": [{
                    "id": "1001",
                    "token": "token",
                    "hosts": ["*"],
                    "mapping_rules": [{ "pattern": "/", "usage": { "hits": 1 } }],
                }],
            });
            configuration["services"][0][part] = serde_json::to_value(fragment).unwrap();
            // What rules require, they require of the tokens beside them.
            if let Some(credentials) = value.get("credentials") {
                configuration["services"][0]["credentials"] =
                    serde_json::to_value(credentials).unwrap();
            }
            load(&configuration.to_string(), &block.place);
            loaded.push(part);
        }
    }
    assert!(
        PARTS.iter().all(|part| loaded.contains(part)),
        "only {loaded:?} found"
    );
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    let blocks = blocks();
    let defaults: Vec<&Block> = blocks
        .iter()
        .filter(|block| block.title == "title=defaults")
        .collect();
    let [block] = defaults.as_slice() else {
        panic!("{} blocks have the title=defaults", defaults.len());
    };
    let mut shortest = yaml(block);
    let remove = |value: &mut Value, names: &[&str]| {
        for name in names {
            let removed = value.as_mapping_mut().unwrap().remove(*name);
            assert!(removed.is_some(), "{name} is not spelled out");
        }
    };
    remove(
        &mut shortest,
        &["authorization", "reporting", "unmatched_hosts", "replies"],
    );
    remove(&mut shortest["service_management"], &["timeout"]);
    let service = &mut shortest["services"][0];
    remove(
        service,
        &[
            "path_prefix",
            "oauth",
            "credentials",
            "metrics",
            "exempt",
            "replies",
            "rate_limit_headers",
            "authorization",
        ],
    );
    remove(&mut service["mapping_rules"][0], &["method", "last"]);

    let spelled_out = load_yaml(&yaml(block), &block.place);
    let left_out = load_yaml(&shortest, &block.place);
    assert_eq!(spelled_out.service_management, left_out.service_management);
    assert_eq!(spelled_out.authorization, left_out.authorization);
    assert_eq!(spelled_out.reporting, left_out.reporting);
    assert_eq!(spelled_out.unmatched_hosts, left_out.unmatched_hosts);
    assert_eq!(spelled_out.replies, left_out.replies);
    assert_eq!(
        format!("{:?}", spelled_out.services),
        format!("{:?}", left_out.services)
    );
}

#[test]
fn every_field_is_in_the_reference() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let reference = fs::read_to_string(root.join("docs/configuration.md")).unwrap();
    let reference = reference + &fs::read_to_string(root.join("docs/tokens.md")).unwrap();
    let probes = [
        r#"{ "?": 0 }"#,
        r#"{ "service_management": { "?": 0 } }"#,
        r#"{ "services": [{ "?": 0 }] }"#,
        r#"{ "services": [{ "credentials": { "?": 0 } }] }"#,
        r#"{ "services": [{ "mapping_rules": [{ "?": 0 }] }] }"#,
        r#"{ "services": [{ "mapping_rules": [{ "require": { "?": 0 } }] }] }"#,
        r#"{ "services": [{ "mapping_rules": [{ "require": { "claims": [{ "?": 0 }] } }] }] }"#,
        r#"{ "services": [{ "credentials": { "token": { "?": 0 } } }] }"#,
        r#"{ "services": [{ "credentials": { "token": { "issuers": [{ "?": 0 }] } } }] }"#,
        r#"{ "services": [{ "credentials": { "token": { "issuers": [{ "discovery": { "?": 0 } }] } } }] }"#,
        r#"{ "services": [{ "credentials": { "token": { "introspection": { "?": 0 } } } }] }"#,
        r#"{ "services": [{ "authorization": { "?": 0 } }] }"#,
        r#"{ "authorization": { "?": 0 } }"#,
        r#"{ "reporting": { "?": 0 } }"#,
        r#"{ "replies": { "denied": { "?": 0 } } }"#,
    ];
    let whole = r#"{
        "service_management": { "cluster": "c", "authority": "a" },
        "services": [],
        "replies": { "?": {} }
    }"#;
    for probe in probes.into_iter().chain([whole]) {
        let error = Configuration::parse(probe.as_bytes(), &|_| None)
            .unwrap_err()
            .to_string();
        let (_, fields) = error
            .split_once("the fields here are ")
            .unwrap_or_else(|| panic!("{error}"));
        for field in fields.split(", ") {
            let named = [format!("`{field}`"), format!(".{field}`")]
                .iter()
                .any(|name| reference.contains(name));
            assert!(named, "{field} of {probe} is not in docs/configuration.md");
        }
    }
}

/// The names in a list of the filter's source: string literals of lower-case words between
/// two lines of it.
fn names(path: &str, from: &str, to: &str) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let source = fs::read_to_string(root.join(path)).unwrap();
    let (_, list) = source.split_once(from).unwrap_or_else(|| panic!("{from}"));
    let (list, _) = list.split_once(to).unwrap_or_else(|| panic!("{to}"));
    let names: Vec<String> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    assert!(names.len() >= 5, "{path}: only {names:?} found");
    names
}

fn document(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

#[test]
fn every_counter_is_in_the_description_of_operations_and_no_other() {
    let mut counters = names("src/host/stats.rs", "const ALL:", "];\n");
    let gauges = [
        "usage_pending",
        "usage_in_flight",
        "metrics_unknown",
        "refreshes_waiting",
    ];
    counters.extend(gauges.map(str::to_owned));
    counters.extend(names("src/host/root/tokens.rs", "let names = [", "];\n"));
    let of_key_managers = names("src/host/root/introspection.rs", "const NAMES", "];\n");
    counters.extend(
        of_key_managers
            .iter()
            .map(|it| format!("introspection_{it}")),
    );
    let operations = document("docs/operations.md");
    for counter in &counters {
        let row = format!("\n| `{counter}` | ");
        assert!(operations.contains(&row), "{counter} is not in a table");
    }
    let (_, tables) = operations.split_once("\n## Counters\n").unwrap();
    let (tables, _) = tables.split_once("\n## ").unwrap();
    for row in tables.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, _) = row.split_once('`').unwrap();
        assert!(counters.iter().any(|counter| counter == name), "{name}");
    }
}

#[test]
fn every_detail_of_a_reply_and_every_reason_is_in_the_description_of_failure() {
    use tollgate::service_management::{Denial, Misconfiguration};
    let failure = document("docs/failure.md");
    let replies = names("src/host/local_reply.rs", "let case = match self {", "};\n");
    let denials = Denial::ALL.iter().map(|denial| denial.as_str().to_owned());
    let flaws = names("src/tokens/mod.rs", "pub const fn as_str", "\n}\n");
    for detail in replies.into_iter().chain(flaws).chain(denials) {
        let detail = format!("`tollgate_{detail}`");
        assert!(failure.contains(&detail), "{detail}");
    }
    let reasons = Misconfiguration::ALL.iter().map(|reason| reason.as_str());
    let failures = names(
        "src/service_management/reply.rs",
        "pub const fn as_str(self)",
        "}\n    }\n",
    );
    for reason in reasons.chain(failures.iter().map(String::as_str)) {
        assert!(failure.contains(&format!("`{reason}`")), "{reason}");
    }
}

#[test]
fn the_shipped_rate_limit_headers_are_the_ones_that_the_filter_hands_over() {
    let states = names("src/host/local_reply.rs", "fn quota_fields", ".into_iter()");
    let file: Value = serde_yaml::from_str(&document("envoy/rate-limit-headers.yaml")).unwrap();
    let mut shipped = Vec::new();
    for added in file["response_headers_to_add"].as_sequence().unwrap() {
        let header = &added["header"];
        let value = header["value"].as_str().unwrap();
        let state = value.strip_prefix("%FILTER_STATE(wasm.").unwrap();
        shipped.push(header["key"].as_str().unwrap().to_lowercase());
        shipped.push(state.strip_suffix(":PLAIN)%").unwrap().to_owned());
        assert_eq!(added["append_action"], "OVERWRITE_IF_EXISTS_OR_ADD");
    }
    assert_eq!(states, shipped);
}

#[test]
fn every_link_within_the_repository_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let others = ["ARCHITECTURE.md", "CHANGELOG.md", "envoy/README.md"].map(|name| root.join(name));
    let examples = fs::read_dir(root.join("examples")).unwrap();
    let examples = examples.map(|entry| entry.unwrap().path().join("README.md"));
    let mut checked = 0;
    for path in documents().into_iter().chain(others).chain(examples) {
        let text = fs::read_to_string(&path).unwrap();
        // Code is not searched: it has brackets of its own.
        let prose: String = text.split("```").step_by(2).collect();
        for link in prose.split("](").skip(1) {
            let (link, _) = link.split_once(')').unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => path.clone(),
                file => path.parent().unwrap().join(file),
            };
            let place = format!("{}: {link}", path.display());
            assert!(target.exists(), "{place}");
            if !anchor.is_empty() {
                let text = fs::read_to_string(&target).unwrap();
                assert!(anchors(&text).any(|it| it == anchor), "{place}");
            }
            checked += 1;
        }
    }
    assert!(checked >= 30, "only {checked} links found");
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(text: &str) -> impl Iterator<Item = String> {
    text.lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
                .map(|letter| if letter == ' ' { '-' } else { letter })
                .collect()
        })
}
