//! The version of what the state directory holds, so that an older program does not misread a newer one's
//! state.

use std::fs;
use std::io;
use std::path::Path;

use claviger_files::NewMode;

/// What this program writes. A program reads what it writes, and what those before it wrote.
const FORMAT: u32 = 1;
/// The file that says it. A directory without it is of a version before there was one: format 1.
const FILE: &str = "format";

/// Sees that this program knows the format of the directory's content. Writes nothing.
pub(super) fn check(state_dir: &Path) -> io::Result<()> {
    read(state_dir).map(drop)
}

/// As [`check`]; afterwards the directory says which format it has.
pub(super) fn keep(state_dir: &Path) -> io::Result<()> {
    if read(state_dir)? == Some(FORMAT) {
        return Ok(());
    }
    let text = format!("{FORMAT}\n");
    claviger_files::replace(&state_dir.join(FILE), text.as_bytes(), NewMode::Exactly(0o600))
}

fn read(state_dir: &Path) -> io::Result<Option<u32>> {
    let text = match fs::read_to_string(state_dir.join(FILE)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let refused = |text: String| Err(io::Error::other(text));
    match text.trim().parse() {
        Ok(format) if (1..=FORMAT).contains(&format) => Ok(Some(format)),
        Ok(format) if format > FORMAT => refused(format!(
            "has format {format}, which a newer version of claviger wrote, and this one ({}) knows \
             formats up to {FORMAT}; start the newer one, or put back a copy of the directory from \
             before it ran",
            env!("CARGO_PKG_VERSION")
        )),
        _ => refused(format!(
            "has a file {FILE:?} that holds no number; put back a copy of the directory, or remove \
             that file if the version that is installed wrote the rest"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_says_its_format_and_a_newer_one_is_refused_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        check(path).unwrap();
        assert!(!path.join(FILE).exists(), "a look changes nothing");
        keep(path).unwrap();
        assert_eq!(fs::read_to_string(path.join(FILE)).unwrap(), "1\n");
        keep(path).unwrap();
        fs::write(path.join(FILE), "2\n").unwrap();
        let said = keep(path).unwrap_err().to_string();
        assert!(
            said.starts_with("has format 2, which a newer version of claviger wrote"),
            "{said}"
        );
        assert_eq!(fs::read_to_string(path.join(FILE)).unwrap(), "2\n");
        for wrong in ["", "0", "one"] {
            fs::write(path.join(FILE), wrong).unwrap();
            assert!(check(path).unwrap_err().to_string().contains("holds no number"), "{wrong}");
        }
    }
}
