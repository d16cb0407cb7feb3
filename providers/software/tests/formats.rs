//! Key files as the `openssl` command line writes them: each form opens, and what cannot be opened
//! says why.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, ErrorKind, KeyMaterial, OpenKey, Parameters, Provider as _,
    ReadSecret, Secret, SecretSource, SecretStore, VaultField, WrappingKey,
};
use claviger_software::{Config, Provider};
use tempfile::TempDir;
use zeroize::Zeroizing;

/// One RSA-2048 key, its certificate, and whatever a test makes of them.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        folder.write("passphrase", b"correct horse\n");
        folder.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem");
        folder.openssl("req -x509 -new -key key.pem -subj /CN=test -days 2 -out certificate.pem");
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs openssl in the folder; arguments have no spaces.
    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.path())
            .output()
            .expect("this test needs the openssl command line");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "openssl {arguments}: {stderr}");
        for entry in fs::read_dir(self.path()).unwrap() {
            let private = fs::Permissions::from_mode(0o600);
            fs::set_permissions(entry.unwrap().path(), private).unwrap();
        }
    }

    fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path().join(name), content).unwrap();
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(self.path().join(name), private).unwrap();
    }

    fn append(&self, from: &[&str], to: &str) {
        let parts = from.iter().map(|name| fs::read(self.path().join(name)).unwrap());
        self.write(to, &parts.collect::<Vec<_>>().concat());
    }

    async fn open_with(
        &self,
        file: &str,
        passphrase: Option<&str>,
    ) -> Result<Arc<dyn WrappingKey>, Error> {
        let passphrase = passphrase.map(|name| SecretSource::File(self.path().join(name)));
        let config =
            Config { directory: Some(self.path().to_owned()), passphrase, files: BTreeMap::new() };
        let open = OpenKey {
            locator: file,
            algorithms: &[Algorithm::RsaOaep, Algorithm::RsaOaep256],
            sign_algorithms: &[],
            public_key_sha256: None,
        };
        Provider::new("files", &config)?.open(&open).await
    }

    /// Opens with or without the passphrase and compares with the key that was made.
    async fn expect_opens(&self, file: &str, passphrase: Option<&str>) {
        let key = self.open_with(file, passphrase).await.unwrap_or_else(|e| panic!("{file}: {e}"));
        let made = self.open_with("key.pem", None).await.unwrap();
        assert_eq!(key.public_key().sha256(), made.public_key().sha256(), "{file}");
        key.check().await.unwrap();
    }

    /// Expects an error for an operator that says `sentence`.
    async fn expect_refused(&self, file: &str, passphrase: Option<&str>, sentence: &str) {
        let error = self.open_with(file, passphrase).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{file}: {error}");
        let text = error.to_string();
        assert!(text.contains(sentence), "{file}: {text:?} lacks {sentence:?}");
        assert!(text.contains(file), "{text:?} does not name the file");
        assert!(!text.contains("correct horse"), "the passphrase is in {text:?}");
    }
}

#[tokio::test]
async fn pkcs8_opens_in_pem_and_der() {
    let folder = Folder::new();
    folder.openssl("pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.der");
    folder.expect_opens("key.pem", None).await;
    folder.expect_opens("key.der", None).await;
    folder.expect_opens("key.der", Some("passphrase")).await;
    let absolute = folder.path().join("key.der");
    folder.expect_opens(absolute.to_str().unwrap(), None).await;
}

/// A store of one value; every field is it.
#[derive(Debug)]
struct Store(Vec<u8>);

impl SecretStore for Store {
    fn read<'a>(&'a self, path: &'a str, field: &'a str) -> ReadSecret<'a> {
        Box::pin(async { self.read_blocking(path, field) })
    }

    fn read_blocking(&self, _path: &str, _field: &str) -> Result<Secret, Error> {
        Ok(Secret::new(Zeroizing::new(self.0.clone())))
    }
}

