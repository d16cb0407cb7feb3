//! ministack: KMS with real RSA, from PyPI.

use std::time::{Duration, Instant};

use aws_sdk_kms::Client;
use aws_sdk_kms::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    AlgorithmSpec, EncryptionAlgorithmSpec, ExpirationModelType, KeySpec, KeyUsageType, OriginType,
    WrappingKeySpec,
};
use claviger_provider_api::{Algorithm, PublicKey};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::import::{modulus_bits, wrapped_for_import};
use crate::process::{Process, command, free_port, program_from_script};

/// The region of every test.
pub const REGION: &str = "eu-central-1";

/// How long it may take to answer: it is up in 1.5 s on a quiet machine.
const START_LIMIT: Duration = Duration::from_mins(2);

/// The server. It ends when dropped.
#[derive(Debug)]
pub struct Ministack {
    process: Process,
    /// Where it is: `http://127.0.0.1:PORT`.
    pub endpoint: String,
}

impl Ministack {
    /// Starts it and waits until it is well. The first call on a machine installs it.
    pub async fn start() -> Self {
        let program = program_from_script("ministack", &[]);
        for _ in 0..5 {
            let port = free_port();
            let process = Process::start(|_| {
                let mut command = command(&program);
                command.env("GATEWAY_PORT", port.to_string()).envs([
                    ("SERVICES", "kms"),
                    ("BIND_HOST", "127.0.0.1"),
                    ("MINISTACK_HOST", "127.0.0.1"),
                    ("IOT_MTLS_ENABLED", "0"),
                ]);
                command
            });
            let mut server = Self { process, endpoint: format!("http://127.0.0.1:{port}") };
            if server.is_up(port).await {
                return server;
            }
        }
        panic!("ministack did not start on any of five ports");
    }

    /// False if it ended, as it does where the port was taken.
    async fn is_up(&mut self, port: u16) -> bool {
        let until = Instant::now() + START_LIMIT;
        while !is_well(port).await {
            if !self.process.is_running() {
                return false;
            }
            let log = || self.process.log();
            assert!(Instant::now() < until, "ministack does not answer on port {port}: {}", log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.process.is_running()
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The SDK as the administrator of the keys.
    pub fn administrator(&self) -> Client {
        let config = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(REGION))
            .endpoint_url(&self.endpoint)
            .credentials_provider(Credentials::new("admin", "admin", None, None, "test"))
            .build();
        Client::from_conf(config)
    }

    /// Makes a key and gives its ARN.
    pub async fn key(&self, spec: KeySpec, usage: KeyUsageType) -> String {
        let made = self.administrator().create_key().key_spec(spec).key_usage(usage).send().await;
        arn(made)
    }

    /// Wraps under a key, as KMS itself does.
    pub async fn wrap(&self, arn: &str, algorithm: Algorithm, material: &[u8]) -> Vec<u8> {
        let algorithm = match algorithm {
            Algorithm::RsaOaep => EncryptionAlgorithmSpec::RsaesOaepSha1,
            Algorithm::RsaOaep256 => EncryptionAlgorithmSpec::RsaesOaepSha256,
            other => panic!("KMS has no {other}"),
        };
        let kms = self.administrator();
        let encrypt = kms.encrypt().key_id(arn).encryption_algorithm(algorithm);
        let answer = encrypt.plaintext(Blob::new(material)).send().await;
        let wrapped = answer.expect("an administrator encrypts").ciphertext_blob;
        wrapped.expect("a value that is wrapped").into_inner()
    }

    /// Imports an RSA key (PKCS#8, DER) that unwraps, and gives its ARN.
    pub async fn import(&self, pkcs8: &[u8]) -> String {
        let spec = match modulus_bits(pkcs8) {
            2048 => KeySpec::Rsa2048,
            3072 => KeySpec::Rsa3072,
            4096 => KeySpec::Rsa4096,
            other => panic!("KMS has no RSA keys of {other} bits"),
        };
        let kms = self.administrator();
        let made = kms
            .create_key()
            .origin(OriginType::External)
            .key_spec(spec)
            .key_usage(KeyUsageType::EncryptDecrypt)
            .send()
            .await;
        let arn = arn(made);
        let parameters = kms
            .get_parameters_for_import()
            .key_id(&arn)
            .wrapping_algorithm(AlgorithmSpec::RsaAesKeyWrapSha256)
            .wrapping_key_spec(WrappingKeySpec::Rsa4096)
            .send()
            .await
            .expect("an external key waits for its import");
        let wrapping_key = parameters.public_key().expect("a wrapping key").as_ref();
        let wrapping_key = PublicKey::from_spki(wrapping_key).expect("an RSA key");
        kms.import_key_material()
            .key_id(&arn)
            .import_token(parameters.import_token.expect("an import has a token"))
            .encrypted_key_material(Blob::new(wrapped_for_import(&wrapping_key, pkcs8)))
            .expiration_model(ExpirationModelType::KeyMaterialDoesNotExpire)
            .send()
            .await
            .expect("the key is imported");
        arn
    }
}

fn arn<E: std::fmt::Debug>(
    made: Result<aws_sdk_kms::operation::create_key::CreateKeyOutput, E>,
) -> String {
    let made = made.expect("an administrator makes keys");
    made.key_metadata.and_then(|key| key.arn).expect("a key has an ARN")
}

async fn is_well(port: u16) -> bool {
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let request =
            "GET /_ministack/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await?;
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(2), asked).await;
    matches!(answer, Ok(Ok(answer)) if &answer == b"HTTP/1.1 200")
}
