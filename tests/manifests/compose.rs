//! The Docker Compose files: they fit Envoy's configuration and each other.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{at, document, list, load, root, string, text, with_field};

const FOLDER: &str = "examples/docker-compose";

/// The services of a file, with `extends` followed.
fn services(file: &str) -> BTreeMap<String, Value> {
    let file = document(&format!("{FOLDER}/{file}"));
    let declared = at(&file, "/services").as_object().unwrap();
    declared
        .iter()
        .map(|(name, service)| {
            let service = match service.get("extends") {
                None => service.clone(),
                Some(base) => {
                    let other = services(string(base, "/file"));
                    other[string(base, "/service")].clone()
                }
            };
            (name.clone(), service)
        })
        .collect()
}

fn both() -> [BTreeMap<String, Value>; 2] {
    ["docker-compose.yaml", "docker-compose.3scale.yaml"].map(services)
}

#[test]
fn the_container_has_the_environment_that_the_filter_is_handed() {
    let bootstrap = document(&format!("{FOLDER}/envoy.yaml"));
    let filter = with_field(&bootstrap, "vm_config")[0];
    let handed_on = list(filter, "/vm_config/environment_variables/host_env_keys");
    for services in both() {
        let environment = at(&services["envoy"], "/environment").as_object().unwrap();
        for name in handed_on {
            let name = name.as_str().unwrap();
            assert!(environment.contains_key(name), "{name} is not set");
        }
        let declared = environment.keys().map(String::as_str).collect();
        load(string(filter, "/configuration/value"), &declared, FOLDER);
    }
}

#[test]
fn ports_are_published_on_loopback_only_and_are_those_that_envoy_listens_on() {
    let bootstrap = document(&format!("{FOLDER}/envoy.yaml"));
    let listening: BTreeSet<String> = [
        "/static_resources/listeners/0/address/socket_address/port_value",
        "/admin/address/socket_address/port_value",
    ]
    .map(|place| at(&bootstrap, place).to_string())
    .into();
    for services in both() {
        for (name, service) in &services {
            let Some(ports) = service.get("ports") else {
                continue;
            };
            let mut published = BTreeSet::new();
            for port in ports.as_array().unwrap() {
                let [host, _, inside] =
                    <[&str; 3]>::try_from(port.as_str().unwrap().split(':').collect::<Vec<_>>())
                        .unwrap_or_else(|_| panic!("{name}: {port} names no address"));
                assert_eq!(host, "127.0.0.1", "{name}");
                published.insert(inside.to_owned());
            }
            assert_eq!(published, listening, "{name}");
        }
    }
}

#[test]
fn envoys_clusters_are_services_of_the_file_and_listen_there() {
    let bootstrap = document(&format!("{FOLDER}/envoy.yaml"));
    for services in both() {
        for cluster in list(&bootstrap, "/static_resources/clusters") {
            let address = with_field(cluster, "port_value")[0];
            let service = &services[string(address, "/address")];
            let port = at(address, "/port_value").to_string();
            let command = match service.get("command") {
                Some(command) => command.to_string(),
                None => {
                    let dockerfile = string(service, "/build/dockerfile");
                    text(dockerfile)
                }
            };
            assert!(
                command.contains(&format!("\"{port}\""))
                    || command.contains(&format!("0.0.0.0:{port}\"")),
                "{command} does not name port {port}"
            );
        }
    }
}

