//! The commands and how they fail.

use std::fmt;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use claviger_configuration::ConfigErrors;
use tokio::runtime::Runtime;

use crate::config::{Config, DEFAULT_PATH};
use crate::user::UserId;
use crate::{log, migrate, serve, users};

/// What was asked for.
#[derive(Debug, Parser)]
#[command(
    name = "claviger-connector",
    version,
    about = "A Key Connector whose keys are opened in an HSM, by the Claviger daemon",
    after_long_help = AFTER_HELP,
    arg_required_else_help = true
)]
pub struct Arguments {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
}

const AFTER_HELP: &str = "\
Exit codes:
   0  done
   1  failed; stderr says why
   2  wrong arguments
  65  users are left that could not be migrated; each is named
  69  the daemon or the database cannot be reached; safe to repeat
  78  the configuration is wrong: an operator must act";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve users' clients
    Serve,
    /// Check the configuration and the files that it names
    Check,
    /// Change how users' keys are stored, or move them from and to the original's JSON file
    #[command(subcommand)]
    Migrate(Migrate),
    /// Look at users, or remove one
    #[command(subcommand)]
    Users(Users),
}

/// `migrate`. Each may be interrupted and run again, and runs beside serving instances.
#[derive(Debug, Subcommand)]
pub enum Migrate {
    /// Put each user's key under the RSA key by itself
    PerUser,
    /// Put each user's key under the one symmetric key, as the original stores it
    SharedKey,
    /// Take the users over from the original's JSON file
    ImportJson {
        /// The original's data.json
        file: PathBuf,
    },
    /// Give the users back as a JSON file of the original's
    ExportJson {
        /// The file to make; it must not exist
        file: PathBuf,
    },
}

/// `users`.
#[derive(Debug, Subcommand)]
pub enum Users {
    /// Print each user with the form of the key and the times, tab-separated
    List,
    /// Print one user
    Show {
        /// The user's UUID
        #[arg(value_parser = user)]
        user: UserId,
    },
    /// Remove a user whose enrolment stopped half-way; a vault that is in use is lost by it
    Remove {
        /// The user's UUID
        #[arg(value_parser = user)]
        user: UserId,
        /// Yes, the identity server does not know this key
        #[arg(long)]
        yes: bool,
    },
}

fn user(text: &str) -> Result<UserId, String> {
    UserId::parse(text).ok_or_else(|| "it is no UUID".to_owned())
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

/// The exit codes, after sysexits.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// A reason that no other code tells.
    Failure = 1,
    /// Wrong arguments; what clap uses too.
    Usage = 2,
    /// Users are left.
    Data = 65,
    /// The daemon or the database cannot be reached.
    Unavailable = 69,
    /// The configuration must be changed.
    Configuration = 78,
}

impl Failure {
    /// A failure that is told in one clause.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: format!("error: {message}") }
    }

    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        self.exit as u8
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        Self { exit: Exit::Configuration, message: errors.to_string() }
    }
}

/// What was asked for. Help, and arguments that are wrong, end the process here.
pub fn arguments() -> Arguments {
    Arguments::parse()
}

/// Runs a command to its end.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.config)?;
    let runtime = Runtime::new().map_err(|error| Failure::new(Exit::Failure, error))?;
    match arguments.command {
        Command::Serve => {
            log::init(&config.log);
            runtime.block_on(serve::serve(config))
        }
        Command::Check => runtime.block_on(async { serve::check(&config) }),
        Command::Migrate(command) => {
            log::init(&config.log);
            runtime.block_on(migrate::run(&config, command))
        }
        Command::Users(command) => runtime.block_on(users::run(&config, command)),
    }
}

/// No core dumps, and no other process of this user reads the memory: keys are in it.
pub fn protect_memory() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
}
