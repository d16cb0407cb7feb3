//! Failed unwraps survive a restart and a kill: each is on disk, in the state directory, before its
//! answer leaves.
//!
//! One line of JSON for each change, appended and synced; now and then the file is written anew with
//! what still counts.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use claviger_files::NewMode;
use serde::{Deserialize, Serialize};

/// Beyond twice what still counts, so many lines more make the file worth writing anew.
const SPARE_LINES: usize = 1000;
/// The longest window of a limit.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

/// The caller and the key of a budget, by their names.
pub type CallerAndKey = (String, String);

/// One distinct value that counts as a failed unwrap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpentUnwrap {
    /// When it first failed, in milliseconds since 1970.
    pub at_ms: u64,
    /// Which value, as [`super::budget::ValueId`].
    pub value: [u8; 32],
    /// Whether it is the value's fault; else no backend has answered.
    pub is_known: bool,
    /// In which state of the key.
    pub key_state: u64,
}

/// The failed unwraps of all callers on all keys; those too that the configuration does not name at
/// present: a grant that is taken away and given back must not come with a new budget.
#[derive(Debug)]
pub struct FailedUnwraps {
    path: Option<PathBuf>,
    spent: Mutex<HashMap<CallerAndKey, Vec<SpentUnwrap>>>,
    unwritten: Mutex<Vec<u8>>,
    /// Lines in the file; held while it is written.
    lines: Mutex<usize>,
}

/// One line of the file.
#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", deny_unknown_fields)]
enum Line {
    /// A value counts, or is known now to be at fault.
    Failed {
        caller: String,
        key: String,
        at_ms: u64,
        value: String,
        known: bool,
        key_state: String,
    },
    /// A value that counted turned out to be good.
    TakenBack { caller: String, key: String, value: String },
    /// An operator gave the budget back.
    Reset { caller: String, key: String },
}

impl FailedUnwraps {
    /// Reads what was spent. A file that cannot be read is said and counts as nothing spent: it must
    /// not keep a company out of its keys. Without a state directory all is forgotten at the end.
    pub fn open(state_dir: Option<&Path>) -> Arc<Self> {
        let path = state_dir.map(|folder| folder.join("failed-unwraps.jsonl"));
        let text = path.as_deref().map(read).unwrap_or_default();
        let mut spent = HashMap::new();
        let mut is_whole = text.is_empty() || text.ends_with('\n');
        for (number, line) in (1..).zip(text.lines()) {
            if serde_json::from_str(line).ok().and_then(|line| apply(line, &mut spent)).is_none() {
                is_whole = false;
                tracing::warn!(line = number, "failed-unwraps.jsonl: a line was left out");
            }
        }
        let (spent, lines) = (Mutex::new(spent), Mutex::new(text.lines().count()));
        let file = Self { path, spent, unwritten: Mutex::default(), lines };
        // A kill leaves half a line, whose caller had no answer: nothing may be appended to it.
        if let (false, Some(path)) = (is_whole, &file.path)
            && let Err(error) = file.write_anew(path)
        {
            tracing::error!(%error, "failed-unwraps.jsonl cannot be written anew");
        }
        Arc::new(file)
    }

    /// Whether it survives the end of the process.
    pub fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    /// What was spent of one budget, oldest first.
    pub fn spent(&self, caller_and_key: &CallerAndKey) -> Vec<SpentUnwrap> {
        lock(&self.spent).get(caller_and_key).cloned().unwrap_or_default()
    }

    /// Notes that a value counts; [`Self::write`] makes it durable.
    pub(super) fn spend(&self, caller_and_key: &CallerAndKey, spent: SpentUnwrap) {
        self.note(line_of(caller_and_key, &spent));
    }

    /// Notes that a value counts no longer.
    pub(super) fn take_back(&self, (caller, key): &CallerAndKey, value: &[u8; 32]) {
        let (caller, key) = (caller.clone(), key.clone());
        self.note(Line::TakenBack { caller, key, value: hex::encode(value) });
    }

    /// Notes that nothing counts any longer.
    pub(super) fn reset(&self, (caller, key): &CallerAndKey) {
        self.note(Line::Reset { caller: caller.clone(), key: key.clone() });
    }

