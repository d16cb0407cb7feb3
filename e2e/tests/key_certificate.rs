//! `claviger keys certificate`: what it makes is read by OpenSSL and by Java, is over the key's own
//! public key, and holds no private one.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use e2e::daemon::claviger;
use e2e::process::{command, run};
use e2e::setup::client_file;
use e2e::{Backend, Daemon, DaemonFiles, RsaKey};

/// A daemon with a key that wraps and one that signs too, on SoftHSM, and who may use both.
struct Setup {
    files: DaemonFiles,
    _backend: Backend,
    _daemon: Daemon,
    user_keys: RsaKey,
    signing: RsaKey,
    client: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let backend = Backend::softhsm();
        let mut files = DaemonFiles::new();
        backend.configure(&mut files);
        let (user_keys, signing) = (RsaKey::generate(2048), RsaKey::generate(3072));
        let version = backend.version(&files, 1, &user_keys, 1);
        files.key("user-keys", &["RSA-OAEP"], vec![version]);
        let version = backend
            .version(&files, 4, &signing, 2)
            .with("sign_algorithms", vec![toml::Value::from("RS256")]);
        files.key("signing", &["RSA-OAEP"], vec![version]);
        let caller = files.caller("admin", &["user-keys", "signing"], &["read", "sign"]);
        let daemon = Daemon::start(&mut files);
        let client = client_file(&files, &daemon, &caller);
        Self { files, _backend: backend, _daemon: daemon, user_keys, signing, client }
    }

    /// `claviger keys certificate`, in the daemon's folder.
    fn certificate(&self, arguments: &[&str]) -> Output {
        command(claviger())
            .args(["keys", "certificate"])
            .args(arguments)
            .arg("--client")
            .arg(&self.client)
            .current_dir(self.files.path("."))
            .output()
            .unwrap()
    }

    /// `claviger keys certificate` into a file of the daemon's folder.
    fn made(&self, name: &str, arguments: &[&str]) -> PathBuf {
        let output = self.certificate(arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = self.files.path(name);
        fs::write(&path, output.stdout).unwrap();
        path
    }
}

/// What OpenSSL prints; its versions do not agree on the blanks around "=".
fn openssl(arguments: &[&str], file: &Path) -> String {
    let output = run(command("openssl").args(arguments).arg("-in").arg(file));
    String::from_utf8(output.stdout).unwrap().replace(" = ", "=")
}

/// SubjectPublicKeyInfo of a certificate, by OpenSSL.
fn public_key(certificate: &Path, form: &str) -> Vec<u8> {
    let pem = openssl(&["x509", "-noout", "-pubkey", "-inform", form], certificate);
    let file = certificate.with_extension("pub");
    fs::write(&file, pem).unwrap();
    run(command("openssl").args(["pkey", "-pubin", "-outform", "DER", "-in"]).arg(file)).stdout
}

#[test]
fn openssl_reads_the_certificate_and_finds_the_keys_own_public_key() {
    let setup = Setup::new();
    let pem = setup.made("user-keys.crt", &["user-keys"]);
    assert_eq!(public_key(&pem, "PEM"), setup.user_keys.public_key().spki());
    let text = openssl(&["x509", "-noout", "-text"], &pem);
    assert!(text.contains("Subject: CN=user-keys"), "{text}");
    assert!(text.contains("Issuer: CN=Claviger throw-away issuer"), "{text}");
    assert!(text.contains("Key Encipherment, Data Encipherment"), "{text}");
    assert!(!text.contains("CA:TRUE"), "{text}");
    openssl(&["x509", "-noout", "-checkend", "314000000"], &pem);

    let der = setup.made("named.der", &["user-keys", "--der", "--name", "Ours", "--days", "2"]);
    assert_eq!(public_key(&der, "DER"), setup.user_keys.public_key().spki());
    let text = openssl(&["x509", "-noout", "-subject", "-inform", "DER"], &der);
    assert!(text.contains("CN=Ours"), "{text}");
    let json = setup.certificate(&["signing", "--json"]).stdout;
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(json["public_key_sha256"], setup.signing.public_key_sha256());
    assert_eq!((&json["key"], &json["version"]), (&"signing".into(), &4.into()));
    assert!(json["pem"].as_str().unwrap().starts_with("-----BEGIN CERTIFICATE-----\n"));
}

