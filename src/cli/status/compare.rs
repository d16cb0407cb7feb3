//! Several daemons side by side: a row for each thing that should be the same everywhere.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::daemon::operations::status::{KeyStatus, Status};

/// What a daemon answered, or why it did not.
type Answer = Result<Status, String>;

/// A daemon that was not reached, or has no such key.
const NONE: &str = "-";

/// One thing, as each daemon has it.
pub(super) struct Row {
    /// What it is.
    pub(super) name: String,
    values: Vec<String>,
}

impl Row {
    fn new(name: impl Into<String>, answers: &[Answer], of: impl Fn(&Status) -> String) -> Self {
        let values = answers.iter().map(|answer| match answer {
            Ok(status) => of(status),
            Err(_) => NONE.to_owned(),
        });
        Self { name: name.into(), values: values.collect() }
    }

    /// Whether the daemons do not agree; one that was not reached says nothing but that.
    pub(super) fn differs(&self) -> bool {
        self.values.iter().any(|value| *value != self.values[0])
    }
}

/// Version, configuration, state, audit log, and each version of each key that a daemon has.
pub(super) fn rows(answers: &[Answer]) -> Vec<Row> {
    let mut rows = vec![
        Row::new("version", answers, |status| status.program_version.clone()),
        // Enough of it to be told apart by people.
        Row::new("configuration", answers, |s| s.config_sha256.chars().take(12).collect()),
        Row::new("state", answers, |status| status.phase.clone()),
        Row::new("audit", answers, |status| audit(status).to_owned()),
    ];
    let reached = || answers.iter().flatten();
    let versions: BTreeSet<(&str, u32)> = reached()
        .flat_map(|status| &status.keys)
        .flat_map(|key| key.versions.iter().map(|version| (&*key.key, version.version)))
        .collect();
    rows.extend(versions.into_iter().map(|(key, version)| {
        Row::new(format!("{key} version {version}"), answers, |status| {
            let key = status.keys.iter().find(|found| found.key == key);
            key.and_then(|key| reason(key, version)).unwrap_or(NONE).to_owned()
        })
    }));
    rows
}

/// How the audit log is, in one word.
pub(super) fn audit(status: &Status) -> &'static str {
    match &status.audit {
        None => "off",
        Some(audit) if audit.failing => "failing",
        Some(audit) if audit.in_reserve => "in-reserve",
        Some(_) => "ok",
    }
}

fn reason(key: &KeyStatus, version: u32) -> Option<&str> {
    let version = key.versions.iter().find(|found| found.version == version);
    version.map(|version| &*version.reason)
}

/// The rows under the names of the daemons; below them, why some were not reached.
pub(super) fn table(names: &[&str], rows: &[Row], answers: &[Answer]) -> String {
    let width_of_names = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..names.len())
        .map(|column| {
            let values = rows.iter().map(|row| row.values[column].len());
            values.chain([names[column].len()]).max().unwrap_or_default()
        })
        .collect();
    let line = |first: &str, values: &mut dyn Iterator<Item = &str>, mark: &str| {
        let mut line = format!("{first:width_of_names$}");
        for (value, width) in values.zip(&widths) {
            let _ = write!(line, "  {value:width$}");
        }
        line += mark;
        line.trim_end().to_owned()
    };
    let mut lines = vec![line("", &mut names.iter().copied(), "")];
    for row in rows {
        let mark = if row.differs() { "  DIFFERS" } else { "" };
        lines.push(line(&row.name, &mut row.values.iter().map(String::as_str), mark));
    }
    for (name, answer) in names.iter().zip(answers) {
        if let Err(reason) = answer {
            lines.push(format!("{name} was not reached: {reason}"));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::screen::tests::sound;
    use super::*;

    #[test]
    fn what_differs_between_daemons_is_marked_and_one_that_is_away_is_told() {
        let mut other = sound();
        "77aa".clone_into(&mut other.config_sha256);
        "token-absent".clone_into(&mut other.keys[0].versions[0].reason);
        let answers = [Ok(sound()), Ok(other), Err("connection refused".to_owned())];
        let rows = rows(&answers[..2]);
        let differing: Vec<_> = rows.iter().filter(|row| row.differs()).map(|r| &*r.name).collect();
        assert_eq!(differing, ["configuration", "user-keys version 2"]);
        assert_eq!(
            table(&["https://a", "https://b"], &rows, &answers[..2]),
            "                     https://a     https://b\n\
             version              0.1.0         0.1.0\n\
             configuration        9f2c9f2c9f2c  77aa          DIFFERS\n\
             state                ready         ready\n\
             audit                ok            ok\n\
             user-keys version 2  ok            token-absent  DIFFERS"
        );
        let all = table(&["a", "b", "c"], &super::rows(&answers), &answers);
        assert!(all.ends_with("c was not reached: connection refused"), "{all}");
        assert!(
            all.contains("state                ready         ready         -  DIFFERS"),
            "{all}"
        );
    }
}
