//! Files that decide who is trusted and what is secret: one rule for their owner and mode, one way
//! to replace them, one reader of PEM. Daemon, providers and clients all use these.

mod folders;
pub mod pem;
mod protection;
mod replacement;

pub use folders::{check_folder, check_folders};
pub use protection::{FileError, Protection, open, read};
pub use replacement::{NewMode, create, replace, replace_unless};
