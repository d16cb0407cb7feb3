//! Programs of other projects load the module: each decrypts what OpenSSL encrypted to the
//! public key, and OpenSSL verifies what they sign. `docs/pkcs11-module.md` has the table.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::module::{Module, library};
use e2e::process::{command, repository, run};
use e2e::setup::{KEY, MATERIAL, Setup};
use e2e::{Daemon, DaemonFiles, RsaKey, Version, python};
use toml::{Table, Value};

/// The key for PKCS#1 v1.5, which may not sign; [`KEY`] unwraps OAEP and signs.
const OLD: &str = "old-keys";
const OAEP: [&str; 2] = ["-pkeyopt", "rsa_padding_mode:oaep"];
const OAEP_256: [&str; 6] = [
    "-pkeyopt",
    "rsa_padding_mode:oaep",
    "-pkeyopt",
    "rsa_oaep_md:sha256",
    "-pkeyopt",
    "rsa_mgf1_md:sha256",
];
const PSS: [&str; 4] = ["-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:32"];

/// A daemon with both keys, the module configured for it, and a folder with what OpenSSL made of
/// them: `material`, encrypted as `oaep-sha1` and `oaep-sha256` for [`KEY`] and as `pkcs1` for
/// [`OLD`]; public keys, and certificates of a CA.
struct ModuleSetup {
    module: Module,
    folder: PathBuf,
    _daemon: Daemon,
    _base: Setup,
}

impl ModuleSetup {
    fn new() -> Self {
        let mut base = base();
        let folder = base.files.path("foreign");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("material"), MATERIAL).unwrap();
        let keys = base.files.path("keys");
        let openssl = |arguments: &[&str]| {
            run(command("openssl").args(arguments).current_dir(&folder));
        };
        openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.crt",
            "-subj", "/CN=CA", "-days", "2",
        ]);
        fs::write(
            folder.join("extensions"),
            "keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=emailProtection\n\
             subjectAltName=email:key-connector@example.org\n",
        )
        .unwrap();
        for name in [KEY, OLD] {
            let (private, public, certificate) =
                (keys.join(format!("{name}.pem")), format!("{name}.pub"), format!("{name}.crt"));
            let private = private.to_str().unwrap();
            openssl(&["pkey", "-in", private, "-pubout", "-out", &public]);
            openssl(&[
                "x509",
                "-new",
                "-force_pubkey",
                &public,
                "-subj",
                &format!("/CN={name}"),
                "-CA",
                "ca.crt",
                "-CAkey",
                "ca.key",
                "-days",
                "2",
                "-extfile",
                "extensions",
                "-out",
                &certificate,
            ]);
        }
        let encrypt = |key: &str, out: &str, options: &[&str]| {
            let key = format!("{key}.pub");
            let encrypt = ["pkeyutl", "-encrypt", "-pubin", "-inkey", &key, "-in", "material"];
            openssl(&[&encrypt[..], &["-out", out], options].concat());
        };
        encrypt(KEY, "oaep-sha1", &OAEP);
        encrypt(KEY, "oaep-sha256", &OAEP_256);
        encrypt(OLD, "pkcs1", &[]);

        let daemon = base.start();
        let mut module = Module::new(&base, &[&daemon]);
        let shown = |name: &str, id: &str| {
            let certificate = folder.join(format!("{name}.crt"));
            Value::from(Table::from_iter([
                ("name".into(), name.into()),
                ("id".into(), id.into()),
                ("certificate".into(), certificate.to_str().unwrap().into()),
            ]))
        };
        module.token().insert("keys".into(), vec![shown(KEY, "01"), shown(OLD, "02")].into());
        module.write();
        Self { module, folder, _daemon: daemon, _base: base }
    }

    /// A program that finds the module's configuration and starts in the folder.
    fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.module.program(program);
        command.current_dir(&self.folder);
        command
    }

    /// Runs a program to its end; gives what it printed. A failure is a panic with the module's log.
    fn say(&self, command: &mut Command) -> String {
        let output = command.output().unwrap_or_else(|error| {
            panic!("{command:?} did not start: {error}; scripts/setup installs what is missing")
        });
        let text = [&output.stdout[..], &output.stderr[..]].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "{command:?}\n{text}\n{}", self.module.log());
        text
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn is_material(&self, name: &str) {
        assert_eq!(fs::read(self.path(name)).unwrap(), MATERIAL, "{name}");
    }

    /// OpenSSL verifies a signature of `material` under [`KEY`].
    fn verifies(&self, signature: &str, options: &[&str]) {
        let key = format!("{KEY}.pub");
        let text = self.say(
            command("openssl")
                .current_dir(&self.folder)
                .args(["dgst", "-sha256", "-verify", &key, "-signature", signature])
                .args(options)
                .arg("material"),
        );
        assert!(text.contains("Verified OK"), "{signature}: {text}");
    }

    /// Both signatures that a program has left, by its name.
    fn both_verify(&self, program: &str) {
        self.verifies(&format!("{program}.rs256"), &[]);
        self.verifies(&format!("{program}.ps256"), &PSS);
    }
}

