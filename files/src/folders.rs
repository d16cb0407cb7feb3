//! The folders on the way to a trusted file: who can write one of them can put another file in its
//! place (the rule of sshd's `StrictModes`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::FileError;

/// Symbolic links that are followed at most on one way; the kernel's limit.
const MAX_LINKS: usize = 40;

const STICKY: u32 = 0o1000;

/// Checks every folder from `/` to the file, along symbolic links too: owned by root or by the user
/// of this process, and not writable by others. A sticky folder, such as `/tmp` or the root of a
/// Kubernetes volume, may be writable by all, since only an owner replaces what is in it: folders and
/// links in it must be owned by root or us as everywhere, and so must the file itself. A folder may
/// be writable by a group that we are alone in. A last part that does not exist is no error.
pub fn check_folders(path: &Path) -> Result<(), FileError> {
    let io = |source| FileError::Io { path: path.to_owned(), source };
    let refused = |reason: String| FileError::refused(path, reason);
    let absolute = std::path::absolute(path).map_err(io)?;
    let mut rest = parts(&absolute);
    let (mut folder, mut links) = (PathBuf::from("/"), 0);
    loop {
        check_folder(&folder).map_err(refused)?;
        let Some(part) = rest.pop_front() else { return Ok(()) };
        if part == ".." {
            folder.pop();
            continue;
        }
        let next = folder.join(&part);
        // Opening it fails too then, and says why.
        let Ok(found) = std::fs::symlink_metadata(&next) else { return Ok(()) };
        if found.is_symlink() {
            owned(&next, &found).map_err(refused)?;
            links += 1;
            if links > MAX_LINKS {
                return Err(refused("too many symbolic links".to_owned()));
            }
            let target = std::fs::read_link(&next).map_err(io)?;
            if target.is_absolute() {
                folder = PathBuf::from("/");
            }
            let mut ahead = parts(&target);
            ahead.append(&mut rest);
            rest = ahead;
        } else if found.is_dir() {
            folder = next;
        } else {
            return Ok(());
        }
    }
}

/// Checks one folder by the rule of [`check_folders`].
///
/// # Errors
///
/// What is wrong with it and what to do.
pub fn check_folder(folder: &Path) -> Result<(), String> {
    let shown = folder.display();
    let found = std::fs::metadata(folder)
        .map_err(|error| format!("the folder {shown} cannot be looked at: {error}"))?;
    owned(folder, &found)?;
    let mode = found.mode() & 0o7777;
    let group_only = mode & 0o022 == 0o020 && is_private_group(&found);
    if mode & 0o022 != 0 && mode & STICKY == 0 && !group_only {
        return Err(format!(
            "the folder {shown} has mode {mode:o}, which lets others put another file in its \
             place; chmod go-w {shown}"
        ));
    }
    Ok(())
}

fn owned(path: &Path, found: &Metadata) -> Result<(), String> {
    let own_uid = rustix::process::geteuid().as_raw();
    if found.uid() == 0 || found.uid() == own_uid {
        return Ok(());
    }
    let what = if found.is_symlink() { "symbolic link" } else { "folder" };
    Err(format!(
        "the {what} {} is owned by uid {}, who can put another file in its place; chown it to root \
         or to uid {own_uid}",
        path.display(),
        found.uid()
    ))
}

/// Whether the group of a folder, which is root's or our own, has no other member than us: `umask 002`
/// makes such folders where each user has a group of their own, and Kubernetes' `fsGroup` makes the
/// root of a volume so. Told from `/etc/passwd` and `/etc/group`; a group that
/// is not in them is not private.
fn is_private_group(folder: &Metadata) -> bool {
    let own_uid = rustix::process::geteuid().as_raw();
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    only_member(&read("/etc/passwd"), &read("/etc/group"), own_uid, folder.gid())
}

