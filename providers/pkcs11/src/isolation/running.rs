//! The process that runs, as those see it who use it.

use std::sync::Arc;

use claviger_provider_api::{Error, ErrorKind};

use super::link::Link;

/// The process that runs, or why there is none.
#[derive(Clone, Debug, Default)]
pub(super) struct Running {
    pub(super) link: Option<Arc<Link>>,
    pub(super) fault: Option<Arc<str>>,
}

impl Running {
    /// The process.
    pub(super) fn link(&self) -> Result<Arc<Link>, Error> {
        self.link.clone().ok_or_else(|| self.no_process())
    }

    /// The error of a call that needs a process.
    pub(super) fn no_process(&self) -> Error {
        let reason = self.fault.as_deref().unwrap_or("it is being started");
        let text = format!("the module's process does not run: {reason}");
        Error::new(ErrorKind::Unavailable, text)
    }
}
