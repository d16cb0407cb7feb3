//! Landlock: no file is a program, no signal leaves the process, and writing only where the
//! configuration says so, if it does.

use std::path::{Path, PathBuf};

use claviger_provider_api::Measure;
use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope,
};

use crate::config::Config;

/// The newest version that the measures come from.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread and those that it starts.
pub(super) fn measure(config: &Config, state_dir: Option<&Path>) -> Measure {
    let written = config.sandbox.write.as_ref().map(|written| {
        let dev = Path::new("/dev").to_owned();
        let state_dir = state_dir.map(Path::to_owned);
        written.iter().cloned().chain(state_dir).chain([dev]).collect::<Vec<_>>()
    });
    let what = match &written {
        None => "no programs, no signals to others; writes are not restricted (sandbox.write)",
        Some(_) => "no programs, no signals to others, writes only below sandbox.write",
    };
    let taken = restrict(written.as_deref()).map_err(|error| error.to_string());
    match taken {
        Ok(RulesetStatus::FullyEnforced) => super::measure("landlock", what, Ok(())),
        Ok(RulesetStatus::PartiallyEnforced) => {
            let what = format!("{what}; of these, what this kernel knows");
            super::measure("landlock", &what, Ok(()))
        }
        Ok(RulesetStatus::NotEnforced) => {
            super::measure("landlock", what, Err("this kernel does not have it".to_owned()))
        }
        Err(error) => super::measure("landlock", what, Err(error)),
    }
}

fn restrict(written: Option<&[PathBuf]>) -> Result<RulesetStatus, Box<dyn std::error::Error>> {
    let writes = AccessFs::from_write(NEWEST);
    let handled = match written {
        None => AccessFs::Execute.into(),
        Some(_) => writes | AccessFs::Execute,
    };
    let mut ruleset = Ruleset::default().handle_access(handled)?.scope(Scope::Signal)?.create()?;
    for path in written.unwrap_or_default() {
        let of_kind = if path.is_dir() { writes } else { writes & AccessFs::from_file(NEWEST) };
        let file = PathFd::new(path).map_err(|error| format!("{}: {error}", path.display()))?;
        ruleset = ruleset.add_rule(PathBeneath::new(file, of_kind))?;
    }
    Ok(ruleset.restrict_self()?.ruleset)
}
