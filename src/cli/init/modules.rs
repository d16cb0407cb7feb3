//! PKCS#11 libraries that are on this system: registered with p11-kit, or where vendors put them.

use std::path::{Path, PathBuf};

/// Where p11-kit's registrations are (p11-kit's pkcs11.conf(5)).
const REGISTERED: [&str; 3] =
    ["etc/pkcs11/modules", "usr/share/p11-kit/modules", "usr/local/share/p11-kit/modules"];
/// Where a library is that is registered by its name alone.
const LIBRARIES: [&str; 6] = [
    "usr/lib/x86_64-linux-gnu/pkcs11",
    "usr/lib/aarch64-linux-gnu/pkcs11",
    "usr/lib64/pkcs11",
    "usr/lib/pkcs11",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib64",
];
/// Where vendors' installers put libraries, and distributions SoftHSM.
const KNOWN: [&str; 13] = [
    "opt/cloudhsm/lib/libcloudhsm_pkcs11.so",
    "opt/nfast/toolkits/pkcs11/libcknfast.so",
    "usr/safenet/lunaclient/lib/libCryptoki2_64.so",
    "usr/lib/libcs_pkcs11_R3.so",
    "usr/lib64/libcs_pkcs11_R3.so",
    "usr/lib/x86_64-linux-gnu/pkcs11/yubihsm_pkcs11.so",
    "usr/lib64/pkcs11/yubihsm_pkcs11.so",
    "usr/lib/softhsm/libsofthsm2.so",
    "usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "usr/lib64/pkcs11/libsofthsm2.so",
    "usr/lib64/softhsm/libsofthsm2.so",
    "usr/local/lib/softhsm/libsofthsm2.so",
];
/// Libraries that hold no keys of their own, or are Claviger itself.
const NO_HSM: [&str; 5] =
    ["p11-kit-trust", "p11-kit-client", "p11-kit-proxy", "pkcs11-spy", "libclaviger_pkcs11"];

/// The libraries below `root`, each once: those that are registered, then those in known places.
pub(super) fn found(root: &Path) -> Vec<PathBuf> {
    let registered = REGISTERED.iter().flat_map(|folder| registered_in(root, &root.join(folder)));
    let known = KNOWN.iter().map(|path| root.join(path));
    let mut modules: Vec<PathBuf> = Vec::new();
    for module in registered.chain(known) {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if NO_HSM.iter().any(|other| name.starts_with(other)) {
            continue;
        }
        // One library has several names where a distribution links one to the other.
        let Ok(canonical) = module.canonicalize() else { continue };
        if !modules.iter().any(|other| other.canonicalize().is_ok_and(|it| it == canonical)) {
            modules.push(module);
        }
    }
    modules
}

fn registered_in(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    let module = |file: PathBuf| {
        let text = std::fs::read_to_string(file).ok()?;
        let named = text.lines().find_map(|line| line.strip_prefix("module:"))?.trim();
        match named.strip_prefix('/') {
            Some(path) => Some(root.join(path)),
            None => LIBRARIES.iter().map(|at| root.join(at).join(named)).find(|path| path.exists()),
        }
    };
    files.into_iter().filter_map(module).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn registered_libraries_and_known_ones_are_found_once_and_others_left_out() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("usr/lib/softhsm/libsofthsm2.so", "");
        fs::create_dir_all(root.path().join("usr/lib/x86_64-linux-gnu/softhsm")).unwrap();
        std::os::unix::fs::symlink(
            root.path().join("usr/lib/softhsm/libsofthsm2.so"),
            root.path().join("usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"),
        )
        .unwrap();
        write("usr/lib/x86_64-linux-gnu/pkcs11/opensc-pkcs11.so", "");
        write("usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-trust.so", "");
        write("usr/lib/x86_64-linux-gnu/pkcs11/libclaviger_pkcs11.so", "");
        write("opt/nfast/toolkits/pkcs11/libcknfast.so", "");
        write(
            "usr/share/p11-kit/modules/a.module",
            "# one\nmodule: opensc-pkcs11.so\ncritical: no\n",
        );
        write("usr/share/p11-kit/modules/b.module", "module: p11-kit-trust.so\n");
        write("usr/share/p11-kit/modules/c.module", "module: libclaviger_pkcs11.so\n");
        write("usr/share/p11-kit/modules/d.module", "module: /usr/lib/softhsm/libsofthsm2.so\n");
        write("usr/share/p11-kit/modules/e.module", "module: /usr/lib/gone.so\n");
        let found: Vec<String> = found(root.path())
            .iter()
            .map(|path| path.strip_prefix(root.path()).unwrap().display().to_string())
            .collect();
        assert_eq!(
            found,
            [
                "usr/lib/x86_64-linux-gnu/pkcs11/opensc-pkcs11.so",
                "usr/lib/softhsm/libsofthsm2.so",
                "opt/nfast/toolkits/pkcs11/libcknfast.so",
            ]
        );
    }
}
