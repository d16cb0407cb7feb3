//! The thread that writes: one write and one sync for everything that gathered during the last.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::AuditError;
use super::checkpoints::Checkpoints;
use super::event::{Alarm, Event};
use super::file::{Changed, LogFile};
use super::line::with_buffer;
use super::queue::{Batch, Dropped, Next, Queue};

/// How often a log that fails, or that has only its reserve left, is tried while no record comes.
const RETRY: Duration = Duration::from_secs(1);

pub(super) fn start(
    queue: Arc<Queue>,
    file: LogFile,
    mut checkpoints: Option<Checkpoints>,
) -> io::Result<JoinHandle<()>> {
    if let Some(checkpoints) = &mut checkpoints {
        checkpoints.begin(&file.head(), &queue)?;
    }
    thread::Builder::new().name("audit".to_owned()).spawn(move || {
        let abandon = AbandonAtEnd(Arc::clone(&queue));
        abandon.0.tell(|state| state.head = file.head());
        let mut writer = Writer { queue: &abandon.0, file, checkpoints, gap: None };
        writer.look_at_room();
        writer.run();
    })
}

/// Fails every call that waits when the thread ends, for whatever reason.
struct AbandonAtEnd(Arc<Queue>);

impl Drop for AbandonAtEnd {
    fn drop(&mut self) {
        self.0.abandon();
    }
}

struct Writer<'a> {
    queue: &'a Queue,
    file: LogFile,
    checkpoints: Option<Checkpoints>,
    gap: Option<Gap>,
}

/// Lines that could not be written; their callers were told. The log says so when it can again.
struct Gap {
    first_seq: u64,
    last_seq: u64,
    records: u64,
    error: String,
}

