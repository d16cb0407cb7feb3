//! The canonical form of a configuration: what signers read and sign.
//!
//! One line for each value, `path = value`, in the order of the paths: comments, blanks and the order of the
//! file say nothing. `[log]` is left out, so that its filter changes without a signature.

use std::fmt::Write;

use toml::{Table, Value};

use super::Config;

/// The first line: what this is, and the version of the form.
const TITLE: &str = "claviger configuration, canonical form 1\n";
/// Sections that no key and no grant depends on.
const LEFT_OUT: [&str; 1] = ["log"];

impl Config {
    /// The canonical form of the text of a configuration; none if it is no TOML. Ends with a line end.
    pub fn canonical(text: &str) -> Option<String> {
        let root: Table = toml::from_str(text).ok()?;
        let mut lines = TITLE.to_owned();
        for (name, value) in sorted(&root) {
            if !LEFT_OUT.contains(&name) {
                write_lines(&key(name), value, &mut lines);
            }
        }
        Some(lines)
    }
}

fn write_lines(path: &str, value: &Value, lines: &mut String) {
    let text = match value {
        Value::Table(table) if !table.is_empty() => {
            for (name, value) in sorted(table) {
                write_lines(&format!("{path}.{}", key(name)), value, lines);
            }
            return;
        }
        Value::Array(array) if !array.is_empty() => {
            for (at, value) in array.iter().enumerate() {
                write_lines(&format!("{path}[{at}]"), value, lines);
            }
            return;
        }
        Value::Table(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::String(text) => quoted(text),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Boolean(is) => is.to_string(),
        Value::Datetime(time) => time.to_string(),
    };
    writeln!(lines, "{path} = {text}").expect("a String takes everything");
}

fn sorted(table: &Table) -> Vec<(&str, &Value)> {
    let mut entries: Vec<_> = table.iter().map(|(name, value)| (name.as_str(), value)).collect();
    entries.sort_unstable_by_key(|(name, _)| *name);
    entries
}

/// A bare key of TOML as it is, another one quoted.
fn key(name: &str) -> String {
    let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    if !name.is_empty() && name.bytes().all(is_bare) { name.to_owned() } else { quoted(name) }
}

/// Printable ASCII as it is; everything else escaped, so that what signers see is what they sign.
fn quoted(text: &str) -> String {
    let mut quoted = "\"".to_owned();
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            ' '..='~' => quoted.push(character),
            _ => write!(quoted, "\\u{{{:x}}}", u32::from(character))
                .expect("a String takes everything"),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_has_the_same_form_and_each_value_its_line() {
        let one = "[log]\nfilter = \"info\"\n[keys.b]\nalgorithms = []\n[keys.\"a.c\"]\nx = 1\n[[callers]]\nname = \"é\\n\\\"\"\n";
        let other = "# a comment\ncallers = [{ name = \"é\\n\\\"\" }]\nkeys = { \"a.c\" = { x = 1 }, b = { algorithms = [ ] } }\n";
        let form = Config::canonical(one).unwrap();
        assert_eq!(
            form,
            "claviger configuration, canonical form 1\n\
             callers[0].name = \"\\u{e9}\\u{a}\\\"\"\n\
             keys.\"a.c\".x = 1\n\
             keys.b.algorithms = []\n"
        );
        assert_eq!(Config::canonical(other).unwrap(), form);
        assert_ne!(Config::canonical(&other.replace("x = 1", "x = 2")).unwrap(), form);
        assert_eq!(Config::canonical("["), None);
    }
}