#[test]
fn mounted_files_exist_and_the_module_is_where_envoy_looks_for_it() {
    let bootstrap = document(&format!("{FOLDER}/envoy.yaml"));
    let module = string(with_field(&bootstrap, "filename")[0], "/filename");
    for services in both() {
        let mut targets = Vec::new();
        for volume in services.values().flat_map(|service| {
            service
                .get("volumes")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
        }) {
            let source = PathBuf::from(FOLDER).join(string(volume, "/source"));
            let target = string(volume, "/target");
            assert_eq!(*at(volume, "/read_only"), json!(true), "{target}");
            if target == module {
                // Made by `cargo xtask build`.
                assert!(source.ends_with("target/tollgate.wasm"));
                assert_eq!(*at(volume, "/bind/create_host_path"), json!(false));
            } else {
                assert!(root().join(&source).is_file(), "{}", source.display());
            }
            targets.push(target);
        }
        assert!(targets.contains(&module), "{targets:?}");
        let command = at(&services["envoy"], "/command").to_string();
        let configuration = targets
            .iter()
            .any(|target| command.contains(&format!("\"{target}\"")));
        assert!(configuration, "{command} names none of {targets:?}");
    }
}

#[test]
fn listener_worker_and_cron_share_one_backend() {
    let services = services("docker-compose.3scale.yaml");
    let all = ["service-management", "worker", "cron"].map(|name| &services[name]);
    for service in all {
        assert_eq!(service["image"], all[0]["image"]);
        for variable in ["CONFIG_REDIS_PROXY", "CONFIG_QUEUES_MASTER_NAME"] {
            let redis = at(service, &format!("/environment/{variable}"));
            assert_eq!(*redis, all[0]["environment"][variable], "{variable}");
            assert!(redis.as_str().unwrap().starts_with("redis://redis:6379/"));
        }
    }
    assert!(services.contains_key("redis"));
    let (user, password) = ("CONFIG_INTERNAL_API_USER", "CONFIG_INTERNAL_API_PASSWORD");
    let [user, password] =
        [user, password].map(|name| string(all[0], &format!("/environment/{name}")));
    let seed = string(&services["seed"], "/environment/INTERNAL_API");
    assert_eq!(seed, format!("{user}:{password}"));
}

#[test]
fn the_seed_puts_in_what_the_stand_in_holds() {
    let seed = text(&format!("{FOLDER}/seed.sh"));
    let lines: BTreeSet<&str> = seed.lines().map(str::trim).collect();
    let data = document("examples/service-management/demo.yaml");
    let token = string(&data, "/service_token");
    assert!(seed.contains(&format!("\"{token}\": {{\"service_id\": \"1001\"}}")));
    for services in both() {
        assert_eq!(
            string(&services["envoy"], "/environment/TG_SERVICE_TOKEN"),
            token
        );
    }

    let mut wanted = BTreeSet::new();
    let mut plans = BTreeSet::new();
    let service = at(&data, "/services/1001");
    for (id, application) in at(service, "/applications").as_object().unwrap() {
        let [plan, key] = ["/plan", "/user_key"].map(|field| string(application, field));
        let state = application.get("state").and_then(Value::as_str);
        let line = format!(
            "application {id} {plan} {key} {}",
            state.unwrap_or_default()
        );
        wanted.insert(line.trim().to_owned());
        plans.insert(plan);
    }
    let mut ids = BTreeMap::new();
    for line in &lines {
        if let Some(metric) = line.strip_prefix("metric ") {
            let (id, name) = metric.split_once(' ').unwrap();
            let name = name.split(' ').next().unwrap();
            ids.insert(name.to_owned(), id.to_owned());
        }
    }
    for (name, parent) in at(&data, "/metrics").as_object().unwrap() {
        let id = ids.get(name).unwrap_or_else(|| panic!("no metric {name}"));
        let line = match parent.as_str() {
            None => format!("metric {id} {name}"),
            Some(parent) => format!("metric {id} {name} '\"{}\"'", ids[parent]),
        };
        wanted.insert(line);
    }
    for plan in plans {
        for (metric, limits) in at(&data, &format!("/plans/{plan}")).as_object().unwrap() {
            for (period, maximum) in limits.as_object().unwrap() {
                wanted.insert(format!("limit {plan} {} {period} {maximum}", ids[metric]));
            }
        }
    }
    let put_in: BTreeSet<String> = lines
        .iter()
        .filter(|line| {
            ["application ", "metric ", "limit "]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .map(|line| (*line).to_owned())
        .collect();
    assert_eq!(put_in, wanted);
}
