//! The slots that a configuration asks for.

use cryptoki_sys::{CK_SLOT_ID, CKR_SLOT_ID_INVALID};

use crate::config::Config;
use crate::rv::Result;
use crate::slot::Slot;

/// A configuration with what belongs to it: connections and known keys.
pub(crate) struct Library {
    pub(crate) config: Config,
    pub(crate) slots: Vec<Slot>,
}

impl Library {
    /// Connects nothing yet.
    pub(crate) fn new(config: Config) -> Self {
        let slots = config.tokens.iter().map(|token| Slot::new(token.clone())).collect();
        Self { config, slots }
    }

    /// The index of a slot: slots are numbered from 0 in the order of the configuration.
    pub(crate) fn slot_index(&self, id: CK_SLOT_ID) -> Result<usize> {
        let index = usize::try_from(id).map_err(|_| CKR_SLOT_ID_INVALID)?;
        if index < self.slots.len() { Ok(index) } else { Err(CKR_SLOT_ID_INVALID) }
    }
}