async fn open_from_store(value: &[u8], passphrase: &[u8]) -> Result<Arc<dyn WrappingKey>, Error> {
    let bound = |field: &str, value: &[u8]| {
        let mut source = VaultField::new("vault-a", "secret/data/kc", field);
        source.bind(Arc::new(Store(value.to_vec())));
        SecretSource::Vault(source)
    };
    let config = Config {
        directory: None,
        passphrase: Some(bound("passphrase", passphrase)),
        files: BTreeMap::from([("kc.pfx".to_owned(), bound("pfx", value))]),
    };
    let open = OpenKey {
        locator: "kc.pfx",
        algorithms: &[Algorithm::RsaOaep, Algorithm::RsaOaep256],
        sign_algorithms: &[],
        public_key_sha256: None,
    };
    Provider::new("files", &config)?.open(&open).await
}

#[tokio::test]
async fn a_key_from_a_store_is_pem_as_it_is_and_every_other_form_in_base64() {
    let folder = Folder::new();
    folder.openssl("pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.der");
    folder.openssl("req -x509 -new -key key.pem -subj /CN=kc -out kc.crt");
    folder.openssl("pkcs12 -export -inkey key.pem -in kc.crt -passout file:passphrase -out kc.pfx");
    folder.openssl("base64 -A -in key.der -out key.b64");
    folder.openssl("base64 -in kc.pfx -out kc.b64");
    let made = folder.open_with("key.pem", None).await.unwrap();
    let read = |name: &str| fs::read(folder.path().join(name)).unwrap();
    for name in ["key.pem", "key.b64", "kc.b64"] {
        let key = open_from_store(&read(name), &read("passphrase")).await;
        let key = key.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(key.public_key().sha256(), made.public_key().sha256(), "{name}");
        key.check().await.unwrap();
    }
    for (value, said) in [
        (read("key.der"), "neither PEM nor base64"),
        (b"marker!".to_vec(), "neither PEM nor base64"),
        (b"bWFya2Vy".to_vec(), "no key in a known form"),
    ] {
        let error = open_from_store(&value, b"").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OperatorNeeded);
        let error = error.to_string();
        let named = "key field \"pfx\" of secret/data/kc in provider vault-a ";
        assert!(error.starts_with(named) && error.contains(said), "{error}");
        assert!(!error.contains("marker") && !error.contains("bWFya2Vy"), "{error}");
    }
}