fn base() -> Setup {
    let mut files = DaemonFiles::new();
    let folder = files.path("keys");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    let mut provider = Table::new();
    provider.insert("type".into(), "software".into());
    provider.insert("directory".into(), folder.to_str().unwrap().into());
    files.provider("files", provider);
    let (key, old) = (RsaKey::shared(2048), RsaKey::generate(2048));
    for (name, key, algorithms) in
        [(KEY, &key, &["RSA-OAEP", "RSA-OAEP-256"][..]), (OLD, &old, &["RSA1_5"][..])]
    {
        let file = format!("{name}.pem");
        key.write_pem(&folder.join(&file));
        files.key(name, algorithms, vec![Version::active(1, key, "files", &file)]);
    }
    files.set("keys.user-keys.sign_algorithms", vec!["RS256", "PS256"]);
    let operations = ["wrap", "unwrap", "sign", "verify", "read"];
    let caller = files.caller("key-connector", &[KEY, OLD], &operations);
    Setup { files, key, caller, wrapped: Vec::new() }
}

fn foreign(name: &str) -> PathBuf {
    repository().join("e2e/foreign").join(name)
}

/// OpenSC. `--test` signs raw bytes with CKM_RSA_PKCS, which no key here does, and asks for random
/// numbers; everything else of it passes.
#[test]
fn pkcs11_tool() {
    let setup = ModuleSetup::new();
    let tool = |arguments: &[&str]| {
        setup.say(setup.program("pkcs11-tool").arg("--module").arg(library()).args(arguments))
    };
    let objects = tool(&["--list-objects"]);
    for (object, count) in
        [("Private Key Object; RSA", 2), ("Public Key Object", 2), ("Certificate Object", 2)]
    {
        assert_eq!(objects.matches(object).count(), count, "{objects}");
    }
    assert!(
        tool(&["--list-mechanisms"]).contains("SHA256-RSA-PKCS-PSS, keySize={2048,2048}, sign")
    );
    for (id, mechanism, options, value) in [
        (
            "01",
            "RSA-PKCS-OAEP",
            &["--hash-algorithm", "SHA-1", "--mgf", "MGF1-SHA1"][..],
            "oaep-sha1",
        ),
        (
            "01",
            "RSA-PKCS-OAEP",
            &["--hash-algorithm", "SHA256", "--mgf", "MGF1-SHA256"],
            "oaep-sha256",
        ),
        ("02", "RSA-PKCS", &[], "pkcs1"),
    ] {
        let decrypt = ["--decrypt", "--id", id, "--mechanism", mechanism, "-i", value, "-o", "out"];
        tool(&[&decrypt[..], options].concat());
        setup.is_material("out");
        fs::remove_file(setup.path("out")).unwrap();
    }
    let sign = ["--sign", "--label", KEY, "-i", "material", "--mechanism"];
    tool(&[&sign[..], &["SHA256-RSA-PKCS", "-o", "opensc.rs256"]].concat());
    tool(&[&sign[..], &["SHA256-RSA-PKCS-PSS", "-o", "opensc.ps256"]].concat());
    setup.both_verify("opensc");
    tool(&["--read-object", "--type", "cert", "--id", "01", "-o", "read.der"]);
    let certificate = fs::read_to_string(setup.path("user-keys.crt")).unwrap();
    let read = run(command("openssl")
        .args(["x509", "-inform", "der", "-in", "read.der"])
        .current_dir(&setup.folder));
    assert_eq!(String::from_utf8(read.stdout).unwrap(), certificate);

    let text = tool(&["--login", "--pin", "any PIN", "--test"]);
    assert!(text.contains("RSA-PKCS:   ERR: C_Sign() returned CKR_DATA_INVALID"), "{text}");
    assert!(text.contains("\n1 errors"), "{text}");
    assert!(text.contains("all 4 digest functions seem to work"), "{text}");
    let passed = text.matches("OK\n").count();
    assert_eq!(passed, 4, "a digest, OAEP twice and PKCS#1 v1.5:\n{text}");
}

/// GnuTLS. Its command line cannot decrypt.
#[test]
fn p11tool() {
    let setup = ModuleSetup::new();
    let tool = |arguments: &[&str]| {
        let provider = format!("--provider={}", library().display());
        setup.say(setup.program("p11tool").arg(provider).args(arguments))
    };
    let list = tool(&["--list-all"]);
    for kind in ["private", "public", "cert"] {
        assert!(list.contains(&format!("object={KEY};type={kind}")), "{list}");
        assert!(list.contains(&format!("object={OLD};type={kind}")), "{list}");
    }
    let public = tool(&["--export", &format!("pkcs11:token=claviger;object={KEY};type=public")]);
    assert!(public.contains(&fs::read_to_string(setup.path("user-keys.pub")).unwrap()), "{public}");
    let private = format!("pkcs11:token=claviger;object={KEY};type=private");
    for parameters in [&[][..], &["--sign-params=RSA-PSS"]] {
        let text = tool(&[parameters, &["--test-sign", &private]].concat());
        assert_eq!(text.matches("... ok").count(), 3, "{text}");
    }
}

