//! What one connection is told to do by the rest of the daemon, and how it hears of it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use tokio::sync::Notify;

use super::stats::Cut;

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Finish the calls in flight, take no more.
    Drain,
    /// End now.
    Cut(Cut),
}

/// What one connection and the list of all tell each other.
#[derive(Debug, Default)]
pub(super) struct Signal {
    /// 0: nothing; 1: drain; 2 and more: cut, for the reason of that number.
    command: AtomicU8,
    notify: Notify,
    /// The peer has sent its first byte.
    pub(super) spoke: AtomicBool,
}

impl Signal {
    pub(super) fn send(&self, command: Command) {
        let number = match command {
            Command::Drain => 1,
            Command::Cut(reason) => 2 + reason as u8,
        };
        self.command.fetch_max(number, Ordering::Release);
        self.notify.notify_one();
    }

    /// Waits for a command. A later one replaces a milder one that was not yet read.
    pub(super) async fn received(&self) -> Command {
        loop {
            self.notify.notified().await;
            match self.command.load(Ordering::Acquire) {
                0 => {}
                1 => return Command::Drain,
                reason => return Command::Cut(Cut::ALL[usize::from(reason) - 2]),
            }
        }
    }
}
