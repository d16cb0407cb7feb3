//! The PKCS#11 module, loaded by a host that does what a Key Connector does, over a key that does
//! nothing: a decryption against the same call by the Rust client, and a whole life from `dlopen` to
//! `dlclose`, which is what a Key Connector pays on top of the private-key operation.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use claviger::cli::bench::load::median;
use tokio::runtime::Runtime;

use crate::daemon_files::{DaemonFiles, Size};
use crate::noop::{MATERIAL, WRAPPED};
use crate::stack::Target;
use crate::table::{Row, Wanted};
use crate::{CLAVIGER, Effort, Outcome};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/pkcs11-host/host.c");
const SERIAL: &str = "1";

pub(crate) fn measure(runtime: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    let quiet_files = DaemonFiles::new(Size::ONE)?;
    let audited_files = DaemonFiles::new(Size { audit: true, ..Size::ONE })?;
    let (host, audited_host) = (Host::new(&quiet_files)?, Host::new(&audited_files)?);
    let (quiet, audited) = runtime.block_on(async {
        Outcome::Ok((Target::noop(&quiet_files)?, Target::noop(&audited_files)?))
    })?;
    let calls = effort.time.as_millis().to_string();
    let (mut ratios, mut direct, mut decrypts) = (vec![], vec![], vec![]);
    let (mut lives, mut audited_lives) = (vec![], vec![]);
    for round in 1..=effort.rounds {
        eprintln!("module: round {round} of {}", effort.rounds);
        let call = runtime.block_on(quiet.unary(1, effort.time))?.p50_us;
        let decrypt = host.p50_us("decrypts", &calls)?;
        ratios.push(decrypt / call);
        direct.push(call);
        decrypts.push(decrypt);
        lives.push(host.p50_us("timed", &calls)?);
        audited_lives.push(audited_host.p50_us("timed", &calls)?);
    }
    drop((quiet, audited));
    let middle = |values: Vec<f64>| median(values).unwrap_or(f64::NAN);
    let life = |what: &str, values: Vec<f64>, wanted| Row {
        what: format!(
            "a Key Connector's whole life over the PKCS#11 module, nothing behind the daemon, {what}: p50"
        ),
        wanted,
        measured: middle(values) / 1e3,
        unit: " ms",
        figures: String::new(),
    };
    Ok(vec![
        Row {
            what: "a decryption by the PKCS#11 module, nothing behind the daemon, of the Rust client's call: p50"
                .into(),
            wanted: Some(Wanted::AtMost(1.15)),
            measured: middle(ratios),
            unit: "x",
            figures: format!("{:.0} µs against {:.0} µs", middle(decrypts), middle(direct)),
        },
        life("audit off", lives, Some(Wanted::AtMost(2.0))),
        life("audit on", audited_lives, None),
    ])
}

/// The host, configured for one daemon.
struct Host {
    program: PathBuf,
    library: PathBuf,
    configuration: PathBuf,
    key: String,
    wrapped: PathBuf,
    material: PathBuf,
}

impl Host {
    fn new(files: &DaemonFiles) -> Outcome<Self> {
        let library = Path::new(CLAVIGER).with_file_name("libclaviger_pkcs11.so");
        if !library.exists() {
            let path = library.display();
            let how = "cargo build --release --locked -p claviger-pkcs11-module";
            return Err(format!("{path} was not built: {how}").into());
        }
        let host = Self {
            program: files.path("pkcs11-host"),
            library,
            configuration: files.path("pkcs11.toml"),
            key: format!("label:{}", files.keys()[0]),
            wrapped: files.path("wrapped"),
            material: files.path("material"),
        };
        let compiled = Command::new("cc")
            .args(["-std=gnu17", "-O2", "-Wall", "-pthread", "-o"])
            .arg(&host.program)
            .args([SOURCE, "-ldl"])
            .status()?;
        if !compiled.success() {
            return Err(format!("cc: {compiled}").into());
        }
        fs::write(&host.wrapped, [0x55; WRAPPED])?;
        fs::write(&host.material, [7; MATERIAL])?;
        let text = format!(
            r#"[[tokens]]
serial = "{SERIAL}"
endpoints = ["https://localhost:{}"]
ca = "pki/ca.crt"
certificate = "pki/client.crt"
private_key = "pki/client.key"
[[tokens.keys]]
name = "{}"
"#,
            files.port,
            files.keys()[0]
        );
        fs::write(&host.configuration, text)?;
        Ok(host)
    }

    /// Lets the host do something so many times, in one process: the median of how long it took.
    fn p50_us(&self, action: &str, times: &str) -> Outcome<f64> {
        let output = Command::new(&self.program)
            .arg(&self.library)
            .args([SERIAL, &self.key])
            .args([&self.wrapped, &self.material])
            .args([action, times])
            .env("CLAVIGER_PKCS11_CONF", &self.configuration)
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("the host: {}: {error}", output.status).into());
        }
        let text = String::from_utf8(output.stdout)?;
        let took = text.lines().filter_map(|line| line.strip_prefix("us ")?.parse().ok()).collect();
        median(took).ok_or_else(|| "the host measured nothing".into())
    }
}
