//! Each service that is asked over HTTP: a call through the daemon against the same call to the
//! service without it, in turn. What the service itself takes is in both.

mod azure;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::EncryptionAlgorithmSpec;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger::cli::bench::load::{self, Begun, Counter, SETTLE, Sample, Work};
use claviger_provider_api::{Algorithm, KeyMaterial, Parameters, PublicKey};
use futures::future::BoxFuture;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use test_backends::ministack::{Ministack, REGION};
use test_backends::vault;
use tokio::runtime::Runtime;
use toml::{Table, Value};

use crate::child::Server;
use crate::daemon_files::{DaemonFiles, Size};
use crate::stack::compare_freely;
use crate::table::Row;
use crate::{Effort, Outcome};

const ALGORITHM: Algorithm = Algorithm::RsaOaep256;
const MATERIAL: [u8; 32] = [7; 32];
/// In a fake's folder: the key to serve, and what the fake says of itself.
const KEY_FILE: &str = "key.der";
const SAID_FILE: &str = "said.json";
const BARE_HTTP: &str = "a bare HTTP request";

/// The same RSA-2048 key everywhere.
struct Pair {
    pkcs8: Vec<u8>,
    public_key: PublicKey,
    wrapped: Vec<u8>,
}

/// One call to a service without the daemon; false if the material is another.
type Call = Arc<dyn Fn() -> BoxFuture<'static, Outcome<bool>>>;

/// A service with the key in it.
struct Service {
    name: &'static str,
    /// What asks it where there is no daemon.
    bare: &'static str,
    /// `[providers.…]`.
    provider: Table,
    locator: String,
    call: Call,
    /// Ends with this.
    _server: Box<dyn std::any::Any>,
}

pub(crate) fn measure(runtime: &Runtime, effort: Effort) -> Outcome<Vec<Row>> {
    runtime.block_on(async {
        let key = Pair::generate()?;
        let mut rows = Vec::new();
        rows.extend(against(aws(&key).await?, &key, effort).await?);
        rows.extend(against(azure::service(&key).await?, &key, effort).await?);
        rows.extend(against(google(&key).await?, &key, effort).await?);
        for backend in [vault::Backend::OpenBao, vault::Backend::Vault] {
            rows.extend(against(transit(backend, &key).await?, &key, effort).await?);
        }
        Ok(rows)
    })
}

/// The daemon and the bare call, in turn.
async fn against(service: Service, key: &Pair, effort: Effort) -> Outcome<Vec<Row>> {
    let files = DaemonFiles::new(Size::ONE)?;
    serve_from(&files, &service, key)?;
    let server = Server::claviger(&files.config(), files.port)?;
    let clients = files.clients(4)?;
    let daemon = async |in_flight: usize| {
        let work = Work {
            keys: files.keys().into(),
            wrapped: key.wrapped.clone(),
            batch: 1,
            in_flight,
            time: effort.time,
        };
        load::run(&clients[..in_flight.min(clients.len())], &work, Some(server.pid())).await
    };
    let (mut one, mut many) = (Vec::new(), Vec::new());
    for round in 1..=effort.rounds {
        eprintln!("{}: round {round} of {}", service.name, effort.rounds);
        one.push((bare(&service.call, 1, effort.time).await?, daemon(1).await?));
        many.push((bare(&service.call, 8, effort.time).await?, daemon(8).await?));
    }
    let Service { name, bare, .. } = service;
    let p50 = format!("{name}, RSA-2048: p50 at one in flight, of {bare}");
    let p50 = compare_freely(&p50, "µs", &one, |sample| Some(sample.p50_us));
    let cpu = format!("{name}, RSA-2048: CPU per call, 8 in flight, of {bare}");
    let cpu = compare_freely(&cpu, "µs", &many, |sample| sample.cpu_us);
    Ok(vec![p50, cpu])
}

/// So many calls at a time; CPU time is this process's, which does nothing else.
async fn bare(call: &Call, in_flight: usize, time: Duration) -> Outcome<Sample> {
    let counter = Counter::default();
    let calls = futures::future::try_join_all((0..in_flight).map(async |_| {
        loop {
            let begun = std::time::Instant::now();
            if !call().await? {
                return Outcome::<()>::Err("the service gave other bytes".into());
            }
            counter.add(begun.elapsed());
        }
    }));
    let measure = async {
        tokio::time::sleep(SETTLE).await;
        let begun = Begun::now(&counter, Some(std::process::id()));
        tokio::time::sleep(time).await;
        begun.end(&counter, 1)
    };
    tokio::select! {
        sample = measure => Ok(sample),
        ended = calls => Err(ended.err().unwrap_or_else(|| "the calls ended".into())),
    }
}

