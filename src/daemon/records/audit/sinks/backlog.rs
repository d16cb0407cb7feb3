//! What a sink has not got yet: pieces of the log's files, which stay open until it has.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::chain::{Head, Link};
use super::super::rotation::rotated_files;

/// What is read and sent at a time, in bytes; longer than any line.
const AT_A_TIME: u64 = 256 << 10;
/// What was sent so recently over a connection that broke is sent again: a collector takes a line twice
/// rather than not at all.
const UNCERTAIN: Duration = Duration::from_secs(10);

/// Whole lines of one file.
#[derive(Clone, Debug)]
pub(in super::super) struct Piece {
    /// The file; it may have been renamed or removed meanwhile.
    pub(in super::super) file: Arc<File>,
    /// From this byte.
    pub(in super::super) from: u64,
    /// To this one.
    pub(in super::super) to: u64,
    /// Lines of the log until the end of the piece.
    pub(in super::super) records: u64,
}

/// Pieces in the log's order.
#[derive(Debug)]
pub(super) struct Backlog {
    pieces: VecDeque<Piece>,
    bytes: u64,
    /// Lines of the log that the sink has.
    delivered: u64,
    /// What was sent within the last [`UNCERTAIN`], and when.
    sent: VecDeque<(Instant, Piece, u64)>,
}

/// Lines to send, and what remains to be noted when they were.
#[derive(Debug)]
pub(super) struct Taken {
    /// Whole lines.
    pub(super) lines: Vec<u8>,
    piece: Piece,
    /// Lines of the log before the piece.
    before: u64,
}

impl Backlog {
    /// The lines of the log at `path` behind the first `delivered`, until its end at `head`; nothing where
    /// the sink is new.
    pub(super) fn behind(path: &Path, delivered: Option<u64>, head: &Head) -> Self {
        let delivered = delivered.unwrap_or(head.records);
        let mut backlog =
            Self { pieces: VecDeque::new(), bytes: 0, delivered, sent: VecDeque::new() };
        if delivered >= head.records {
            backlog.delivered = head.records;
            return backlog;
        }
        let mut files = rotated_files(path);
        files.push(path.to_owned());
        for file in files {
            match piece_of(&file, delivered) {
                Ok(Some((piece, before))) => {
                    if before > backlog.end() {
                        let (from, to) = (backlog.end(), before);
                        tracing::error!(
                            from,
                            to,
                            "lines of the audit log are gone before a sink had them"
                        );
                        backlog.delivered = before;
                    }
                    backlog.push(piece);
                }
                Ok(None) => {}
                Err(error) => tracing::error!(
                    path = %file.display(), %error, "a file of the audit log cannot be read for a sink"
                ),
            }
        }
        backlog
    }

    /// Adds what was written.
    pub(super) fn push(&mut self, piece: Piece) {
        self.bytes += piece.to - piece.from;
        if let Some(last) = self.pieces.back_mut()
            && Arc::ptr_eq(&last.file, &piece.file)
            && last.to == piece.from
        {
            (last.to, last.records) = (piece.to, piece.records);
        } else {
            self.pieces.push_back(piece);
        }
    }

    /// Bytes that the sink has not got.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lines of the log that the sink has.
    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// Lines of the log that the sink has for certain.
    pub(super) fn certain(&self) -> u64 {
        let mut recent = self.sent.iter().filter(|(at, ..)| at.elapsed() <= UNCERTAIN);
        recent.next().map_or(self.delivered, |(_, _, before)| *before)
    }

    /// The next lines, which stay in the backlog until [`Self::sent`]. Those that are gone, because a
    /// program cut the file, are left out.
    pub(super) fn next(&mut self) -> Option<Taken> {
        loop {
            let first = self.pieces.front()?;
            let (file, from) = (Arc::clone(&first.file), first.from);
            let length = (first.to - from).min(AT_A_TIME);
            let mut lines = vec![0; length as usize];
            let read = file.read_exact_at(&mut lines, from);
            let end = lines.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if read.is_ok() && end > 0 {
                lines.truncate(end);
                let count = lines.split_inclusive(|byte| *byte == b'\n').count() as u64;
                let before = self.delivered;
                let to = from + end as u64;
                let piece = Piece { file, from, to, records: before + count };
                return Some(Taken { lines, piece, before });
            }
            tracing::error!("lines of the audit log are gone before a sink had them");
            let gone = self.pieces.pop_front()?;
            self.bytes -= gone.to - gone.from;
            self.delivered = gone.records;
        }
    }

    /// The sink has got what [`Self::next`] gave.
    pub(super) fn sent(&mut self, Taken { piece, before, .. }: Taken) {
        let Some(first) = self.pieces.front_mut() else { return };
        self.bytes -= piece.to - piece.from;
        self.delivered = piece.records;
        first.from = piece.to;
        if first.from >= first.to {
            self.pieces.pop_front();
        }
        let now = Instant::now();
        while self.sent.front().is_some_and(|(at, ..)| now - *at > UNCERTAIN) {
            self.sent.pop_front();
        }
        if let Some((at, last, _)) = self.sent.back_mut()
            && Arc::ptr_eq(&last.file, &piece.file)
            && last.to == piece.from
            && piece.to - last.from <= AT_A_TIME
        {
            (*at, last.to, last.records) = (now, piece.to, piece.records);
        } else {
            self.sent.push_back((now, piece, before));
        }
    }

