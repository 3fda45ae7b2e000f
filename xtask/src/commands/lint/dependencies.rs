//! What the workspace depends on, held against `deny.toml`: licenses, sources and,
//! in the filter, crates that are there in two versions. Advisories need a database
//! that is on GitHub only: they are checked where it can be had, by cargo-deny.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};
use serde::Deserialize;
use spdx::{Expression, ParseMode};

use crate::process::{self, Ending};
use crate::tools::on_path;
use crate::tools::toolchain::FILTER_TARGET;
use crate::workspace;

const DATABASE: &str = "https://github.com/RustSec/advisory-db";

/// The parts of `deny.toml` that are read here; cargo-deny reads more.
#[derive(Deserialize)]
struct Policy {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Graph {
    targets: Vec<String>,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    skip: BTreeSet<String>,
}

/// Checks everything that can be checked on this machine.
pub fn check() -> Result<()> {
    let text = std::fs::read_to_string(workspace::root().join("deny.toml"))
        .context("reading deny.toml")?;
    let policy: Policy = toml::from_str(&text).context("parsing deny.toml")?;
    let mut findings = Vec::new();

    let metadata = metadata(&policy.graph.targets)?;
    let foreign = |package: &&Package| package.source.is_some();
    for package in metadata.packages.iter().filter(foreign) {
        findings.extend(
            finding(
                package.license.as_deref(),
                package.source.as_ref().map(|source| &*source.repr),
                &policy.licenses.allow,
            )
            .map(|finding| format!("{} {}: {finding}", package.name, package.version)),
        );
    }

    let filter = self::metadata(&[FILTER_TARGET.to_owned()])?;
    let linked = linked_into(&filter, "tollgate")?;
    for (name, versions) in duplicates(&linked) {
        if !policy.bans.skip.contains(name) {
            findings.push(format!(
                "the filter has {name} in several versions: {}",
                versions.join(", ")
            ));
        }
    }

    if !findings.is_empty() {
        bail!("against deny.toml:\n  {}", findings.join("\n  "));
    }
    println!(
        "licenses and sources of {} crates; no duplicates among the {} of the filter",
        metadata.packages.iter().filter(foreign).count(),
        linked.len()
    );
    advisories()
}

/// The packages of the workspace and all that they need on `targets`.
fn metadata(targets: &[String]) -> Result<Metadata> {
    let platforms = targets
        .iter()
        .flat_map(|target| ["--filter-platform".to_owned(), target.clone()])
        .collect::<Vec<_>>();
    MetadataCommand::new()
        .current_dir(workspace::root())
        .other_options(platforms)
        .exec()
        .context("cargo metadata")
}

/// What is wrong with a package from elsewhere, if anything.
fn finding(
    license: Option<&str>,
    source: Option<&str>,
    allowed: &BTreeSet<String>,
) -> Option<String> {
    if source != Some("registry+https://github.com/rust-lang/crates.io-index") {
        return Some(format!(
            "comes from {}, not from crates.io",
            source.unwrap_or("nowhere")
        ));
    }
    let Some(license) = license else {
        return Some("names no license".to_owned());
    };
    let Ok(expression) = Expression::parse_mode(license, ParseMode::LAX) else {
        return Some(format!("has the license {license:?}, which is no SPDX"));
    };
    let permitted = expression.evaluate(|requirement| {
        requirement
            .license
            .id()
            .is_some_and(|id| allowed.contains(id.name))
    });
    (!permitted).then(|| format!("has the license {license}, which is not allowed"))
}

/// The packages whose code ends up in the module of a package of the workspace:
/// neither build scripts nor procedural macros nor what these need.
fn linked_into<'a>(metadata: &'a Metadata, root: &str) -> Result<Vec<&'a Package>> {
    let resolve = metadata.resolve.as_ref().context("no dependency graph")?;
    let nodes: BTreeMap<&PackageId, _> =
        resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let root = metadata
        .workspace_packages()
        .into_iter()
        .find(|package| *package.name == *root)
        .with_context(|| format!("the workspace has no {root}"))?;
    let mut linked: BTreeMap<&PackageId, &Package> = BTreeMap::new();
    let mut open = vec![&root.id];
    while let Some(id) = open.pop() {
        let package = &metadata[id];
        let is_macro = package
            .targets
            .iter()
            .any(|target| target.kind.contains(&TargetKind::ProcMacro));
        if is_macro || linked.insert(id, package).is_some() {
            continue;
        }
        let node = nodes
            .get(id)
            .context("a package without a place in the graph")?;
        open.extend(
            node.deps
                .iter()
                .filter(|dependency| {
                    dependency
                        .dep_kinds
                        .iter()
                        .any(|kind| kind.kind == DependencyKind::Normal)
                })
                .map(|dependency| &dependency.pkg),
        );
    }
    Ok(linked.into_values().collect())
}

/// The names that several packages have, with their versions.
fn duplicates<'a>(packages: &[&'a Package]) -> BTreeMap<&'a str, Vec<String>> {
    let mut versions: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for package in packages {
        versions
            .entry(package.name.as_str())
            .or_default()
            .push(package.version.to_string());
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions
}

fn advisories() -> Result<()> {
    if on_path("cargo-deny").is_none() {
        println!("advisories: NOT CHECKED, as cargo-deny is not installed");
        return Ok(());
    }
    let reachable = process::run_within(
        Command::new("git")
            .args(["ls-remote", "--exit-code", DATABASE, "HEAD"])
            .env("GIT_TERMINAL_PROMPT", "0"),
        Duration::from_secs(10),
    )?;
    if reachable != Ending::Success {
        println!("advisories: NOT CHECKED, as {DATABASE} cannot be reached");
        return Ok(());
    }
    process::run(workspace::cargo().args(["deny", "check", "advisories"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRATES_IO: Option<&str> = Some("registry+https://github.com/rust-lang/crates.io-index");

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0"].map(str::to_owned).into()
    }

    #[test]
    fn one_allowed_alternative_is_enough() {
        for license in [
            "MIT",
            "MIT OR GPL-3.0",
            "MIT/Apache-2.0",
            "MIT AND Apache-2.0",
        ] {
            assert_eq!(finding(Some(license), CRATES_IO, &allowed()), None);
        }
    }

    #[test]
    fn a_license_that_is_not_on_the_list_is_a_finding() {
        for license in [
            Some("GPL-3.0"),
            Some("MIT AND GPL-3.0"),
            Some("my own"),
            None,
        ] {
            assert!(finding(license, CRATES_IO, &allowed()).is_some());
        }
    }

    #[test]
    fn a_source_other_than_crates_io_is_a_finding() {
        for source in [Some("git+https://example.com/crate"), None] {
            assert!(finding(Some("MIT"), source, &allowed()).is_some());
        }
    }
}