/// Whether `uid` is the only user of the group (passwd(5), group(5)).
fn only_member(passwd: &str, group: &str, uid: u32, gid: u32) -> bool {
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let rows = |text: &'_ str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
    };
    let users = rows(passwd);
    let ours = |name: &str| users.iter().any(|user| user[0] == name && user.get(2) == Some(&uid));
    let primary = users.iter().filter(|user| user.get(3) == Some(&gid));
    let groups = rows(group);
    let mut found = groups.iter().filter(|group| group.get(2) == Some(&gid)).peekable();
    found.peek().is_some()
        && primary.clone().all(|user| user.get(2) == Some(&uid))
        && found.all(|group| {
            let members = group.get(3).map_or("", String::as_str);
            members.split(',').all(|name| name.is_empty() || ours(name))
        })
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(part) => Some(part.to_owned()),
            Component::ParentDir => Some("..".into()),
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode(path: &Path, mode: u32) {
        set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_folder_on_the_way_that_others_can_write_is_named() {
        let root = tempfile::tempdir().unwrap();
        let (above, below) = (root.path().join("above"), root.path().join("above/below"));
        create_dir(&above).unwrap();
        create_dir(&below).unwrap();
        let file = below.join("ca.pem");
        write(&file, "").unwrap();
        check_folders(&file).unwrap();
        for folder in [&above, &below] {
            for open in [0o757, 0o777] {
                mode(folder, open);
                let said = check_folders(&file).unwrap_err().to_string();
                let advice = format!("chmod go-w {}", folder.display());
                assert!(said.ends_with(&advice), "{said}");
            }
            mode(folder, 0o1777);
            check_folders(&file).unwrap();
            mode(folder, 0o755);
        }
    }

    #[test]
    fn the_way_of_a_link_is_checked_too() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        create_dir(at("open")).unwrap();
        create_dir(at("closed")).unwrap();
        write(at("open/ca.pem"), "").unwrap();
        mode(&at("open"), 0o777);
        for target in [at("open/ca.pem"), "../open/ca.pem".into()] {
            let link = at("closed/ca.pem");
            let _ = std::fs::remove_file(&link);
            symlink(target, &link).unwrap();
            let said = check_folders(&link).unwrap_err().to_string();
            assert!(
                said.contains("closed/ca.pem") && said.contains("/open has mode 777"),
                "{said}"
            );
        }
        symlink(at("loop"), at("loop")).unwrap();
        let said = check_folders(&at("loop")).unwrap_err().to_string();
        assert!(said.ends_with("too many symbolic links"), "{said}");
    }

    #[test]
    fn what_does_not_exist_yet_is_judged_by_the_folders_that_do() {
        let root = tempfile::tempdir().unwrap();
        check_folders(&root.path().join("missing/ca.pem")).unwrap();
        mode(root.path(), 0o777);
        check_folders(&root.path().join("missing/ca.pem")).unwrap_err();
    }

    #[test]
    fn a_group_is_private_when_both_files_name_no_other_user_of_it() {
        let passwd = "root:x:0:0::/:/bin/sh\nann:x:1000:1000::/:\nbob:x:1001:1001::/:\n";
        for (group, expected) in [
            ("ann:x:1000:\n", true),
            ("ann:x:1000:ann\n", true),
            ("ann:x:1000:ann,bob\n", false),
            ("ann:x:1000:stranger\n", false),
            ("other:x:1001:\n", false),
            ("", false),
        ] {
            assert_eq!(only_member(passwd, group, 1000, 1000), expected, "{group:?}");
        }
        let shared = format!("{passwd}eve:x:1002:1000::/:\n");
        assert!(!only_member(&shared, "ann:x:1000:\n", 1000, 1000));
    }

    #[test]
    #[ignore = "needs root, to give a folder away"]
    fn a_folder_of_another_user_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(root.path(), Some(12345), None).unwrap();
        let said = check_folders(&root.path().join("file")).unwrap_err().to_string();
        assert!(said.contains("is owned by uid 12345"), "{said}");
        assert!(said.ends_with("chown it to root or to uid 0"), "{said}");
    }
}
