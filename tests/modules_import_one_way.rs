//! The modules of the providers, of the PKCS#11 client and of the daemon import each other one way:
//! none comes back to itself by what it imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A module below its crate's `src`, such as `["isolation", "link"]`.
type Module = Vec<String>;

fn sources(folder: &Path, module: &Module, found: &mut BTreeMap<Module, String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut module = module.clone();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if !["lib", "main", "mod"].contains(&stem) {
            module.push(stem.to_owned());
        }
        if path.is_dir() {
            sources(&path, &module, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "tests" {
            found.insert(module, std::fs::read_to_string(&path).unwrap());
        }
    }
}

/// The modules that `own` names from `crate::` or `super::` on. One above or below it does not count:
/// a folder's module is the face of what is in it.
fn imports(own: &Module, text: &str, all: &BTreeMap<Module, String>) -> BTreeSet<Module> {
    let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code = product.lines().map(|line| line.split("//").next().unwrap());
    let mut found = BTreeSet::new();
    for path in
        code.flat_map(|line| line.split(|c: char| !(c.is_alphanumeric() || "_:".contains(c))))
    {
        let mut parts = path.split("::").map(str::to_owned);
        let mut named: Module = match parts.next().as_deref() {
            Some("crate") => Vec::new(),
            Some("super") => own[..own.len().saturating_sub(1)].to_vec(),
            _ => continue,
        };
        for part in parts {
            named.push(part);
            if !all.contains_key(&named) {
                named.pop();
                break;
            }
        }
        if !own.starts_with(&named) && !named.starts_with(own) {
            found.insert(named);
        }
    }
    found
}

/// The modules that come back to themselves by what they import, of all files together.
fn circular(all: &BTreeMap<Module, String>) -> Vec<String> {
    let edges: BTreeMap<_, _> =
        all.iter().map(|(own, text)| (own, imports(own, text, all))).collect();
    let comes_back = |own: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), edges[own].iter().collect::<Vec<_>>());
        while let Some(module) = next.pop() {
            if seen.insert(module) {
                next.extend(&edges[module]);
            }
        }
        seen.contains(own)
    };
    all.keys().filter(|own| comes_back(own)).map(|own| own.join("::")).collect()
}

#[test]
fn no_module_comes_back_to_itself_by_its_imports() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let crates = std::fs::read_dir(root.join("providers")).unwrap();
    let mut crates: Vec<_> = crates.map(|entry| entry.unwrap().path().join("src")).collect();
    crates.extend([root.join("clients/pkcs11/src"), root.join("src")]);
    for folder in crates {
        let mut all = BTreeMap::new();
        sources(&folder, &Vec::new(), &mut all);
        if folder == root.join("src") {
            all.retain(|module, _| module.first().is_some_and(|first| first == "daemon"));
        }
        assert!(all.len() > 5, "{}", folder.display());
        assert_eq!(circular(&all), Vec::<String>::new(), "{}", folder.display());
    }
}

#[test]
fn a_circle_is_seen() {
    let file = |name: &str, text: &str| (vec![name.to_owned()], text.to_owned());
    let all = [
        file("a", "use crate::b::B;\n"),
        file("b", "fn f(a: super::a::A) {}\n"),
        file("c", "use crate::a::A;\n"),
    ];
    assert_eq!(circular(&all.into_iter().collect()), ["a", "b"]);
}
