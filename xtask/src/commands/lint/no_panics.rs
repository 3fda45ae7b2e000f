//! The filter denies everything that can panic, in `src/lib.rs`, and nothing
//! below may allow it again. Clippy cannot check that: a denied lint can be
//! allowed by whoever finds it in the way.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, Item, Meta, Token};

use crate::workspace;

/// What `src/lib.rs` must deny.
const DENIED: [&str; 12] = [
    "unwrap_used",
    "expect_used",
    "panic",
    "unreachable",
    "todo",
    "unimplemented",
    "indexing_slicing",
    "string_slice",
    "arithmetic_side_effects",
    "cast_possible_truncation",
    "cast_sign_loss",
    "cast_possible_wrap",
];

/// Groups that some of [`DENIED`] belong to: allowing one allows those.
const GROUPS: [&str; 3] = ["all", "pedantic", "restriction"];

/// Checks `src/lib.rs` and every module that is compiled outside tests.
pub fn check() -> Result<()> {
    let library = workspace::root().join("src").join("lib.rs");
    let file = parse(&library)?;
    let missing = missing(&file);
    if !missing.is_empty() {
        bail!("src/lib.rs no longer denies {}", missing.join(", "));
    }
    let mut findings = Vec::new();
    let modules = walk(&library, file, &mut findings)?;
    if !findings.is_empty() {
        bail!(
            "the filter must not allow what src/lib.rs denies:\n{}",
            findings.join("\n")
        );
    }
    println!(
        "{} lints denied in src/lib.rs and allowed in none of {modules} modules",
        DENIED.len()
    );
    Ok(())
}

/// Follows `mod name;` from a file, collecting what is allowed where. Returns how
/// many files were read.
fn walk(path: &Path, file: syn::File, findings: &mut Vec<String>) -> Result<usize> {
    let mut visitor = Allowed::default();
    visitor.visit_file(&file);
    for lint in visitor.allowed {
        findings.push(format!("  {}: {lint}", workspace::display(path)));
    }
    let mut files = 1;
    for name in visitor.modules {
        let module = module_file(path, &name)
            .with_context(|| format!("no file for mod {name} of {}", workspace::display(path)))?;
        let file = parse(&module)?;
        files += walk(&module, file, findings)?;
    }
    Ok(files)
}

fn parse(path: &Path) -> Result<syn::File> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading {}", workspace::display(path)))?;
    syn::parse_file(&text).with_context(|| format!("parsing {}", workspace::display(path)))
}

/// Where the module `name` (or `inline/name`) of the module in `parent` is.
fn module_file(parent: &Path, name: &str) -> Option<PathBuf> {
    let stem = parent.file_stem()?;
    let folder = if stem == "lib" || stem == "mod" {
        parent.parent()?.to_path_buf()
    } else {
        parent.with_extension("")
    };
    [
        folder.join(name).with_extension("rs"),
        folder.join(name).join("mod.rs"),
    ]
    .into_iter()
    .find(|path| path.is_file())
}

/// The lints that a file does not deny in an attribute of its own.
fn missing(file: &syn::File) -> Vec<&'static str> {
    let denied: Vec<String> = file
        .attrs
        .iter()
        .filter(|attribute| {
            attribute.path().is_ident("deny") || attribute.path().is_ident("forbid")
        })
        .flat_map(|attribute| clippy_lints(&attribute.meta))
        .collect();
    DENIED
        .into_iter()
        .filter(|lint| !denied.iter().any(|denied| denied == lint))
        .collect()
}

/// Collects what is allowed and which files follow, outside tests.
#[derive(Default)]
struct Allowed {
    allowed: Vec<String>,
    modules: Vec<String>,
    inline: Vec<String>,
}

impl<'ast> Visit<'ast> for Allowed {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes = match item {
            Item::Mod(item) => &*item.attrs,
            Item::Fn(item) => &*item.attrs,
            Item::Impl(item) => &*item.attrs,
            _ => &[],
        };
        if attributes.iter().any(|attribute| {
            attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<Meta>()
                    .is_ok_and(|predicate| only_in_tests(&predicate))
        }) {
            return;
        }
        let Item::Mod(module) = item else {
            return visit::visit_item(self, item);
        };
        let name = module.ident.to_string();
        if module.content.is_none() {
            let path = self.inline.iter().cloned().chain([name]);
            self.modules.push(path.collect::<Vec<_>>().join("/"));
            visit::visit_item(self, item);
        } else {
            self.inline.push(name);
            visit::visit_item(self, item);
            self.inline.pop();
        }
    }

    fn visit_attribute(&mut self, attribute: &'ast Attribute) {
        self.add(&attribute.meta);
    }

    /// The tokens of a macro are not attributes until it is expanded.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let tokens = call.tokens.to_string().replace(' ', "");
        for lint in DENIED.iter().chain(&GROUPS) {
            if tokens.contains(&format!("clippy::{lint}")) {
                self.allowed.push(format!("clippy::{lint} in a macro"));
            }
        }
    }
}