    /// All that was sent has arrived.
    pub(super) fn all_arrived(&mut self) {
        self.sent.clear();
    }

    /// The connection broke: what was sent over it last goes again.
    pub(super) fn go_back(&mut self) {
        self.sent.retain(|(at, ..)| at.elapsed() <= UNCERTAIN);
        while let Some((_, piece, before)) = self.sent.pop_back() {
            self.bytes += piece.to - piece.from;
            self.delivered = before;
            match self.pieces.front_mut() {
                Some(first) if Arc::ptr_eq(&first.file, &piece.file) && first.from == piece.to => {
                    first.from = piece.from;
                }
                _ => self.pieces.push_front(piece),
            }
        }
    }

    /// Of a sink that no call needs: no more than so many bytes wait.
    pub(super) fn drop_beyond(&mut self, most: u64, name: &str) {
        while self.bytes > most && self.pieces.len() > 1 {
            let Some(first) = self.pieces.pop_front() else { return };
            self.bytes -= first.to - first.from;
            tracing::error!(
                sink = name,
                until = first.records,
                "an audit sink is too far behind: these lines are left out"
            );
            self.delivered = first.records;
            self.sent.clear();
        }
    }

    /// Lines of the log until the end of the backlog.
    fn end(&self) -> u64 {
        self.pieces.back().map_or(self.delivered, |piece| piece.records)
    }
}

/// The lines of a file behind the first `delivered` of the log, and how many lines are before them.
fn piece_of(path: &PathBuf, delivered: u64) -> io::Result<Option<(Piece, u64)>> {
    let file = Arc::new(File::open(path)?);
    let length = file.metadata()?.len();
    let mut reader = BufReader::new(&*file);
    let (mut at, mut from, mut before, mut records) = (0, None, 0, 0);
    let mut line = Vec::new();
    while at < length {
        line.clear();
        reader.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            break;
        }
        // Lines follow each other: only the first of a file is read for its place.
        let place = if at == 0 { Link::of(&line).map(|link| link.n) } else { Some(records) };
        let Some(place) = place else { return Ok(None) };
        if from.is_none() && place >= delivered {
            (from, before) = (Some(at), place);
        }
        records = place + 1;
        at += line.len() as u64;
    }
    Ok(from.map(|from| (Piece { file: Arc::clone(&file), from, to: at, records }, before)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log with these numbers of lines in its files; the last is the log itself.
    fn log(folder: &Path, files: &[u64]) -> (PathBuf, Head) {
        let path = folder.join("audit.jsonl");
        let mut head = Head::START;
        for (at, lines) in files.iter().enumerate() {
            let mut text = Vec::new();
            for seq in 0..*lines {
                head = head.link(format!("{{\"seq\":{seq}}}\n").as_bytes(), &mut text);
            }
            let is_last = at + 1 == files.len();
            let name =
                if is_last { path.clone() } else { folder.join(format!("audit.jsonl-{at}")) };
            std::fs::write(name, text).unwrap();
        }
        (path, head)
    }

    fn numbers(backlog: &mut Backlog) -> Vec<u64> {
        let mut found = Vec::new();
        while let Some(taken) = backlog.next() {
            let lines = taken.lines.split_inclusive(|byte| *byte == b'\n');
            found.extend(lines.map(|line| Link::of(line).unwrap().n));
            backlog.sent(taken);
        }
        found
    }

    #[test]
    fn a_sink_goes_on_where_it_was_over_rotated_files() {
        let folder = tempfile::tempdir().unwrap();
        let (path, head) = log(folder.path(), &[5, 5, 5]);
        let mut backlog = Backlog::behind(&path, Some(7), &head);
        assert_eq!(numbers(&mut backlog), (7..15).collect::<Vec<_>>());
        assert_eq!((backlog.bytes(), backlog.delivered()), (0, 15));
        assert!(numbers(&mut Backlog::behind(&path, Some(15), &head)).is_empty());
        assert!(numbers(&mut Backlog::behind(&path, None, &head)).is_empty(), "a new one");
        std::fs::remove_file(folder.path().join("audit.jsonl-1")).unwrap();
        let mut backlog = Backlog::behind(&path, Some(7), &head);
        assert_eq!(numbers(&mut backlog), (10..15).collect::<Vec<_>>(), "the rest is gone");
    }

    #[test]
    fn what_was_sent_last_goes_again_after_a_connection_broke() {
        let folder = tempfile::tempdir().unwrap();
        let (path, head) = log(folder.path(), &[3, 4]);
        let mut backlog = Backlog::behind(&path, Some(1), &head);
        let bytes = backlog.bytes();
        let first = numbers(&mut backlog);
        assert_eq!((backlog.delivered(), backlog.certain()), (7, 1));
        backlog.go_back();
        assert_eq!((backlog.delivered(), backlog.bytes()), (1, bytes));
        assert_eq!(numbers(&mut backlog), first);
        backlog.all_arrived();
        backlog.go_back();
        assert_eq!((backlog.delivered(), backlog.certain()), (7, 7));
    }

    #[test]
    fn lines_that_were_cut_off_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let (path, head) = log(folder.path(), &[3, 4]);
        let mut backlog = Backlog::behind(&path, Some(0), &head);
        std::fs::write(folder.path().join("audit.jsonl-0"), "").unwrap();
        assert_eq!(numbers(&mut backlog), [3, 4, 5, 6]);
        assert_eq!(backlog.bytes(), 0);
    }
}
