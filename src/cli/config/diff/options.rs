//! Which options differ between two configurations, by the paths that people use for them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::{Value as Json, json};
use toml::{Table, Value};

/// What names an element of a list of tables, as `versions[2]` and `callers[key-connector]`.
const NAMES: [&str; 2] = ["name", "version"];

/// An option that differs; its values as TOML writes them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference {
    path: String,
    before: Option<String>,
    after: Option<String>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.path;
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => write!(f, "~ {path} = {before} -> {after}"),
            (Some(before), None) => write!(f, "- {path} = {before}"),
            (None, Some(after)) => write!(f, "+ {path} = {after}"),
            (None, None) => unreachable!("it is in one of them"),
        }
    }
}

impl Difference {
    pub(super) fn to_json(&self) -> Json {
        json!({ "option": self.path, "from": self.before, "to": self.after })
    }
}

/// The options that one of two texts has and the other one has not, or has with another value, by path.
/// Both were parsed before.
pub(super) fn differences(before: &str, after: &str) -> Vec<Difference> {
    let [before, after] = [before, after].map(|text| {
        let mut options = BTreeMap::new();
        let table: Table = text.parse().expect("it was parsed as a configuration");
        of_table("", &table, &mut options);
        options
    });
    let paths: BTreeSet<String> = before.keys().chain(after.keys()).cloned().collect();
    paths
        .into_iter()
        .map(|path| Difference {
            before: before.get(&path).cloned(),
            after: after.get(&path).cloned(),
            path,
        })
        .filter(|difference| difference.before != difference.after)
        .collect()
}

fn of_table(path: &str, table: &Table, options: &mut BTreeMap<String, String>) {
    for (name, value) in table {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        of_value(path, value, options);
    }
}

fn of_value(path: String, value: &Value, options: &mut BTreeMap<String, String>) {
    match value {
        Value::Table(table) => of_table(&path, table, options),
        Value::Array(elements) if elements.iter().any(Value::is_table) => {
            for (at, element) in elements.iter().enumerate() {
                of_value(format!("{path}[{}]", name_of(element, at)), element, options);
            }
        }
        value => {
            options.insert(path, value.to_string());
        }
    }
}

fn name_of(element: &Value, at: usize) -> String {
    let name = NAMES.iter().find_map(|name| element.get(name));
    match name {
        Some(Value::String(name)) => name.clone(),
        Some(name) => name.to_string(),
        // From 1, as people count.
        None => format!("#{}", at + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_found_by_the_names_of_what_they_belong_to_wherever_it_stands() {
        let before = "[[callers]]\nname = \"a\"\ngrants = [{ keys = [\"k\"], operations = [\"read\"] }]\n\
             [[callers]]\nname = \"b\"\nmatch = { uid = 7 }\n[keys.k]\nversions = [{ version = 1, state = \"active\" }]\n";
        // The other order, one caller changed, one option gone, one added.
        let after = "[[callers]]\nname = \"b\"\nmatch = { uid = 8 }\n\
             [[callers]]\nname = \"a\"\ngrants = [{ keys = [\"k\"] }]\n\
             [keys.k]\nversions = [{ version = 2 }, { version = 1, state = \"active\" }]\n";
        let said = differences(before, after).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(
            said,
            [
                "- callers[a].grants[#1].operations = [\"read\"]",
                "~ callers[b].match.uid = 7 -> 8",
                "+ keys.k.versions[2].version = 2",
            ]
        );
        assert!(differences(before, &before.replace("uid = 7", "uid = 0x7")).is_empty());
    }
}