#[test]
fn openssl_and_java_read_the_pkcs12_and_find_a_certificate_and_no_key() {
    let setup = Setup::new();
    let password = setup.files.path("password");
    fs::write(&password, "public\n").unwrap();
    fs::set_permissions(&password, Permissions::from_mode(0o600)).unwrap();
    let name = password.to_str().unwrap();
    let pfx = setup.made("key.pfx", &["user-keys", "--pkcs12", "--password-file", name]);
    let empty = setup.made("empty.pfx", &["user-keys", "--pkcs12"]);
    for (file, password) in [(&pfx, "pass:public"), (&empty, "pass:")] {
        let certificate = openssl(&["pkcs12", "-nokeys", "-passin", password], file);
        let pem = file.with_extension("crt");
        fs::write(&pem, certificate).unwrap();
        assert_eq!(public_key(&pem, "PEM"), setup.user_keys.public_key().spki());
        let all = openssl(&["pkcs12", "-nodes", "-passin", password], file);
        assert!(!all.contains("PRIVATE KEY"), "{all}");
    }
    let wrong = command("openssl")
        .args(["pkcs12", "-nokeys", "-passin", "pass:wrong", "-in"])
        .arg(&pfx)
        .output()
        .unwrap();
    assert!(!wrong.status.success(), "the password is the file's");

    let keytool = |arguments: &[&str]| {
        let output = run(command("keytool")
            .args(arguments)
            .args(["-storetype", "PKCS12", "-storepass", "public", "-keystore"])
            .arg(&pfx));
        String::from_utf8(output.stdout).unwrap()
    };
    let listed = keytool(&["-list"]);
    assert!(listed.contains("contains 1 entry"), "{listed}");
    assert!(listed.contains("user-keys") && listed.contains("trustedCertEntry"), "{listed}");
    let exported = setup.files.path("java.crt");
    fs::write(&exported, keytool(&["-exportcert", "-rfc", "-alias", "user-keys"])).unwrap();
    assert_eq!(public_key(&exported, "PEM"), setup.user_keys.public_key().spki());
}

#[test]
fn a_given_ca_signs_so_that_openssl_verifies_the_chain() {
    let setup = Setup::new();
    let ca = setup.files.path("ca");
    let claviger = || command(claviger());
    run(claviger().args(["pki", "init"]).arg(&ca));
    let folder = ca.to_str().unwrap();
    let made = setup.made("by-ca.crt", &["user-keys", "--issuer", folder, "--days", "30"]);
    run(command("openssl").args(["verify", "-CAfile"]).arg(ca.join("ca.crt")).arg(&made));
    assert_eq!(public_key(&made, "PEM"), setup.user_keys.public_key().spki());
    // It is on the CA's books.
    let revoked = run(claviger().args(["pki", "revoke", folder, "--certificate"]).arg(&made));
    assert!(String::from_utf8(revoked.stdout).unwrap().starts_with("revoked"));
}