/// Puts the service's key in the place of the daemon's own.
fn serve_from(files: &DaemonFiles, service: &Service, key: &Pair) -> Outcome<()> {
    let mut config: Table = fs::read_to_string(files.config())?.parse()?;
    config.insert("providers".into(), table([("remote", service.provider.clone().into())]));
    let replica =
        table([("provider", "remote".into()), ("locator", service.locator.clone().into())]);
    let version = table([
        ("version", 1.into()),
        ("state", "active".into()),
        ("replicas", Value::Array(vec![replica])),
        ("public_key_sha256", hex::encode(key.public_key.sha256()).into()),
    ]);
    let of_daemon = table([
        ("algorithms", Value::Array(vec![ALGORITHM.name().into()])),
        ("versions", Value::Array(vec![version])),
    ]);
    config.insert("keys".into(), table([(files.keys()[0].as_str(), of_daemon)]));
    fs::write(files.config(), config.to_string())?;
    Ok(())
}

async fn aws(key: &Pair) -> Outcome<Service> {
    let server = Ministack::start().await;
    let arn = server.import(&key.pkcs8).await;
    let folder = tempfile::tempdir()?;
    let mut provider = options([
        ("type", "aws-kms".into()),
        ("region", REGION.into()),
        ("endpoint", server.endpoint.clone().into()),
    ]);
    let id = secret(&folder, "id", "AKIDBENCH")?;
    let credentials =
        table([("access_key_id", id), ("secret_access_key", secret(&folder, "key", "bench")?)]);
    provider.insert("credentials".into(), credentials);
    let (kms, locator, wrapped) = (server.administrator(), arn.clone(), key.wrapped.clone());
    let call = move || -> BoxFuture<'static, Outcome<bool>> {
        let decrypt = kms
            .decrypt()
            .key_id(&arn)
            .encryption_algorithm(EncryptionAlgorithmSpec::RsaesOaepSha256)
            .ciphertext_blob(Blob::new(wrapped.clone()));
        Box::pin(async move {
            let answer = decrypt.send().await?;
            Ok(answer.plaintext.is_some_and(|material| material.as_ref() == MATERIAL))
        })
    };
    Ok(Service {
        name: "AWS KMS (ministack)",
        bare: "the SDK alone",
        provider,
        locator,
        call: Arc::new(call),
        _server: Box::new((server, folder)),
    })
}

async fn transit(backend: vault::Backend, key: &Pair) -> Outcome<Service> {
    let server = vault::Server::start(backend).await;
    server.import("bench", &key.pkcs8).await;
    let token = server.secret_file("token", vault::ROOT);
    let token = table([("file", token.to_str().ok_or("a path in UTF-8")?.into())]);
    let provider = options([
        ("type", "vault-transit".into()),
        ("address", server.address.clone().into()),
        ("auth", table([("token", token)])),
    ]);
    let body = json!({ "ciphertext": format!("vault:v1:{}", STANDARD.encode(&key.wrapped)) });
    let url = format!("{}/v1/transit/decrypt/bench", server.address);
    let request = http(None)?.post(url).header("x-vault-token", vault::ROOT).body(body.to_string());
    Ok(Service {
        name: match backend {
            vault::Backend::OpenBao => "OpenBao",
            vault::Backend::Vault => "HashiCorp Vault",
        },
        bare: BARE_HTTP,
        provider,
        locator: "transit/bench:1".to_owned(),
        call: http_call(request, "/data/plaintext", STANDARD.encode(MATERIAL)),
        _server: Box::new(server),
    })
}

async fn google(key: &Pair) -> Outcome<Service> {
    let fake = Fake::start("--serve-google", key)?;
    let (origin, locator) = (fake.said("origin")?, fake.said("locator")?);
    let provider = options([
        ("type", "gcp-kms".into()),
        ("endpoint", origin.clone().into()),
        ("credentials", secret(&fake.folder, "account.json", &fake.said("account")?)?),
    ]);
    let http = http(None)?;
    let path = "computeMetadata/v1/instance/service-accounts/default/token";
    let login = http.get(format!("{origin}/{path}"));
    let token = token(login.header("metadata-flavor", "Google")).await?;
    let body = json!({ "ciphertext": STANDARD.encode(&key.wrapped) });
    let request = http
        .post(format!("{origin}/v1/{locator}:asymmetricDecrypt"))
        .bearer_auth(token)
        .header("content-type", "application/json")
        .body(body.to_string());
    Ok(Service {
        name: "Google Cloud KMS (fake)",
        bare: BARE_HTTP,
        provider,
        locator,
        call: http_call(request, "/plaintext", STANDARD.encode(MATERIAL)),
        _server: Box::new(fake),
    })
}

/// A fake in a process of its own, so that its CPU time is counted apart, and what it printed at start.
struct Fake {
    folder: tempfile::TempDir,
    said: serde_json::Value,
    _server: Server,
}