impl Allowed {
    fn add(&mut self, meta: &Meta) {
        let name = |name: &str| meta.path().is_ident(name);
        if name("allow") || name("expect") || name("warn") {
            for lint in clippy_lints(meta) {
                if DENIED.contains(&&*lint) || GROUPS.contains(&&*lint) {
                    self.allowed.push(format!("clippy::{lint}"));
                }
            }
        } else if name("cfg_attr") {
            let mut parts = list(meta).into_iter();
            if parts
                .next()
                .is_some_and(|predicate| !only_in_tests(&predicate))
            {
                parts.for_each(|part| self.add(&part));
            }
        }
    }
}

/// Whether a predicate of `cfg` holds in no build but a test.
fn only_in_tests(predicate: &Meta) -> bool {
    predicate.path().is_ident("test")
        || predicate.path().is_ident("all") && list(predicate).iter().any(only_in_tests)
}

/// The names, without `clippy::`, of clippy's lints in an attribute such as
/// `deny(clippy::panic, unsafe_code)`.
fn clippy_lints(meta: &Meta) -> Vec<String> {
    list(meta)
        .iter()
        .filter_map(|lint| {
            let mut path = lint.path().segments.iter();
            let tool = path.next()?;
            (tool.ident == "clippy").then_some(path.next()?.ident.to_string())
        })
        .collect()
}

/// What stands between the parentheses; nothing if it is not a list of metas.
fn list(meta: &Meta) -> Vec<Meta> {
    let Meta::List(list) = meta else {
        return Vec::new();
    };
    list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated)
        .map(|metas| metas.into_iter().collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(source: &str) -> Vec<String> {
        let mut visitor = Allowed::default();
        visitor.visit_file(&syn::parse_file(source).unwrap());
        visitor.allowed
    }

    #[test]
    fn an_allowed_panic_is_found_wherever_it_stands() {
        for source in [
            "#![allow(clippy::panic)]",
            "#[allow(dead_code, clippy::panic)] fn f() {}",
            "#[expect(clippy::panic, reason = \"no\")] mod m {}",
            "fn f() { #[allow(clippy::panic)] let x = 1; }",
            "mod m { impl T { #[warn(clippy::panic)] fn f() {} } }",
            "#![cfg_attr(not(test), allow(clippy::panic))]",
            "#![cfg_attr(any(test, unix), allow(clippy::panic))]",
        ] {
            assert_eq!(allowed(source), ["clippy::panic"], "{source}");
        }
        assert_eq!(
            allowed("macro_rules! m { () => { #[allow(clippy::panic)] fn f() {} } }"),
            ["clippy::panic in a macro"]
        );
        assert_eq!(allowed("#![allow(clippy::pedantic)]"), ["clippy::pedantic"]);
    }

    #[test]
    fn tests_may_panic() {
        for source in [
            "#[cfg(test)] mod tests { #![allow(clippy::panic)] }",
            "#[cfg(all(test, not(target_family = \"wasm\")))] #[allow(clippy::panic)] mod m {}",
            "#![cfg_attr(test, allow(clippy::panic))]",
            "#[allow(clippy::too_many_arguments)] fn f() {}",
        ] {
            assert_eq!(allowed(source), Vec::<String>::new(), "{source}");
        }
    }

    #[test]
    fn a_lint_that_is_not_denied_is_missed() {
        let all = DENIED.map(|lint| format!("clippy::{lint}")).join(", ");
        let file = syn::parse_file(&format!("#![deny({all})]")).unwrap();
        assert_eq!(missing(&file), Vec::<&str>::new());
        let fewer = all.replace("clippy::todo, ", "");
        let file = syn::parse_file(&format!("#![deny({fewer})]")).unwrap();
        assert_eq!(missing(&file), ["todo"]);
    }

    #[test]
    fn modules_are_followed_into_their_files() {
        let source = "mod a; mod b { mod c; } #[cfg(test)] mod tests;";
        let mut visitor = Allowed::default();
        visitor.visit_file(&syn::parse_file(source).unwrap());
        assert_eq!(visitor.modules, ["a", "b/c"]);
    }
}
