//! What a WebAssembly module asks of its host and offers it, as text that can be
//! compared with a file in the repository; and the module without what only
//! tools read.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use wasm_encoder::RawSection;
use wasmparser::{ExternalKind, FuncType, Parser, Payload, TypeRef, ValType};

/// What a module imports and exports, one line each: `env.proxy_log: func(i32,
/// i32, i32) -> i32` or `memory: memory`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Interface {
    /// With the name of the module that they are imported from.
    pub imports: BTreeSet<String>,
    /// By name.
    pub exports: BTreeSet<String>,
}

impl Interface {
    /// Reads the interface of a binary module.
    pub fn of(module: &[u8]) -> Result<Self> {
        let mut types: Vec<FuncType> = Vec::new();
        // The type of each function: imported ones come first.
        let mut functions: Vec<u32> = Vec::new();
        let mut interface = Self::default();
        let signature = |types: &[FuncType], index: u32| -> Result<String> {
            let index = usize::try_from(index)?;
            Ok(types.get(index).context("unknown type")?.signature())
        };
        for payload in Parser::new(0).parse_all(module) {
            match payload.context("this is no WebAssembly module")? {
                Payload::TypeSection(section) => {
                    for kind in section.into_iter_err_on_gc_types() {
                        types.push(kind?);
                    }
                }
                Payload::ImportSection(section) => {
                    for import in section.into_imports() {
                        let import = import?;
                        let kind = match import.ty {
                            TypeRef::Func(index) => {
                                functions.push(index);
                                signature(&types, index)?
                            }
                            other => format!("{other:?}"),
                        };
                        interface
                            .imports
                            .insert(format!("{}.{}: {kind}", import.module, import.name));
                    }
                }
                Payload::FunctionSection(section) => {
                    for kind in section {
                        functions.push(kind?);
                    }
                }
                Payload::ExportSection(section) => {
                    for export in section {
                        let export = export?;
                        let kind = match export.kind {
                            ExternalKind::Func => {
                                let index = functions
                                    .get(usize::try_from(export.index)?)
                                    .context("unknown function")?;
                                signature(&types, *index)?
                            }
                            ExternalKind::Memory => "memory".to_owned(),
                            other => format!("{other:?}"),
                        };
                        interface.exports.insert(format!("{}: {kind}", export.name));
                    }
                }
                _ => {}
            }
        }
        Ok(interface)
    }
}

trait Signature {
    /// `func(i32, i64) -> i32`
    fn signature(&self) -> String;
}

