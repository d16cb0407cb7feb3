//! Calls of a token counted, and faults injected into them, through the fault module.
//!
//! What an action can be stands in `faults/src/rules.rs`: `rv=0x30`, `sleep=2000`, `hang`,
//! `abort`, `garbage`, `flags=locked` and others.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

const RECORD: usize = 64;

/// The two files that the fault module and a test share.
#[derive(Debug)]
pub struct Faults {
    counts: PathBuf,
    file: PathBuf,
    rules: Mutex<Vec<String>>,
}

impl Faults {
    pub(crate) fn new(folder: &Path) -> Self {
        let (counts, file) = (folder.join("counts"), folder.join("rules"));
        Self { counts, file, rules: Mutex::default() }
    }

    pub(crate) fn environment(&self, real: &Path) -> [(OsString, OsString); 3] {
        [
            ("CLAVIGER_FAULTS_MODULE".into(), real.into()),
            ("CLAVIGER_FAULTS_COUNTS".into(), (&self.counts).into()),
            ("CLAVIGER_FAULTS_RULES".into(), (&self.file).into()),
        ]
    }

    /// How often a function was called, over all processes so far.
    pub fn count(&self, function: &str) -> u64 {
        // No file, or one that is still being made: no process has loaded the module yet.
        let file = fs::read(&self.counts).unwrap_or_default();
        let is_whole = file.chunks_exact(RECORD).next_back().is_some_and(|last| last[0] != 0);
        let record = file.chunks_exact(RECORD).find(|record| {
            record.strip_prefix(function.as_bytes()).is_some_and(|rest| rest[0] == 0)
        });
        match record {
            Some(record) => {
                u64::from_ne_bytes(record[RECORD - 8..].try_into().expect("eight bytes"))
            }
            None if !is_whole => 0,
            None => panic!("the fault module does not count {function}"),
        }
    }

    /// Does `action` to every call of `function` from now on.
    pub fn on_every(&self, function: &str, action: &str) {
        self.add(format!("{function}:*:{action}"));
    }

    /// Does `action` to the `nth` call of `function` from now: 1 is the next one.
    pub fn on_call(&self, nth: u64, function: &str, action: &str) {
        self.add(format!("{function}:{}:{action}", self.count(function) + nth));
    }

    /// Does `action` to the next `calls` calls of `function`.
    pub fn on_next(&self, calls: u64, function: &str, action: &str) {
        let made = self.count(function);
        self.add(format!("{function}:{}-{}:{action}", made + 1, made + calls));
    }

    /// Injects nothing any more; what hangs goes on.
    pub fn clear(&self) {
        let mut rules = self.rules.lock().expect("no test panicked while writing rules");
        rules.clear();
        self.write(&rules);
    }

    fn add(&self, rule: String) {
        let mut rules = self.rules.lock().expect("no test panicked while writing rules");
        rules.push(rule);
        self.write(&rules);
    }

    /// By rename, so that the module never reads half a file.
    fn write(&self, rules: &[String]) {
        let new = self.file.with_extension("new");
        fs::write(&new, rules.join("\n")).expect("the token's folder is writable");
        fs::rename(&new, &self.file).expect("the token's folder is writable");
    }
}
