//! Whether a file was replaced or changed since it was last looked at.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `stat` says of a file, links followed: it changes when the file is written, renamed over,
/// or when a link on the way (as Kubernetes makes them) is pointed elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileStamp(Option<[i64; 7]>);

impl FileStamp {
    /// The stamp of a file as it is now; a file that cannot be looked at has one too.
    pub(crate) fn of(path: &Path) -> Self {
        Self(std::fs::metadata(path).ok().map(|file| {
            [
                file.dev().cast_signed(),
                file.ino().cast_signed(),
                file.size().cast_signed(),
                file.mtime(),
                file.mtime_nsec(),
                file.ctime(),
                file.ctime_nsec(),
            ]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_that_is_pointed_elsewhere_is_a_change() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("a"), "same").unwrap();
        std::fs::write(at("b"), "same").unwrap();
        symlink(at("a"), at("link")).unwrap();
        let before = FileStamp::of(&at("link"));
        assert_eq!(before, FileStamp::of(&at("link")));
        symlink(at("b"), at("new")).unwrap();
        std::fs::rename(at("new"), at("link")).unwrap();
        assert_ne!(before, FileStamp::of(&at("link")));
        std::fs::remove_file(at("link")).unwrap();
        assert_ne!(before, FileStamp::of(&at("link")));
    }
}