impl Signature for FuncType {
    fn signature(&self) -> String {
        let list = |types: &[ValType]| {
            types
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let results = match self.results() {
            [] => String::new(),
            results => format!(" -> {}", list(results)),
        };
        format!("func({}){results}", list(self.params()))
    }
}

/// The module without its custom sections: names, producers and debug
/// information, which Envoy does not need to run it.
pub fn without_custom_sections(module: &[u8]) -> Result<Vec<u8>> {
    let mut stripped = wasm_encoder::Module::new();
    for payload in Parser::new(0).parse_all(module) {
        let payload = payload.context("this is no WebAssembly module")?;
        if matches!(payload, Payload::CustomSection(_)) {
            continue;
        }
        if let Some((id, range)) = payload.as_section() {
            let range = usize::try_from(range.start)?..usize::try_from(range.end)?;
            let data = module.get(range).context("a section exceeds the module")?;
            stripped.section(&RawSection { id, data });
        }
    }
    Ok(stripped.finish())
}

/// Whether these bytes stand anywhere in a module.
pub fn contains(module: &[u8], bytes: &[u8]) -> bool {
    module.windows(bytes.len()).any(|window| window == bytes)
}

/// The lines of a list file: comments (`#`) and empty lines are left out.
pub fn list(text: &str) -> BTreeSet<String> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// The text of a list file with other lines, under the comments that it opens with.
pub fn relist(text: &str, lines: &BTreeSet<String>) -> String {
    text.lines()
        .take_while(|line| line.starts_with('#'))
        .map(str::to_owned)
        .chain(lines.iter().cloned())
        .map(|line| line + "\n")
        .collect()
}

/// Fails if anything is imported that is not on the list of what may be. Returns
/// what is on the list and not imported.
pub fn check_imports(
    imports: &BTreeSet<String>,
    allowed: &BTreeSet<String>,
) -> Result<Vec<String>> {
    let more: Vec<_> = imports.difference(allowed).collect();
    if !more.is_empty() {
        bail!(
            "the module imports what it must not:\n{}",
            marked('+', more)
        );
    }
    Ok(allowed.difference(imports).cloned().collect())
}

/// Fails if the exports are not exactly those of the list: a host calls whatever
/// is exported, and what is not exported is never called.
pub fn check_exports(exports: &BTreeSet<String>, expected: &BTreeSet<String>) -> Result<()> {
    if exports == expected {
        return Ok(());
    }
    bail!(
        "the module's exports (+) are not those of the list (-):\n{}{}",
        marked('-', expected.difference(exports)),
        marked('+', exports.difference(expected)),
    );
}

fn marked<'a>(mark: char, lines: impl IntoIterator<Item = &'a String>) -> String {
    lines
        .into_iter()
        .map(|line| format!("  {mark} {line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use wasm_encoder::{
        CodeSection, CustomSection, EntityType, ExportKind, ExportSection, Function,
        FunctionSection, ImportSection, MemorySection, MemoryType, Module, TypeSection,
    };

    /// Imports `env.log(i32, i64) -> i32`, exports its memory and `start()`.
    fn module() -> Vec<u8> {
        use wasm_encoder::ValType::{I32, I64};
        let mut types = TypeSection::new();
        types.ty().function([], []);
        types.ty().function([I32, I64], [I32]);
        let mut imports = ImportSection::new();
        imports.import("env", "log", EntityType::Function(1));
        let mut functions = FunctionSection::new();
        functions.function(0);
        let mut memories = MemorySection::new();
        memories.memory(MemoryType {
            minimum: 1,
            maximum: None,
            memory64: false,
            shared: false,
            page_size_log2: None,
        });
        let mut exports = ExportSection::new();
        exports.export("memory", ExportKind::Memory, 0);
        exports.export("start", ExportKind::Func, 1);
        let mut code = CodeSection::new();
        let mut body = Function::new([]);
        body.instructions().end();
        code.function(&body);
        let custom = CustomSection {
            name: "name".into(),
            data: (&[0; 100]).into(),
        };
        let mut module = Module::new();
        module
            .section(&types)
            .section(&imports)
            .section(&functions)
            .section(&memories)
            .section(&exports)
            .section(&code)
            .section(&custom);
        module.finish()
    }

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|&line| line.to_owned()).collect()
    }

    #[test]
    fn an_interface_has_names_and_signatures() {
        let interface = Interface::of(&module()).unwrap();
        assert_eq!(interface.imports, set(&["env.log: func(i32, i64) -> i32"]));
        assert_eq!(interface.exports, set(&["memory: memory", "start: func()"]));
    }

    #[test]
    fn stripping_takes_custom_sections_and_nothing_else() {
        let module = module();
        let stripped = without_custom_sections(&module).unwrap();
        // id, size, length of the name, the name, the data
        assert_eq!(stripped.len(), module.len() - (1 + 1 + 1 + 4 + 100));
        assert_eq!(module.get(..stripped.len()), Some(&*stripped));
        assert_eq!(
            Interface::of(&stripped).unwrap(),
            Interface::of(&module).unwrap()
        );
    }

    #[test]
    fn what_is_no_module_is_an_error() {
        assert!(Interface::of(b"#!/bin/sh").is_err());
        assert!(without_custom_sections(b"#!/bin/sh").is_err());
        let module = module();
        let cut_short = module.get(..module.len() - 110).unwrap();
        assert!(Interface::of(cut_short).is_err());
    }

    #[test]
    fn bytes_are_found_wherever_they_stand() {
        assert!(contains(&module(), b"start"));
        assert!(contains(b"start", b"start"));
        assert!(!contains(b"star", b"start"));
        assert!(!contains(&module(), b"starts"));
    }

    #[test]
    fn an_import_that_is_not_on_the_list_is_named() {
        let error = check_imports(
            &set(&["env.a: func()", "env.b: func()"]),
            &set(&["env.a: func()"]),
        );
        assert!(
            error
                .unwrap_err()
                .to_string()
                .ends_with("  + env.b: func()\n")
        );
    }

    #[test]
    fn an_allowed_import_may_be_absent() {
        let unused = check_imports(&set(&["a"]), &set(&["a", "b"])).unwrap();
        assert_eq!(unused, ["b"]);
    }

    #[test]
    fn an_export_may_neither_be_missing_nor_be_added() {
        let expected = set(&["a: func()", "b: func()"]);
        assert!(check_exports(&expected, &expected).is_ok());
        let changed = check_exports(&set(&["a: func(i32)", "b: func()"]), &expected);
        assert!(
            changed
                .unwrap_err()
                .to_string()
                .ends_with("  - a: func()\n  + a: func(i32)\n")
        );
        assert!(check_exports(&set(&["a: func()"]), &expected).is_err());
    }

    #[test]
    fn a_list_keeps_its_opening_comment_when_it_is_rewritten() {
        let text = "# what and why\n# more\nold\n";
        assert_eq!(list(text), set(&["old"]));
        assert_eq!(
            relist(text, &set(&["b", "a"])),
            "# what and why\n# more\na\nb\n"
        );
    }
}
