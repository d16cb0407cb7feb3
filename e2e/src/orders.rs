//! What a daemon's file system and sockets are to do: `orders.c` in front of the system's functions, told by
//! a file that a test may change at any time.

use std::fs;
use std::path::PathBuf;

use crate::daemon_files::DaemonFiles;
use crate::process::{command, run};

/// The orders to the daemons of a [`DaemonFiles`].
#[derive(Debug)]
pub struct Orders(PathBuf);

impl Orders {
    /// Puts the library into the environment of the daemons of these files. Nothing is ordered yet.
    pub fn to(files: &mut DaemonFiles) -> Self {
        let source = files.file("orders.c", include_str!("orders.c"), 0o600);
        let library = files.path("orders.so");
        let mut cc = command("cc");
        run(cc.args(["-shared", "-fPIC", "-o"]).arg(&library).args([&source, "-ldl"]));
        let orders = files.path("orders");
        files.variable("LD_PRELOAD", library);
        files.variable("ORDERS", &orders);
        Self(orders)
    }

    /// From now on these lines hold (`sync audit.jsonl fail 5`), and none that was before.
    pub fn give(&self, lines: &str) {
        let next = self.0.with_extension("next");
        fs::write(&next, lines).expect("the test's folder is writable");
        fs::rename(next, &self.0).expect("the test's folder is writable");
    }

    /// Nothing is ordered any more.
    pub fn take_back(&self) {
        self.give("");
    }
}
