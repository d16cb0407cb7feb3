//! `claviger man`: manual pages, made from the same descriptions as `--help`.

use std::path::PathBuf;

use clap::CommandFactory;

use super::bytes;
use super::failure::{Exit, Failure};

/// The arguments of `claviger man`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger man | man -l -
  claviger man --dir /usr/local/share/man/man1")]
pub struct Args {
    /// Write a page for each command into this directory instead
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints or writes them.
pub fn run(args: &Args) -> Result<(), Failure> {
    let command = super::Arguments::command();
    if let Some(dir) = &args.dir {
        return clap_mangen::generate_to(command, dir).map_err(|error| {
            let dir = dir.display();
            Failure::new(Exit::Failure, format!("cannot write manual pages to {dir}: {error}"))
        });
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).expect("writing to memory does not fail");
    bytes::write(&page)
}
