//! The daemon's folders are layers: each imports those below it and none above it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// From the top down; a later one may not import an earlier one.
const LAYERS: [&str; 9] = [
    "serve",
    "operations",
    "request",
    "keys",
    "records",
    "transport",
    "status",
    "config",
    "backends",
];

fn source_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| *layer == name)
}

/// The layers that a file names as `crate::daemon::LAYER`, with the line. Tests in files of their own
/// or at the end of a file may look at all of the daemon.
fn imports(text: &str) -> Vec<(usize, &str)> {
    let product = text.lines().take_while(|line| {
        !line.starts_with("#[cfg(test)]") && !line.starts_with("#[cfg(all(test")
    });
    let mut found = Vec::new();
    for (number, line) in (1..).zip(product) {
        let code = line.trim_start();
        if code.starts_with("//") {
            continue;
        }
        for part in code.split("crate::daemon::").skip(1) {
            let end = part.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(part.len());
            found.push((number, &part[..end]));
        }
    }
    found
}

#[test]
fn imports_run_down_the_layers_only() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/daemon");
    let mut files = Vec::new();
    source_files(&root, &mut files);
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    for path in files {
        let relative = path.strip_prefix(&root).unwrap();
        let name = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let Some(own) = layer(name.trim_end_matches(".rs")) else { continue };
        if relative.ends_with("tests.rs") {
            continue;
        }
        seen.insert(own);
        let text = std::fs::read_to_string(&path).unwrap();
        for (line, imported) in imports(&text) {
            match layer(imported) {
                Some(other) if other >= own => {}
                Some(_) => wrong.push(format!("{}:{line}: imports {imported}", relative.display())),
                None => {
                    wrong.push(format!("{}:{line}: {imported} is no layer", relative.display()));
                }
            }
        }
    }
    assert_eq!(seen.len(), LAYERS.len(), "every layer has files");
    assert!(wrong.is_empty(), "imports run down only:\n{}", wrong.join("\n"));
}

#[test]
fn an_import_that_runs_up_is_seen() {
    let text = "use crate::daemon::serve::run;\n#[cfg(test)]\nuse crate::daemon::request::x;\n";
    assert_eq!(imports(text), [(1, "serve")]);
    assert!(layer("serve") < layer("config"));
}