impl Fake {
    fn start(mode: &str, key: &Pair) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        secret_file(&folder.path().join(KEY_FILE), &key.pkcs8)?;
        let said = folder.path().join(SAID_FILE);
        let server = Server::start(mode, folder.path(), || said.exists())?;
        Ok(Self { said: serde_json::from_slice(&fs::read(said)?)?, folder, _server: server })
    }

    fn said(&self, name: &str) -> Outcome<String> {
        Ok(self.said[name].as_str().ok_or("a fake that said nothing of itself")?.to_owned())
    }
}

/// Serves a fake of Azure Key Vault with the key in a folder, and says there where it is.
pub(crate) fn serve_azure(folder: &Path) -> Outcome<()> {
    serve_fake(folder, async |pkcs8| {
        let fake = azure_key_vault_fake::Fake::start().await?;
        let kid = fake.import("bench", pkcs8);
        let said = json!({ "origin": fake.origin(), "ca": fake.ca_pem(), "locator": kid });
        Ok((Box::new(fake) as Box<dyn std::any::Any>, said))
    })
}

/// The same of Google Cloud KMS.
pub(crate) fn serve_google(folder: &Path) -> Outcome<()> {
    serve_fake(folder, async |pkcs8| {
        let fake = gcp_kms_fake::Fake::start();
        let crypto_key = "projects/bench/locations/europe-west3/keyRings/bench/cryptoKeys/bench";
        let algorithm = gcp_kms_fake::Algorithm::DecryptOaep2048Sha256;
        let locator = fake.import_version(crypto_key, algorithm, pkcs8);
        let account = fake.service_account();
        let said = json!({ "origin": fake.endpoint(), "account": account, "locator": locator });
        Ok((Box::new(fake) as Box<dyn std::any::Any>, said))
    })
}

fn serve_fake(
    folder: &Path,
    start: impl AsyncFnOnce(&[u8]) -> Outcome<(Box<dyn std::any::Any>, serde_json::Value)>,
) -> Outcome<()> {
    #[cfg(target_os = "linux")]
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let pkcs8 = fs::read(folder.join(KEY_FILE))?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let (_fake, said) = start(&pkcs8).await?;
        let new = folder.join("said.new");
        secret_file(&new, said.to_string().as_bytes())?;
        fs::rename(new, folder.join(SAID_FILE))?;
        std::future::pending().await
    })
}

/// Over connections that are kept; `ca` is the only one to trust.
fn http(ca: Option<&str>) -> Outcome<reqwest::Client> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.unwrap_or_default().as_bytes()) {
        roots.add(certificate?)?;
    }
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    Ok(reqwest::Client::builder().no_proxy().tls_backend_preconfigured(tls).build()?)
}

/// The token that a request for one gives.
async fn token(request: reqwest::RequestBuilder) -> Outcome<String> {
    let answer = request.send().await?.error_for_status()?.bytes().await?;
    let answer: serde_json::Value = serde_json::from_slice(&answer)?;
    let token = answer["access_token"].as_str().ok_or("an answer without a token")?;
    Ok(token.to_owned())
}

/// A request whose answer has `material` at `pointer`.
fn http_call(request: reqwest::RequestBuilder, pointer: &'static str, material: String) -> Call {
    Arc::new(move || {
        let request = request.try_clone().expect("its body is bytes");
        let material = material.clone();
        Box::pin(async move {
            let answer = request.send().await?.bytes().await?;
            let answer: serde_json::Value = serde_json::from_slice(&answer)?;
            Ok(answer.pointer(pointer).is_some_and(|found| found == material.as_str()))
        })
    })
}

impl Pair {
    fn generate() -> Outcome<Self> {
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048)?;
        let pkcs8: Pkcs8V1Der<'_> = private.as_der()?;
        let public_key = PublicKey::from_spki(private.public_key().as_der()?.as_ref())?;
        let material = KeyMaterial::copied_from(&MATERIAL);
        let wrapped = public_key.wrap(&material, &Parameters::of(ALGORITHM))?;
        Ok(Self { pkcs8: pkcs8.as_ref().to_vec(), public_key, wrapped })
    }
}

/// `{ file = "…" }` for a new file of mode 0600.
fn secret(folder: &tempfile::TempDir, name: &str, content: &str) -> Outcome<Value> {
    let path = folder.path().join(name);
    secret_file(&path, content.as_bytes())?;
    Ok(table([("file", path.to_str().ok_or("a path in UTF-8")?.into())]))
}

fn secret_file(path: &Path, content: &[u8]) -> Outcome<()> {
    fs::write(path, content)?;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o600))?)
}

fn table<const N: usize>(entries: [(&str, Value); N]) -> Value {
    options(entries).into()
}

fn options<const N: usize>(entries: [(&str, Value); N]) -> Table {
    entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}
