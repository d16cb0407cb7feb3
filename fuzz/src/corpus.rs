//! The files that a target begins with.

use std::path::Path;
use std::{fs, io};

/// The files of `fuzz/corpora/NAME`, in the order of their names.
pub(crate) fn read(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora").join(name);
    files(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

fn files(folder: &Path) -> io::Result<Vec<Vec<u8>>> {
    let entries: io::Result<Vec<_>> = fs::read_dir(folder)?.collect();
    let mut files: Vec<_> = entries?.iter().map(fs::DirEntry::path).collect();
    files.sort_unstable();
    files.iter().map(fs::read).collect()
}