/// OpenSSL with libp11's engine.
#[test]
fn openssl_engine() {
    let setup = ModuleSetup::new();
    let openssl = |arguments: &[&str], options: &[&str]| {
        let mut command = setup.program("openssl");
        command.env("PKCS11_MODULE_PATH", library());
        command.args(arguments).args(["-engine", "pkcs11", "-keyform", "engine"]);
        setup.say(command.args(options))
    };
    for (key, value, options) in
        [(KEY, "oaep-sha1", &OAEP[..]), (KEY, "oaep-sha256", &OAEP_256), (OLD, "pkcs1", &[])]
    {
        let key = format!("pkcs11:token=claviger;object={key};type=private");
        let decrypt = ["pkeyutl", "-decrypt", "-inkey", &key, "-in", value, "-out", "out"];
        openssl(&decrypt, options);
        setup.is_material("out");
        fs::remove_file(setup.path("out")).unwrap();
    }
    let key = format!("pkcs11:token=claviger;object={KEY};type=private");
    let sign = ["dgst", "-sha256", "-sign", &key, "-out"];
    openssl(&[&sign[..], &["engine.rs256"]].concat(), &["material"]);
    openssl(&[&sign[..], &["engine.ps256"]].concat(), &[&PSS[..], &["material"]].concat());
    setup.both_verify("engine");
    let subject = ["req", "-new", "-x509", "-key", &key, "-subj", "/CN=signed by the daemon"];
    openssl(&[&subject[..], &["-out", "self.crt"]].concat(), &[]);
    let verify = ["verify", "-CAfile", "self.crt", "self.crt"];
    assert!(setup.say(setup.program("openssl").args(verify)).contains("OK"));
}

/// Java 17. Its SunPKCS11 knows no OAEP, whatever the token does.
#[test]
fn java() {
    let setup = ModuleSetup::new();
    let mut java = setup.program("java");
    java.arg(foreign("ForeignJava.java")).arg(library()).arg(&setup.folder);
    let text = setup.say(&mut java);
    assert!(text.contains("OAEP: SunPKCS11 has none"), "{text}");
    assert!(text.ends_with("done\n"), "{text}");
    setup.both_verify("java");
}

#[test]
fn pykcs11() {
    python_program("foreign_pykcs11.py", "pykcs11");
}

#[test]
fn python_pkcs11() {
    python_program("foreign_python_pkcs11.py", "python-pkcs11");
}

fn python_program(file: &str, program: &str) {
    let setup = ModuleSetup::new();
    let mut python = setup.program(python::interpreter());
    python.arg(foreign(file)).arg(library()).arg(&setup.folder);
    assert!(setup.say(&mut python).ends_with("done\n"));
    setup.both_verify(program);
}

/// NSS lists the module, its certificates and keys, signs and decrypts CMS messages with them.
#[test]
fn nss() {
    let setup = ModuleSetup::new();
    fs::create_dir(setup.path("nss")).unwrap();
    let nss = |program: &str, arguments: &[&str]| {
        setup.say(setup.program(program).args(["-d", "sql:nss"]).args(arguments))
    };
    nss("certutil", &["-N", "--empty-password"]);
    nss("certutil", &["-A", "-n", "ca", "-t", "CT,C,C", "-i", "ca.crt"]);
    let modutil = |arguments: &[&str]| {
        setup.say(setup.program("modutil").args(["-dbdir", "sql:nss", "-force"]).args(arguments))
    };
    modutil(&["-add", "claviger", "-libfile", path_text(&library())]);
    let modules = modutil(&["-list"]);
    assert!(modules.contains("pkcs11:token=claviger;manufacturer=Claviger"), "{modules}");
    let certificates = nss("certutil", &["-L", "-h", "all"]);
    let keys = nss("certutil", &["-K", "-h", "claviger"]);
    for name in [KEY, OLD] {
        let line = certificates.lines().find(|line| line.contains(&format!("claviger:{name}")));
        assert!(line.is_some_and(|line| line.contains("u,u,u")), "{certificates}");
        assert!(keys.contains(name), "{keys}");
    }

    let signer = format!("claviger:{KEY}");
    let sign = ["-S", "-N", &signer, "-H", "SHA256", "-i", "material", "-o", "signed.der"];
    nss("cmsutil", &sign);
    let openssl = |arguments: &[&str]| setup.say(setup.program("openssl").args(arguments));
    let verify = ["cms", "-verify", "-binary", "-inform", "der", "-in", "signed.der"];
    openssl(&[&verify[..], &["-CAfile", "ca.crt", "-out", "verified"]].concat());
    setup.is_material("verified");
    let encrypt = ["cms", "-encrypt", "-binary", "-outform", "der", "-in", "material"];
    openssl(&[&encrypt[..], &["-out", "sealed.der", "old-keys.crt"]].concat());
    nss("cmsutil", &["-D", "-i", "sealed.der", "-o", "opened"]);
    setup.is_material("opened");
}

fn path_text(path: &Path) -> &str {
    path.to_str().expect("the build's folder is UTF-8")
}
