//! `claviger completions`: what a shell needs to complete commands and flags.

use clap::{CommandFactory, ValueEnum};

use super::failure::Failure;
use super::input_output;

/// The arguments of `claviger completions`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Example:
  claviger completions bash > ~/.local/share/bash-completion/completions/claviger")]
pub struct Args {
    /// The shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Prints them.
pub fn run(args: &Args) -> Result<(), Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut super::Arguments::command(), "claviger", &mut script);
    input_output::write(&script)
}
