//! Whether a file or a folder could be made at a path, seen without making anything.

use std::io;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

/// Whether this process could make something at `path`, where nothing is.
pub(crate) fn check_creatable(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let refused = |reason: String| {
        io::Error::other(format!("cannot be made: {}: {reason}", parent.display()))
    };
    let metadata = std::fs::metadata(parent).map_err(|error| refused(error.to_string()))?;
    if !metadata.is_dir() {
        return Err(refused("is not a directory".to_owned()));
    }
    if is_made_by_the_kernel(parent) {
        return Err(refused("only the kernel makes files there".to_owned()));
    }
    accessat(CWD, parent, Access::WRITE_OK | Access::EXEC_OK, AtFlags::empty())
        .map_err(|error| refused(error.to_string()))
}

/// `/proc` and `/sys`, which tell root that it may write there.
#[cfg(target_os = "linux")]
fn is_made_by_the_kernel(folder: &Path) -> bool {
    /// `SYSFS_MAGIC` of `linux/magic.h`.
    const SYSFS: rustix::fs::FsWord = 0x6265_6572;
    rustix::fs::statfs(folder)
        .is_ok_and(|system| [rustix::fs::PROC_SUPER_MAGIC, SYSFS].contains(&system.f_type))
}

#[cfg(not(target_os = "linux"))]
fn is_made_by_the_kernel(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_of_ours_takes_new_files_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        check_creatable(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_parent_that_is_missing_or_no_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = check_creatable(&file.join("new")).unwrap_err().to_string();
        assert!(error.ends_with("/file: is not a directory"), "{error}");
        let error = check_creatable(&folder.path().join("no/new")).unwrap_err().to_string();
        assert!(error.ends_with("/no: No such file or directory (os error 2)"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_can_be_made_in_proc_even_by_root() {
        let error = check_creatable("/proc/new".as_ref()).unwrap_err().to_string();
        assert_eq!(error, "cannot be made: /proc: only the kernel makes files there");
    }
}
