//! The thread that signs checkpoints and keeps them in a second file: both may take their time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, mpsc};
use std::time::SystemTime;

use rustix::fs::OFlags;
use uuid::Uuid;

use super::AuditError;
use super::chain::Head;
use super::checkpoint::{Signed, Signer, Verifier, text};
use super::line::with_buffer;
use super::queue::Queue;
use super::state::Covered;
use crate::daemon::config::{self, SignedBy};
use crate::daemon::records::creatable::check_creatable;

/// Longer than a signed note with the longest origin and the longest signature.
const LONGEST_NOTE: usize = 4096;

/// Signs the text of checkpoints with a key that the audit log does not know. May block for seconds.
pub trait SignCheckpoint: Send + Sync {
    /// The signature, or why there is none.
    fn sign(&self, text: &[u8]) -> Result<Signed, String>;
}

/// Where a key of the configuration is put once it can be used.
pub(super) type ForeignKey = Arc<OnceLock<Box<dyn SignCheckpoint>>>;

/// A checkpoint that is signed.
pub(super) struct Made {
    /// What it says of the log.
    pub(super) head: Head,
    /// The signed note.
    pub(super) note: String,
}

impl Made {
    /// The line that says it in the log.
    pub(super) fn line(&self, instance: Uuid) -> Vec<u8> {
        with_buffer(
            instance,
            |line| {
                line.plain("event", "checkpoint");
                line.number("size", self.head.records);
                line.text("note", &self.note, LONGEST_NOTE);
            },
            // Like a gap it has no `seq`: those of the lines behind it are given already.
            |body| [b"{", &body[1..]].concat(),
        )
    }
}

/// What the thread is asked for.
pub(super) enum Request {
    /// A checkpoint of the log until here. It is answered.
    Sign(Head),
    /// To keep a checkpoint that is in the log.
    Keep(Made),
}

/// What signs checkpoints, and where they are kept.
pub(super) struct Keeper {
    origin: String,
    by: By,
    file: PathBuf,
}

enum By {
    Ed25519(Signer),
    Foreign(ForeignKey),
}

impl Keeper {
    /// Reads the key, if it is in a file.
    pub(super) fn open(
        options: &config::Checkpoints,
        foreign_key: &ForeignKey,
    ) -> Result<Self, AuditError> {
        let origin = options.origin.clone();
        let by = match &options.signed_by {
            SignedBy::File(path) => {
                let signer = Signer::from_pem_file(&origin, path);
                By::Ed25519(signer.map_err(|reason| refused(path, reason))?)
            }
            SignedBy::Key(_) => By::Foreign(Arc::clone(foreign_key)),
        };
        Ok(Self { origin, by, file: options.file.clone() })
    }

    /// Sees that [`Self::open`] would succeed and that the second file can be written or made.
    pub(super) fn check(options: &config::Checkpoints) -> Result<(), AuditError> {
        Self::open(options, &ForeignKey::default())?;
        let file = &options.file;
        let writable = match open_second(file, false) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_creatable(file),
            opened => opened.map(drop),
        };
        writable.map_err(|error| refused(file, error.to_string()))
    }

    /// Works until no more can be asked for.
    pub(super) fn work(
        self,
        queue: &Queue,
        requests: &mpsc::Receiver<Request>,
        answer: &mpsc::Sender<Option<Made>>,
    ) {
        let (mut sign_failed, mut keep_failed) = (false, false);
        // What cannot be repaired is told when it is written.
        let _ = cut_torn_note(&self.file);
        for request in requests {
            match request {
                Request::Sign(head) => {
                    let made = self.sign(&head);
                    let error = made.as_ref().err();
                    if let Some(reason) = error {
                        if !sign_failed {
                            tracing::error!(%reason, "a checkpoint of the audit log cannot be signed");
                        }
                        let reason: Arc<str> = format!("not signed: {reason}").into();
                        queue.tell(|state| state.checkpoint_error = Some(reason));
                    }
                    sign_failed = error.is_some();
                    if answer.send(made.ok()).is_err() {
                        return;
                    }
                    queue.answered();
                }
                Request::Keep(made) => {
                    let error = self.keep(&made, keep_failed);
                    keep_failed = error.is_some();
                    queue.tell(|state| {
                        let at = SystemTime::now();
                        state.checkpoint = Some(Covered { records: made.head.records, at });
                        state.checkpoint_error = error;
                    });
                }
            }
        }
    }

    fn sign(&self, head: &Head) -> Result<Made, String> {
        let note = match &self.by {
            By::Ed25519(signer) => signer.sign(head),
            By::Foreign(key) => {
                let key = key.get().ok_or("its key is not in use yet")?;
                let text = text(&self.origin, head);
                let Signed { algorithm, spki, signature } = key.sign(text.as_bytes())?;
                let verifier = Verifier::rsa(&self.origin, algorithm, &spki);
                verifier.map_err(|error| error.to_string())?.note(&text, &signature)
            }
        };
        Ok(Made { head: *head, note })
    }

    /// Writes it to the second file; the reason why not, which is logged unless it was before.
    fn keep(&self, made: &Made, was_logged: bool) -> Option<Arc<str>> {
        let append = || {
            let mut file = open_second(&self.file, true)?;
            file.write_all(format!("{}\n", made.note).as_bytes())?;
            file.sync_data()
        };
        let error = append().err()?;
        let path = self.file.display();
        if !was_logged {
            tracing::error!(
                %path, %error, "a checkpoint of the audit log was not kept in its second file"
            );
        }
        Some(format!("{path}: {error}").into())
    }
}

/// Opens the second file. A FIFO without a reader would hang, so it is not waited for, and refused.
fn open_second(path: &Path, is_made: bool) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = OpenOptions::new();
    let file = options.append(true).create(is_made).mode(0o640).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

/// A power cut may leave a part of a note at the end of the second file: those behind it could not be read.
fn cut_torn_note(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(4 * LONGEST_NOTE as u64);
    let mut tail = vec![0; (length - from) as usize];
    file.read_exact_at(&mut tail, from)?;
    // A whole note ends in a signature line and an empty one.
    let is_end = |at: &usize| {
        let line = tail[..*at].rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        tail[*at..].starts_with(b"\n\n") && line.starts_with("\u{2014} ".as_bytes())
    };
    let end = (0..tail.len()).rev().find(is_end).map(|at| from + at as u64 + 2);
    match end {
        Some(end) if end < length => file.set_len(end),
        None if from == 0 => file.set_len(0),
        _ => Ok(()),
    }
}

fn refused(path: &Path, reason: String) -> AuditError {
    AuditError::Checkpoints { path: path.to_owned(), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_note_at_the_end_is_cut_off_and_whole_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoints");
        let note = "a.example/log\n7\nAAAA=\n\n\u{2014} a.example/log BBBB\n\n";
        let two = note.repeat(2);
        for torn in 0..note.len() {
            std::fs::write(&path, [two.as_bytes(), &note.as_bytes()[..torn]].concat()).unwrap();
            cut_torn_note(&path).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), two, "{torn}");
            std::fs::write(&path, &note.as_bytes()[..torn]).unwrap();
            cut_torn_note(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"", "{torn}");
        }
        std::fs::write(&path, &two).unwrap();
        cut_torn_note(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), two);
    }

    #[test]
    fn a_second_file_that_is_a_fifo_is_refused_and_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        assert!(open_second(&path, true).is_err());
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(&path)
            .unwrap();
        let error = open_second(&path, true).unwrap_err().to_string();
        assert_eq!(error, "it is not a regular file");
        drop(reader);
    }
}