#[test]
fn a_ca_that_openssl_made_signs_so_that_openssl_verifies_and_keeps_no_books() {
    let setup = Setup::new();
    let ca = setup.files.path("ossl");
    fs::create_dir(&ca).unwrap();
    let openssl = |arguments: &str| {
        run(command("openssl").args(arguments.split(' ')).current_dir(&ca));
    };
    // As a CA is made by hand: the key with its curve's parameters before it, and an RSA one.
    openssl("ecparam -name secp384r1 -genkey -out ec.key");
    openssl("req -x509 -new -key ec.key -out ec.crt -days 9 -subj /C=DE/O=Example/CN=EC");
    openssl("genrsa -out rsa.key 3072");
    openssl("req -x509 -new -key rsa.key -out rsa.crt -days 9 -subj /CN=RSA");
    openssl("req -x509 -new -key rsa.key -out dc.crt -days 9 -subj /DC=org/DC=example/CN=RSA");
    openssl(
        "req -x509 -new -key rsa.key -out leaf.crt -days 9 -subj /CN=leaf -addext basicConstraints=critical,CA:FALSE",
    );
    openssl(
        "req -x509 -new -key rsa.key -out no-sign.crt -days 9 -subj /CN=no -addext keyUsage=cRLSign",
    );
    openssl("pkcs8 -topk8 -in rsa.key -out locked.key -passout pass:secret");
    let permit = |name: &str, mode: u32| {
        fs::set_permissions(ca.join(name), Permissions::from_mode(mode)).unwrap();
    };
    for name in ["ec.key", "rsa.key", "locked.key"] {
        permit(name, 0o600);
    }
    let arguments = |certificate: &str, key: &str| {
        let path = |name: &str| ca.join(name).display().to_string();
        [path(certificate), path(key)]
    };
    for name in ["ec", "rsa"] {
        let [certificate, key] = arguments(&format!("{name}.crt"), &format!("{name}.key"));
        let options = ["user-keys", "--ca-certificate", &certificate, "--ca-key", &key];
        let made = setup.made(&format!("by-{name}.crt"), &options);
        run(command("openssl").args(["verify", "-CAfile", &certificate]).arg(&made));
        assert_eq!(public_key(&made, "PEM"), setup.user_keys.public_key().spki());
    }
    let books: Vec<_> = fs::read_dir(&ca).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert!(!books.iter().any(|name| name == "lock" || name == "issued.json"), "{books:?}");

    permit("ec.key", 0o644);
    for (certificate, key, code, said) in [
        ("rsa.crt", "ec.key", 78, "lets others at it; chmod 600 it"),
        ("ec.crt", "rsa.key", 78, "rsa.key cannot be used: it is not the key of "),
        ("leaf.crt", "rsa.key", 78, "it is no CA: its basicConstraints do not say CA:TRUE"),
        ("no-sign.crt", "rsa.key", 78, "its keyUsage does not have keyCertSign"),
        ("rsa.crt", "locked.key", 78, "its private key is encrypted"),
        ("rsa.key", "rsa.key", 78, "it holds no certificate in PEM; it holds"),
        ("dc.crt", "rsa.key", 2, "the CA's name cannot be repeated: it has a part twice"),
        ("none.crt", "rsa.key", 1, "none.crt: No such file"),
    ] {
        let [certificate, key] = arguments(certificate, key);
        let options = ["user-keys", "--ca-certificate", &certificate, "--ca-key", &key];
        let refused = setup.certificate(&options);
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(said), "{text}");
        assert_eq!(refused.status.code(), Some(code), "{text}");
        assert!(refused.stdout.is_empty());
    }
}

#[test]
fn a_key_that_may_sign_signs_its_own_certificate_and_request_and_another_is_told_why_not() {
    let setup = Setup::new();
    let made = setup.made("self.crt", &["signing", "--self-signed"]);
    run(command("openssl").args(["verify", "-check_ss_sig", "-CAfile"]).arg(&made).arg(&made));
    assert_eq!(public_key(&made, "PEM"), setup.signing.public_key().spki());
    let request = setup.made("signing.csr", &["signing", "--request", "--name", "signing.example"]);
    let text = openssl(&["req", "-verify", "-noout", "-subject"], &request);
    assert!(text.contains("signing.example"), "{text}");

    for arguments in [["user-keys", "--self-signed"], ["user-keys", "--request"]] {
        let refused = setup.certificate(&arguments);
        assert_eq!(refused.status.code(), Some(2));
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains("version 1 of user-keys may not sign with RS256"), "{said}");
    }
    let denied = setup.certificate(&["no-such-key"]);
    assert_eq!(denied.status.code(), Some(77), "{}", String::from_utf8_lossy(&denied.stderr));
}