#[tokio::test]
async fn pkcs1_opens_in_pem_and_der() {
    let folder = Folder::new();
    folder.openssl("rsa -traditional -in key.pem -out pkcs1.pem");
    folder.openssl("rsa -traditional -in key.pem -outform DER -out pkcs1.der");
    let text = fs::read_to_string(folder.path().join("pkcs1.pem")).unwrap();
    assert!(text.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
    folder.expect_opens("pkcs1.pem", None).await;
    folder.expect_opens("pkcs1.der", None).await;
}

#[tokio::test]
async fn a_key_among_certificates_in_one_pem_opens() {
    let folder = Folder::new();
    folder.append(&["certificate.pem", "key.pem", "certificate.pem"], "bundle.pem");
    folder.expect_opens("bundle.pem", None).await;
    // As Windows' editors save it.
    let text = fs::read_to_string(folder.path().join("bundle.pem")).unwrap();
    folder.write("windows.pem", format!("\u{feff}{}", text.replace('\n', "\r\n")).as_bytes());
    folder.expect_opens("windows.pem", None).await;
}

#[tokio::test]
async fn encrypted_pkcs8_opens_with_each_usual_cipher_and_hash() {
    let folder = Folder::new();
    let options = [
        "",
        " -v2 aes-128-cbc",
        " -v2 aes-192-cbc -v2prf hmacWithSHA512",
        " -v2 aes-256-cbc -v2prf hmacWithSHA1",
        " -v2 des3",
        " -scrypt",
        " -outform DER",
    ];
    for option in options {
        let command = "pkcs8 -topk8 -in key.pem -out encrypted -passout file:passphrase";
        folder.openssl(&format!("{command}{option}"));
        folder.expect_opens("encrypted", Some("passphrase")).await;
    }
}

#[tokio::test]
async fn pfx_opens_in_its_modern_and_its_legacy_form() {
    let folder = Folder::new();
    let export = "pkcs12 -export -inkey key.pem -in certificate.pem -passout file:passphrase";
    folder.openssl(&format!("{export} -out modern.pfx"));
    folder.openssl(&format!("{export} -legacy -out legacy.pfx"));
    // What .NET writes by default, and what it writes when it is asked for AES.
    let sha1 = "-keypbe PBE-SHA1-3DES -certpbe PBE-SHA1-3DES -macalg sha1 -iter 2000";
    folder.openssl(&format!("{export} {sha1} -out dotnet-3des.pfx"));
    let sha256 = "-keypbe AES-256-CBC -certpbe AES-256-CBC -macalg sha256 -iter 2000";
    folder.openssl(&format!("{export} {sha256} -out dotnet-aes.pfx"));
    folder.openssl(&format!("{export} -nomac -out no-mac.pfx"));
    folder.openssl(&format!("{export} -nocerts -out key-only.pfx"));
    folder.openssl(&format!("{export} -name user-keys -out named.pfx"));
    for file in [
        "modern.pfx",
        "legacy.pfx",
        "dotnet-3des.pfx",
        "dotnet-aes.pfx",
        "no-mac.pfx",
        "key-only.pfx",
        "named.pfx",
    ] {
        folder.expect_opens(file, Some("passphrase")).await;
    }
}

#[tokio::test]
async fn a_pfx_with_an_empty_passphrase_needs_none() {
    let folder = Folder::new();
    folder.openssl("pkcs12 -export -inkey key.pem -in certificate.pem -passout pass: -out e.pfx");
    folder.expect_opens("e.pfx", None).await;
}

fn testdata(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata").join(name)).unwrap()
}

#[tokio::test]
async fn a_pfx_made_without_any_password_opens_without_and_with_an_empty_one() {
    let folder = Folder::new();
    folder.write("null.p12", &testdata("dotnet-null-password.p12"));
    folder.write("empty-passphrase", b"");
    for passphrase in [None, Some("empty-passphrase")] {
        let key = folder.open_with("null.p12", passphrase).await.unwrap();
        key.check().await.unwrap();
    }
    folder.expect_refused("null.p12", Some("passphrase"), "is not opened by").await;
    let mut changed = testdata("dotnet-null-password.p12");
    changed[1000] ^= 1;
    folder.write("changed.p12", &changed);
    folder.expect_refused("changed.p12", None, "is encrypted; give the provider").await;
}

#[tokio::test]
async fn a_pfx_with_a_pbmac1_opens_with_its_password_only() {
    let folder = Folder::new();
    folder.write("pbmac1.p12", &testdata("pbmac1.p12"));
    folder.write("secret", b"secret-1\n");
    let key = folder.open_with("pbmac1.p12", Some("secret")).await.unwrap();
    key.check().await.unwrap();
    folder.expect_refused("pbmac1.p12", Some("passphrase"), "is not opened by").await;
    folder.expect_refused("pbmac1.p12", None, "is encrypted; give the provider").await;
    let mut changed = testdata("pbmac1.p12");
    changed[2000] ^= 1;
    folder.write("changed.p12", &changed);
    folder.expect_refused("changed.p12", Some("secret"), "is not opened by").await;
}

#[tokio::test]
async fn a_pfx_without_a_mac_tells_a_wrong_passphrase_from_damage() {
    let folder = Folder::new();
    folder.write("wrong", b"battery staple\n");
    let export =
        "pkcs12 -export -inkey key.pem -in certificate.pem -passout file:passphrase -nomac";
    folder.openssl(&format!("{export} -out modern.pfx"));
    folder.openssl(&format!("{export} -legacy -out legacy.pfx"));
    for file in ["modern.pfx", "legacy.pfx"] {
        folder.expect_opens(file, Some("passphrase")).await;
        folder.expect_refused(file, Some("wrong"), "is not opened by").await;
    }
}

#[tokio::test]
async fn a_wrong_passphrase_and_a_missing_one_are_told_apart() {
    let folder = Folder::new();
    folder.write("wrong", b"battery staple\n");
    folder.write("binary", b"\xff\xfe");
    let pfx = "pkcs12 -export -inkey key.pem -in certificate.pem -passout file:passphrase";
    folder.openssl(&format!("{pfx} -out modern.pfx"));
    folder.openssl(&format!("{pfx} -legacy -out legacy.pfx"));
    folder.openssl("pkcs8 -topk8 -in key.pem -out encrypted.pem -passout file:passphrase");
    for file in ["modern.pfx", "legacy.pfx", "encrypted.pem"] {
        folder.expect_refused(file, Some("wrong"), "is not opened by the configured").await;
        folder.expect_refused(file, None, "give the provider a `passphrase`").await;
        folder.expect_refused(file, Some("nowhere"), "passphrase, which cannot be read").await;
    }
    folder.expect_refused("modern.pfx", Some("binary"), "a passphrase in UTF-8").await;
}

#[tokio::test]
async fn old_encryption_is_refused_with_the_command_that_renews_it() {
    let folder = Folder::new();
    folder.openssl("rsa -traditional -aes128 -in key.pem -out old.pem -passout file:passphrase");
    folder.expect_refused("old.pem", Some("passphrase"), "openssl pkcs8 -topk8 -v2").await;
    folder.openssl(
        "pkcs8 -topk8 -in key.pem -out pbes1.pem -passout file:passphrase -v1 PBE-MD5-DES \
         -provider legacy -provider default",
    );
    folder.expect_refused("pbes1.pem", Some("passphrase"), "openssl pkcs8 -topk8 -v2").await;
    // The schemes of PKCS#12, which OpenSSL before 1.1 wrote for PKCS#8 too.
    folder.openssl(
        "pkcs8 -topk8 -in key.pem -out pbe.pem -passout file:passphrase -v1 PBE-SHA1-3DES",
    );
    folder.expect_refused("pbe.pem", Some("passphrase"), "openssl pkcs8 -topk8 -v2").await;
    folder.openssl("pkcs8 -topk8 -in key.pem -outform DER -out pbe.der -passout file:passphrase -v1 PBE-SHA1-3DES");
    folder.expect_refused("pbe.der", Some("passphrase"), "openssl pkcs8 -topk8 -v2").await;
}

#[tokio::test]
async fn keys_of_other_kinds_are_refused_by_name() {
    let folder = Folder::new();
    folder.openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out ec.pem");
    folder.openssl("ec -in ec.pem -out sec1.pem");
    folder.openssl("ec -in ec.pem -outform DER -out sec1.der");
    folder.openssl("pkcs12 -export -nocerts -inkey ec.pem -passout file:passphrase -out ec.pfx");
    folder.openssl("genpkey -algorithm ED25519 -out ed25519.pem");
    folder.openssl("genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out pss.pem");
    folder.openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:1024 -out small.pem");
    folder.expect_refused("ec.pem", None, "another kind (EC)").await;
    folder.expect_refused("sec1.pem", None, "another kind (EC PRIVATE KEY)").await;
    folder.expect_refused("sec1.der", None, "another kind (EC PRIVATE KEY)").await;
    folder.expect_refused("ec.pfx", Some("passphrase"), "another kind (EC)").await;
    folder.expect_refused("ed25519.pem", None, "another kind (Ed25519)").await;
    folder.expect_refused("pss.pem", None, "another kind (RSA for PSS signatures only)").await;
    folder.expect_refused("small.pem", None, "2048 to 8192 bits").await;
    // What is wrong with these is not their size.
    let three = "-pkeyopt rsa_keygen_primes:3 -pkeyopt rsa_keygen_bits:2048 -out three.pem";
    folder.openssl(&format!("genpkey -algorithm RSA {three}"));
    folder.expect_refused("three.pem", None, "is refused: it has more than two primes").await;
    let exponent = "-pkeyopt rsa_keygen_pubexp:1099511627777 -out exponent.pem";
    folder.openssl(&format!("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 {exponent}"));
    folder.expect_refused("exponent.pem", None, "its public exponent of 41 bits").await;
}

#[tokio::test]
async fn files_without_exactly_one_key_are_refused() {
    let folder = Folder::new();
    folder.append(&["key.pem", "key.pem"], "two.pem");
    folder.openssl("x509 -in certificate.pem -outform DER -out certificate.der");
    folder.openssl("pkey -in key.pem -pubout -out public.pem");
    folder.openssl("pkey -in key.pem -pubout -outform DER -out public.der");
    let certificates = "pkcs12 -export -nokeys -in certificate.pem -passout file:passphrase";
    folder.openssl(&format!("{certificates} -out certificates.pfx"));
    folder.expect_refused("two.pem", None, "line 29: a second private key").await;
    folder.expect_refused("certificate.pem", None, "no private key in PEM; it holds CERT").await;
    folder.expect_refused("certificate.der", None, "no private key").await;
    folder.expect_refused("public.pem", None, "line 1: it holds PUBLIC KEY").await;
    folder.expect_refused("public.der", None, "no private key").await;
    let passphrase = Some("passphrase");
    folder.expect_refused("certificates.pfx", passphrase, "no private key").await;
}

#[tokio::test]
async fn garbage_and_torn_files_are_refused() {
    let folder = Folder::new();
    folder.openssl("pkcs8 -topk8 -nocrypt -in key.pem -outform DER -out key.der");
    folder.openssl("rsa -traditional -in key.pem -outform DER -out pkcs1.der");
    folder.openssl(
        "pkcs12 -export -inkey key.pem -in certificate.pem -passout file:passphrase -out key.pfx",
    );
    folder.write("empty", b"");
    folder.write("text", b"this is no key at all\n");
    folder.write("random", &[0xa5; 300]);
    folder.write("ber", &[0x30, 0x80, 2, 1, 3, 0, 0]);
    folder.expect_refused("empty", None, "is empty").await;
    for file in ["text", "random"] {
        folder.expect_refused(file, None, "no key in a known form").await;
    }
    folder.expect_refused("ber", None, "indefinite lengths").await;
    for whole in ["key.pem", "key.der", "pkcs1.der", "key.pfx"] {
        let bytes = fs::read(folder.path().join(whole)).unwrap();
        for cut in (0..bytes.len()).step_by(101) {
            folder.write("torn", &bytes[..cut]);
            let error = folder.open_with("torn", Some("passphrase")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::OperatorNeeded, "{whole} cut at {cut}: {error}");
        }
    }
}

#[tokio::test]
async fn a_key_file_that_others_can_read_is_refused() {
    let folder = Folder::new();
    let path = folder.path().join("key.pem");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    folder.expect_refused("key.pem", None, "chmod 600").await;
    folder.expect_refused("nowhere.pem", None, "cannot read").await;
}

#[tokio::test]
async fn an_unusual_public_exponent_opens() {
    let folder = Folder::new();
    for exponent in ["3", "17", "4294967297"] {
        let command = "genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048";
        folder.openssl(&format!("{command} -pkeyopt rsa_keygen_pubexp:{exponent} -out key.pem"));
        folder.expect_opens("key.pem", None).await;
    }
}

#[tokio::test]
async fn a_key_whose_halves_do_not_belong_together_is_refused() {
    let folder = Folder::new();
    folder.openssl("rsa -traditional -in key.pem -outform DER -out mixed.der");
    let mut pkcs1 = fs::read(folder.path().join("mixed.der")).unwrap();
    // The modulus follows the sequence's header (4), the version (3), and its own header (5).
    pkcs1[20] ^= 1;
    folder.write("mixed.der", &pkcs1);
    folder.expect_refused("mixed.der", None, "holds an RSA key that is refused").await;
}

#[tokio::test]
async fn a_deadline_that_passed_is_said_so_and_harms_nobody() {
    let folder = Folder::new();
    let key = folder.open_with("key.pem", None).await.unwrap();
    let parameters = Parameters::of(Algorithm::RsaOaep);
    let material = KeyMaterial::copied_from(b"material");
    let wrapped = key.public_key().wrap(&material, &parameters).unwrap();
    let late = Call { caller: CallerSlot(1), deadline: Instant::now() };
    let error = key.unwrap_key(&wrapped, &parameters, late).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::DeadlineExceeded);
    let call = Call { deadline: Instant::now() + Duration::from_secs(30), ..late };
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call).await.unwrap();
    assert_eq!(unwrapped.material.expose(), b"material");
}

#[tokio::test]
async fn what_is_printed_about_a_key_is_its_public_half() {
    let folder = Folder::new();
    let key = folder.open_with("key.pem", None).await.unwrap();
    let printed = format!("{key:?}");
    assert_eq!(printed, format!("OpenedKey({:?})", key.public_key()));
    let config = Config {
        directory: Some(PathBuf::from("/keys")),
        passphrase: Some(SecretSource::File("/run/passphrase".into())),
        files: BTreeMap::new(),
    };
    let provider = format!("{:?}", Provider::new("files", &config).unwrap());
    assert!(provider.contains("/run/passphrase") && !provider.contains("correct horse"));
}