    /// Ends when all that was noted before is durable, or has failed to be, which is said.
    pub async fn written(self: Arc<Self>) {
        if self.path.is_none() {
            return;
        }
        let written = tokio::task::spawn_blocking(move || self.write()).await;
        if let Ok(Err(error)) = written {
            tracing::error!(%error, "failed unwraps were not written to the state directory");
        }
    }

    /// Makes all that was noted before durable. Blocks on the disk; calls at once share a sync.
    pub fn write(&self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let mut lines = lock(&self.lines);
        let unwritten = std::mem::take(&mut *lock(&self.unwritten));
        if unwritten.is_empty() {
            return Ok(());
        }
        let added = unwritten.split(|byte| *byte == b'\n').count() - 1;
        let written = append(path, &unwritten);
        if written.is_err() {
            // For the next attempt, before what was noted meanwhile.
            lock(&self.unwritten).splice(0..0, unwritten);
            return written;
        }
        *lines += added;
        let counts = self.forget_old();
        if *lines > 2 * counts + SPARE_LINES {
            *lines = self.write_anew(path)?;
        }
        Ok(())
    }

    fn note(&self, line: Line) {
        let mut text = serde_json::to_vec(&line).expect("strings and numbers become JSON");
        text.push(b'\n');
        // Under one lock, so that memory and file have the same order.
        let mut spent = lock(&self.spent);
        lock(&self.unwritten).extend_from_slice(&text);
        apply(line, &mut spent);
    }

    /// Forgets what no window reaches any more; how many values are left.
    fn forget_old(&self) -> usize {
        let oldest = SystemTime::now() - LONGEST_WINDOW;
        let oldest = oldest.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut spent = lock(&self.spent);
        spent.retain(|_, values| {
            values.retain(|spent| u128::from(spent.at_ms) > oldest);
            !values.is_empty()
        });
        spent.values().map(Vec::len).sum()
    }

    /// A new file, synced, renamed over the old one; how many lines it has.
    fn write_anew(&self, path: &Path) -> io::Result<usize> {
        // What is noted from here on is in both, which does no harm.
        let spent = lock(&self.spent).clone();
        let mut text = Vec::new();
        let mut lines = 0;
        for (caller_and_key, values) in &spent {
            for value in values {
                serde_json::to_writer(&mut text, &line_of(caller_and_key, value))?;
                text.push(b'\n');
                lines += 1;
            }
        }
        claviger_files::replace(path, &text, NewMode::Exactly(0o600))?;
        Ok(lines)
    }
}

/// Puts a line into force; none where it makes no sense.
fn apply(line: Line, spent: &mut HashMap<CallerAndKey, Vec<SpentUnwrap>>) -> Option<()> {
    match line {
        Line::Failed { caller, key, at_ms, value, known, key_state } => {
            let value = parse_value(&value)?;
            let key_state = u64::from_str_radix(&key_state, 16).ok()?;
            let values = spent.entry((caller, key)).or_default();
            match values.iter_mut().find(|spent| spent.value == value) {
                Some(spent) => (spent.is_known, spent.key_state) = (known, key_state),
                None => values.push(SpentUnwrap { at_ms, value, is_known: known, key_state }),
            }
        }
        Line::TakenBack { caller, key, value } => {
            let value = parse_value(&value)?;
            if let Some(values) = spent.get_mut(&(caller, key)) {
                values.retain(|spent| spent.value != value);
            }
        }
        Line::Reset { caller, key } => {
            spent.remove(&(caller, key));
        }
    }
    Some(())
}

fn line_of((caller, key): &CallerAndKey, spent: &SpentUnwrap) -> Line {
    Line::Failed {
        caller: caller.clone(),
        key: key.clone(),
        at_ms: spent.at_ms,
        value: hex::encode(spent.value),
        known: spent.is_known,
        key_state: format!("{:x}", spent.key_state),
    }
}

fn parse_value(text: &str) -> Option<[u8; 32]> {
    let mut value = [0; 32];
    hex::decode_to_slice(text, &mut value).ok()?;
    Some(value)
}

fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => {
            let path = path.display();
            tracing::error!(%path, %error, "failed unwraps were not read: counting starts at zero");
            String::new()
        }
    }
}

/// By its path each time: another daemon of this state directory may have replaced the file.
fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    let is_new = !path.exists();
    let mut file = private().append(true).open(path)?;
    file.write_all(lines)?;
    file.sync_data()?;
    if is_new { sync_folder_of(path) } else { Ok(()) }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Else a crash may lose a new file.
fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
