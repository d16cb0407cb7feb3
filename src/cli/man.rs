//! `claviger man`: manual pages, made from the descriptions that `--help` has and from the annotated
//! configuration.

use std::fs;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use clap_mangen::Man;

use super::failure::{Exit, Failure};
use super::input_output;

/// The configuration with every option, which is the page about it.
const EXAMPLE: &str = include_str!("../../deploy/claviger.example.toml");

/// The sections of the program's page that no description of an argument has. In roff.
const SECTIONS: &str = r#".SH FILES
.TP
\fI/etc/claviger/claviger.toml\fR
The daemon's configuration: \fBclaviger.toml\fR(5).
.TP
\fI/etc/claviger/pkcs11.toml\fR
The configuration of libclaviger_pkcs11.so.
.TP
\fI$XDG_CONFIG_HOME/claviger/client.toml\fR, \fI~/.config/claviger/client.toml\fR
Where the daemon is and which certificate to show it, for the commands that call it.
.TP
\fI/var/lib/claviger\fR
The state directory: refused PINs, spent budgets. It must survive a restart, and is not to be restored from a backup.
.TP
\fI/var/log/claviger/audit.jsonl\fR
The audit log, one JSON object a line.
.SH ENVIRONMENT
.TP
\fBCLAVIGER_CONFIG\fR
The daemon's configuration, where \fB\-\-config\fR names none.
.TP
\fBCLAVIGER_CLIENT\fR
The client file, where \fB\-\-client\fR names none.
.TP
\fBCREDENTIALS_DIRECTORY\fR
Where systemd puts the credentials of a unit, for secrets written as { credential = "NAME" }.
.TP
\fBNOTIFY_SOCKET\fR
Where \fBclaviger serve\fR says that it is ready, reloads and stops (\fBsd_notify\fR(3)).
.PP
No variable changes what the configuration says.
.SH SIGNALS
Of \fBclaviger serve\fR:
.TP
\fBSIGHUP\fR
Read the configuration and everything it names again. All of it takes effect, or nothing.
.TP
\fBSIGTERM\fR, \fBSIGINT\fR
Drain: take no new connection, let the calls in flight end, then exit with 0.
.SH SEE ALSO
\fBclaviger.toml\fR(5), \fBsystemctl\fR(1), \fBpkcs11\-tool\fR(1)
"#;

/// The arguments of `claviger man`.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  claviger man | man -l -
  claviger man claviger.toml | man -l -
  claviger man --dir /usr/local/share/man")]
pub struct Args {
    /// The page: `claviger`, one of a command such as `claviger-wrap`, or `claviger.toml`
    #[arg(default_value = "claviger")]
    page: String,
    /// Write all pages into man1 and man5 of this directory instead
    #[arg(long, value_name = "DIR", conflicts_with = "page")]
    dir: Option<PathBuf>,
}

/// A page: its name, its section of the manual, its text in roff.
type Page = (String, u8, Vec<u8>);

/// Prints one page, or writes all.
pub fn run(args: &Args) -> Result<(), Failure> {
    let pages = pages();
    if let Some(dir) = &args.dir {
        return write_all(&pages, dir).map_err(|error| {
            let dir = dir.display();
            Failure::new(Exit::Failure, format!("cannot write manual pages to {dir}: {error}"))
        });
    }
    let page = pages.iter().find(|(name, ..)| *name == args.page);
    let (_, _, text) = page.ok_or_else(|| {
        let names: Vec<&str> = pages.iter().map(|(name, ..)| name.as_str()).collect();
        Failure::new(Exit::Usage, format!("there is no page {:?}", args.page))
            .advise(format!("These are there: {}.", names.join(", ")))
    })?;
    input_output::write(text)
}

fn write_all(pages: &[Page], dir: &Path) -> std::io::Result<()> {
    for (name, section, text) in pages {
        let folder = dir.join(format!("man{section}"));
        if !folder.is_dir() {
            fs::create_dir(&folder)?;
        }
        fs::write(folder.join(format!("{name}.{section}")), text)?;
    }
    Ok(())
}

fn pages() -> Vec<Page> {
    let mut command = super::Arguments::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add_command(command, &mut pages);
    pages.push(("claviger.toml".to_owned(), 5, configuration()));
    pages
}

/// The page of a command, then those of the commands below it.
fn add_command(command: clap::Command, pages: &mut Vec<Page>) {
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let below: Vec<clap::Command> =
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut page = Vec::new();
    Man::new(command).render(&mut page).expect("writing to memory does not fail");
    let is_first = name == "claviger";
    // What clap calls extra are the examples, and the exit codes where there are some.
    let extra = if is_first { ".SH EXAMPLES AND EXIT STATUS" } else { ".SH EXAMPLES" };
    let mut text = String::from_utf8(page).expect("the descriptions are UTF-8");
    text = text.replace(".SH EXTRA", extra);
    if is_first {
        text += SECTIONS;
    }
    pages.push((name, 1, text.into_bytes()));
    for command in below {
        add_command(command, pages);
    }
}

/// `claviger.toml(5)`: the example, in which every option stands with its default and its meaning.
fn configuration() -> Vec<u8> {
    let head = format!(
        r#".TH claviger.toml 5 "" "claviger {version}"
.SH NAME
claviger.toml \- configuration of the Claviger daemon
.SH SYNOPSIS
\fI/etc/claviger/claviger.toml\fR, or the file that \fB\-\-config\fR or \fBCLAVIGER_CONFIG\fR names
.SH DESCRIPTION
A TOML file. Unknown options are errors; \fBclaviger config check\fR names each with its line and what to
write instead. A \fBkey\fR is a name; it has \fBversions\fR, each one RSA key pair; each version has
\fBreplicas\fR, the places where its private half lives. A \fBcaller\fR is a program that is known by its
certificate or its uid, and has \fBgrants\fR: which operations with which keys.
.PP
What follows is a configuration with every option.
.SH OPTIONS
.nf
"#,
        version = env!("CARGO_PKG_VERSION")
    );
    let mut page = head;
    for line in EXAMPLE.lines() {
        let line = line.replace('\\', r"\e").replace('-', r"\-").replace('\'', r"\(aq");
        // A line that begins with a dot would be a request.
        page += if line.starts_with('.') { r"\&" } else { "" };
        page += &line;
        page.push('\n');
    }
    page += ".fi\n.SH SEE ALSO\n\\fBclaviger\\fR(1)\n";
    page.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_configuration_has_one_in_section_5() {
        let pages = pages();
        let has = |name: &str, section| pages.iter().any(|(n, s, _)| n == name && *s == section);
        for name in ["claviger", "claviger-config-check", "claviger-wrap"] {
            assert!(has(name, 1), "{name}");
        }
        assert!(has("claviger.toml", 5));
        assert!(pages.iter().all(|(name, ..)| !name.ends_with("-help")));
    }
}
