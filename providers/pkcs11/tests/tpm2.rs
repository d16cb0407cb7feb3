//! The provider on the real tpm2-pkcs11 and a TPM in software, whose tokens all have the serial number
//! `0000000000000000`, and where each refused PIN brings all of them nearer to a lockout.
//!
//! The module reads its environment, so the inner half runs in a process of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::{Duration, Instant};

use claviger_faults::counts;
use claviger_pkcs11::{Config, Provider, pin_latch};
use claviger_provider_api::{
    Algorithm, Call, CallerSlot, Error, KeyMaterial, OpenKey, Parameters, WrappingKey,
};
use serde_json::json;

/// Where Debian's libtpm2-pkcs11-1 puts it.
const MODULE: &str = "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so";
const MATERIAL: &[u8] = b"thirty-two bytes of key material";

/// A TPM in software, ended with the test.
struct Tpm(Child);

impl Drop for Tpm {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Tpm {
    fn start(folder: &Path) -> (Self, u16) {
        fs::create_dir(folder.join("tpm")).unwrap();
        // The server's port and the control channel's: two that are free one after the other.
        let port = (0..100)
            .find_map(|_| {
                let first = TcpListener::bind("127.0.0.1:0").ok()?;
                let port = first.local_addr().ok()?.port().checked_add(1)?;
                TcpListener::bind(("127.0.0.1", port)).ok()?;
                Some(port - 1)
            })
            .expect("two free ports");
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.join("tpm").display())])
            .args(["--server", &format!("type=tcp,port={port},bindaddr=127.0.0.1")])
            .args(["--ctrl", &format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1)])
            .spawn()
            .expect("swtpm (apt-get install swtpm)");
        let tpm = Self(child);
        let until = Instant::now() + Duration::from_secs(20);
        // Its control channel: the other port takes one connection in all.
        while TcpStream::connect(("127.0.0.1", port + 1)).is_err() {
            assert!(Instant::now() < until, "swtpm does not listen");
            std::thread::sleep(Duration::from_millis(50));
        }
        (tpm, port)
    }
}

/// Makes a token with a key in the next empty slot.
fn make_token(environment: &[(&str, String)], slot: &str, label: &str, pin: &str) {
    let tool = |arguments: &[&str]| {
        let output = Command::new("pkcs11-tool")
            .args(["--module", MODULE, "--slot-index", slot])
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (*name, value.as_str())))
            .output()
            .expect("pkcs11-tool (apt-get install opensc)");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    tool(&["--init-token", "--label", label, "--so-pin", "5678"]);
    let so = ["--login", "--login-type", "so", "--so-pin", "5678"];
    tool(&[&so[..], &["--init-pin", "--new-pin", pin]].concat());
    let generate = ["--keypairgen", "--key-type", "rsa:2048", "--usage-decrypt"];
    let name = ["--label", label, "--id", "01", "--login", "--pin", pin];
    tool(&[&generate[..], &name[..]].concat());
}

#[test]
#[ignore = "needs swtpm and tpm2-pkcs11: scripts/test --all"]
fn two_tpm_tokens_have_a_login_and_a_latch_each() {
    assert!(Path::new(MODULE).exists(), "{MODULE} (apt-get install libtpm2-pkcs11-1)");
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let (_tpm, port) = Tpm::start(folder.path());
    for directory in ["store", "state"] {
        fs::create_dir(path(directory)).unwrap();
        fs::set_permissions(path(directory), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let environment = [
        ("TPM2_PKCS11_TCTI", format!("swtpm:host=127.0.0.1,port={port}")),
        ("TPM2_PKCS11_STORE", path("store").display().to_string()),
        ("TPM2_PKCS11_LOG_LEVEL", "0".to_owned()),
    ];
    make_token(&environment, "0", "alpha", "1111");
    make_token(&environment, "1", "beta", "2222");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner::two_tpm_tokens", "--ignored", "--nocapture"])
        .envs(environment)
        .env("TPM_TEST_FOLDER", folder.path())
        .env("CLAVIGER_FAULTS_MODULE", MODULE)
        .env("CLAVIGER_FAULTS_COUNTS", path("counts"))
        .env("CLAVIGER_FAULTS_RULES", path("control"))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{}: {text}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

mod inner {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    #[ignore = "run by two_tpm_tokens_have_a_login_and_a_latch_each, with a TPM"]
    async fn two_tpm_tokens() {
        let folder = std::env::var_os("TPM_TEST_FOLDER").expect("set by the outer test");
        let folder = Path::new(&folder);
        let logins = || {
            let file = fs::read(folder.join("counts")).unwrap_or_default();
            counts::read(&file, "C_Login").unwrap_or(0)
        };
        let (alpha, beta) = (provider(folder, "alpha"), provider(folder, "beta"));
        write_pin(folder, "alpha", "1111");
        write_pin(folder, "beta", "9999");
        let mut of_alpha = [0; 32];
        for _ in 0..3 {
            let key = open(&alpha).await.unwrap();
            let Err(error) = open(&beta).await else { panic!("opened with a wrong PIN") };
            assert!(error.to_string().contains("claviger pin clear"), "{error}");
            unwrap(&*key).await;
            of_alpha = key.public_key().sha256();
            drop(key);
            assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(20)));
        }
        // Three of alpha's, and one wrong one of beta's, which alpha's successes did not clear.
        assert_eq!(logins(), 4);
        let listed = pin_latch::list(&folder.join("state")).unwrap();
        let listed: Vec<_> = listed.iter().map(|t| (&*t.serial, &*t.label, t.refused)).collect();
        assert_eq!(listed, [("0000000000000000", "beta", 1)]);
        write_pin(folder, "beta", "2222");
        // One after the other: without a resource manager the TPM has no room for both.
        let key = open(&beta).await.unwrap();
        assert_eq!(logins(), 5, "the right PIN needs no `pin clear`");
        assert_ne!(key.public_key().sha256(), of_alpha);
        unwrap(&*key).await;
        key.check().await.unwrap();
        drop(key);
        assert!(claviger_pkcs11::wait_until_left(Duration::from_secs(20)));
    }
}

fn provider(folder: &Path, label: &str) -> Provider {
    let module = std::env::current_exe().unwrap().with_file_name("libclaviger_faults.so");
    let config: Config = serde_json::from_value(json!({
        "module": module,
        "token": { "label": label },
        "pin": { "file": folder.join(label) },
        "sessions": 1,
        // A process of its own would be this test's program.
        "isolation": "none",
    }))
    .unwrap();
    Provider::new(label, &config, Some(&folder.join("state"))).unwrap()
}

fn write_pin(folder: &Path, label: &str, pin: &str) {
    fs::write(folder.join(label), pin).unwrap();
    fs::set_permissions(folder.join(label), fs::Permissions::from_mode(0o600)).unwrap();
}

async fn open(provider: &Provider) -> Result<Arc<dyn WrappingKey>, Error> {
    let open = OpenKey {
        locator: "pkcs11:id=%01",
        algorithms: &[Algorithm::RsaOaep256],
        sign_algorithms: &[],
        public_key_sha256: None,
    };
    provider.open(&open).await
}

async fn unwrap(key: &dyn WrappingKey) {
    let parameters = Parameters::of(Algorithm::RsaOaep256);
    let wrapped = key.public_key().wrap(&KeyMaterial::copied_from(MATERIAL), &parameters).unwrap();
    let call = Call { caller: CallerSlot(1), deadline: Instant::now() + Duration::from_secs(30) };
    let unwrapped = key.unwrap_key(&wrapped, &parameters, call).await.unwrap();
    assert_eq!(unwrapped.material.expose(), MATERIAL);
}
