//! The options of a provider about its process.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// In which process the module runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Isolation {
    /// In a process of the provider's own.
    #[default]
    Process,
    /// In the daemon's.
    None,
}

/// What the module's process may do beside what every module needs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Sandbox {
    /// Internet sockets.
    pub(crate) network: bool,
    /// The only folders and files, beside the state directory and `/dev`, that it may write to;
    /// everything that the user may write to if nothing is said.
    pub(crate) write: Option<Vec<PathBuf>>,
}

/// A size of memory in MiB, 64 or more, written `512MiB` or `2GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct MemoryLimit {
    mebibytes: u64,
}

/// A time of 1 to 600 seconds, written `5s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct HangLimit {
    seconds: u64,
}

impl MemoryLimit {
    /// The size in bytes.
    pub(crate) fn bytes(self) -> u64 {
        self.mebibytes << 20
    }
}

impl Default for MemoryLimit {
    fn default() -> Self {
        Self { mebibytes: 512 }
    }
}

impl HangLimit {
    /// The time.
    pub(crate) fn duration(self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

impl Default for HangLimit {
    fn default() -> Self {
        Self { seconds: 5 }
    }
}

impl FromStr for MemoryLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |unit, factor| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(factor)
        };
        match number("MiB", 1).or_else(|| number("GiB", 1024)) {
            Some(mebibytes @ 64..=1_048_576) => Ok(Self { mebibytes }),
            _ => Err("memory_limit is a size such as \"512MiB\" or \"2GiB\", 64MiB to 1024GiB"),
        }
    }
}

impl FromStr for HangLimit {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_suffix('s').and_then(|number| number.parse().ok()) {
            Some(seconds @ 1..=600) => Ok(Self { seconds }),
            _ => Err("hang_limit is a time such as \"5s\", 1s to 600s"),
        }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}MiB", self.mebibytes)
    }
}

impl fmt::Display for HangLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.seconds)
    }
}

impl TryFrom<String> for MemoryLimit {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for HangLimit {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MemoryLimit> for String {
    fn from(limit: MemoryLimit) -> Self {
        limit.to_string()
    }
}

impl From<HangLimit> for String {
    fn from(limit: HangLimit) -> Self {
        limit.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_limit_has_a_unit_and_bounds() {
        assert_eq!("512MiB".parse(), Ok(MemoryLimit::default()));
        assert_eq!("2GiB".parse::<MemoryLimit>().unwrap().bytes(), 2 << 30);
        assert_eq!(MemoryLimit::default().to_string(), "512MiB");
        for wrong in ["512", "63MiB", "1MB", "-1GiB", "99999999999999999999GiB", "2000GiB", ""] {
            assert!(wrong.parse::<MemoryLimit>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_hang_limit_has_a_unit_and_bounds() {
        assert_eq!("5s".parse(), Ok(HangLimit::default()));
        for wrong in ["5", "0s", "601s", "5m", ""] {
            assert!(wrong.parse::<HangLimit>().is_err(), "{wrong}");
        }
    }
}