impl Writer<'_> {
    fn run(mut self) {
        let mut batch = Batch::default();
        loop {
            match self.queue.take(&mut batch, self.wake_up()) {
                Next::Write => self.commit(&mut batch),
                Next::TimeUp if self.gap.is_some() || self.queue.is_in_reserve() => {
                    self.commit(&mut batch);
                }
                Next::TimeUp => {}
                Next::LastCheckpoint => {
                    if let Some(checkpoints) = &mut self.checkpoints {
                        checkpoints.hurry();
                    }
                }
                Next::End => {
                    // What was written since the last one is not left without a checkpoint.
                    let head = self.file.head();
                    if let Some(checkpoints) = &mut self.checkpoints
                        && checkpoints.wait_for_last(&head)
                    {
                        self.commit(&mut batch);
                    }
                    return;
                }
            }
        }
    }

    /// Writes counted refusals and asks for a checkpoint when they are due; the time to be woken though
    /// nothing comes.
    fn wake_up(&mut self) -> Option<Instant> {
        if self.queue.counts_due().is_some_and(|due| due <= Instant::now()) {
            self.queue.push_counted();
        }
        let tries = self.gap.is_some() || self.queue.is_in_reserve();
        let retry = tries.then(|| Instant::now() + RETRY);
        let head = self.file.head();
        let checkpoint = self.checkpoints.as_mut().and_then(|it| it.ask_if_due(&head));
        [retry, self.queue.counts_due(), checkpoint].into_iter().flatten().min()
    }

    /// Notes how much room is left, and says when that is only the reserve.
    fn look_at_room(&mut self) {
        let (is_all, left) = self.file.reserve();
        if !self.queue.set_reserve(is_all, left) {
            return;
        }
        let path = self.file.path().display();
        if is_all {
            tracing::error!(
                %path, left,
                "the disk of the audit log is full: only unwrap, rewrap and sign are answered, from the \
                 room that was kept for them"
            );
            self.alarm(Alarm::AuditReserve);
        } else {
            tracing::info!(%path, "the disk of the audit log has room again");
        }
    }

    /// The next lines have it.
    fn alarm(&self, alarm: Alarm) {
        let event = Event::Alarm { alarm, caller: None, key: None };
        let instance = self.queue.instance();
        with_buffer(instance, |line| event.write(line), |body| self.queue.push_unwaited(body));
    }

    fn commit(&mut self, batch: &mut Batch) {
        let started = Instant::now();
        let head = self.file.head();
        let checkpoint = self.checkpoints.as_mut().and_then(|checkpoints| checkpoints.take(&head));
        // It speaks of the lines before it, so it comes first.
        let line = checkpoint.as_ref().map(|made| made.line(self.queue.instance()));
        let first = [line, self.gap_line()];
        let first: Vec<u8> = first.into_iter().flatten().flatten().collect();
        self.queue.set_writing(true);
        let written = if first.is_empty() {
            self.file.append(&batch.lines)
        } else {
            self.file.append(&[&first, &*batch.lines].concat())
        };
        self.queue.set_writing(false);
        match written {
            Ok(piece) => {
                let head = self.file.head();
                if let (Some(checkpoints), Some(made)) = (&mut self.checkpoints, checkpoint) {
                    checkpoints.written(made);
                }
                let uncovered = self.checkpoints.as_ref().map_or(0, |it| it.uncovered(&head));
                self.queue.tell(|state| (state.head, state.uncovered) = (head, uncovered));
                self.queue.metrics().synced(batch.records, started.elapsed());
                self.recovered();
                let waiters = batch.waiters.drain(..);
                self.queue.sinks().hand_over(piece.as_ref(), head.records, waiters);
            }
            Err(error) => {
                if let (Some(checkpoints), Some(made)) = (&mut self.checkpoints, checkpoint) {
                    checkpoints.put_back(made);
                }
                self.failed(batch, &error);
                let error = AuditError::Write(Arc::new(error));
                for waiter in batch.waiters.drain(..) {
                    let _ = waiter.send(Err(error.clone()));
                }
            }
        }
        self.note_dropped(batch);
        match self.file.take_change() {
            Some(Changed::Cut) => self.alarm(Alarm::AuditCut),
            Some(Changed::Written) => self.alarm(Alarm::AuditWrittenByOthers),
            None => {}
        }
        self.look_at_room();
        batch.clear();
    }

    /// Lines that were never taken are missing too: the next write says so.
    fn note_dropped(&mut self, batch: &Batch) {
        let Some(Dropped { records, first_seq, last_seq }) = batch.dropped else { return };
        let error = "more waited for the disk than is kept in memory";
        self.missing(records, first_seq, last_seq, &error);
    }

    /// A line that says which are missing.
    fn gap_line(&self) -> Option<Vec<u8>> {
        let gap = self.gap.as_ref()?;
        Some(with_buffer(
            self.queue.instance(),
            |line| {
                line.plain("event", "gap");
                line.number("records", gap.records);
                line.number("first_seq", gap.first_seq);
                line.number("last_seq", gap.last_seq);
                line.text("error", &gap.error, 512);
            },
            // It has no `seq` of its own: those after the gap are given already.
            |body| [b"{", &body[1..]].concat(),
        ))
    }

    fn recovered(&mut self) {
        if let Some(gap) = self.gap.take() {
            self.queue.set_failing(false);
            tracing::info!(lost = gap.records, "the audit log can be written again");
        }
    }

    fn failed(&mut self, batch: &Batch, error: &io::Error) {
        self.queue.metrics().failed(batch.records);
        if self.gap.is_none() {
            self.queue.set_failing(true);
            let path = self.file.path().display();
            tracing::error!(%path, %error, "the audit log cannot be written: calls fail until it can");
        }
        self.missing(batch.records, batch.first_seq, batch.last_seq, error);
    }

    /// Adds lines to those that the log is to say are missing.
    fn missing(&mut self, records: u64, first_seq: u64, last_seq: u64, error: &dyn fmt::Display) {
        let gap = self.gap.get_or_insert_with(|| Gap {
            first_seq,
            last_seq: first_seq,
            records: 0,
            error: error.to_string(),
        });
        if records > 0 {
            if gap.records == 0 {
                gap.first_seq = first_seq;
            }
            gap.first_seq = gap.first_seq.min(first_seq);
            gap.last_seq = gap.last_seq.max(last_seq);
            gap.records += records;
        }
    }
}
