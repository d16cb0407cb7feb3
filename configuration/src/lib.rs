//! A configuration is one TOML file that is read value by value: every error is told in one run, with
//! file, line, field and what to write instead. The daemon and the connector read theirs with it.

mod error;
mod file;
mod names;
mod reader;

pub use error::{ConfigError, ConfigErrors};
pub use file::read_file;
pub use names::{joined, nearest, unknown_field};
pub use reader::{Node, Report, all, all_of, read};
