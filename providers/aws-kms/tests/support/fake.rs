//! A fake of KMS with one RSA-2048 key, for what ministack cannot be made to do: it answers as it
//! is told, and counts what it is asked.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use claviger_provider_api::Algorithm;
use claviger_provider_api::public_key::oaep;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;

/// The key's ARN.
pub(crate) const ARN: &str =
    "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// What happens to one request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// This answer instead: status, a header line, body.
    Answer(u16, &'static str, String),
    /// The right answer, so much later.
    Slow(Duration),
    /// The connection is closed without an answer.
    Cut,
    /// The connection is closed in the middle of the right answer.
    Truncated,
    /// The right answer with these fields of its body replaced.
    Changed(Value),
}

/// The fake. It ends with its runtime.
pub(crate) struct Fake {
    pub(crate) endpoint: String,
    state: Arc<State>,
}

struct State {
    spki: Vec<u8>,
    private: OaepPrivateDecryptingKey,
    faults: Mutex<VecDeque<Fault>>,
    refused: Mutex<Option<(&'static str, &'static str)>>,
    asked: Mutex<Vec<String>>,
    last_authorization: Mutex<String>,
}

impl Fake {
    /// Listens on a free loopback port.
    pub(crate) async fn start() -> Self {
        Self::start_with("http", |stream| async { Ok(stream) }).await
    }

    /// The same behind a handshake, such as TLS.
    pub(crate) async fn start_with<S, F>(
        scheme: &str,
        handshake: impl Fn(tokio::net::TcpStream) -> F + Send + 'static,
    ) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
        F: Future<Output = io::Result<S>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("{scheme}://{}", listener.local_addr().unwrap());
        let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let state = Arc::new(State {
            spki: private.public_key().as_der().unwrap().as_ref().to_vec(),
            private: OaepPrivateDecryptingKey::new(private).unwrap(),
            faults: Mutex::default(),
            refused: Mutex::default(),
            asked: Mutex::default(),
            last_authorization: Mutex::default(),
        });
        let serving = state.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (state, stream) = (serving.clone(), handshake(stream));
                tokio::spawn(async move { state.serve(stream.await?).await });
            }
        });
        Self { endpoint, state }
    }

    /// Does this to the next request that has no fault yet.
    pub(crate) fn next(&self, fault: Fault) {
        self.state.faults.lock().unwrap().push_back(fault);
    }

    /// The next request gets KMS's error of this code.
    pub(crate) fn next_error(&self, status: u16, code: &str) {
        self.next(Fault::Answer(status, "", error_body(code)));
    }

    /// Answers every request under this access key id with this code.
    pub(crate) fn refuse(&self, id: &'static str, code: &'static str) {
        *self.state.refused.lock().unwrap() = Some((id, code));
    }

    /// The operations that were asked for since the last time, in order.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state.asked.lock().unwrap())
    }

    /// How the last request was signed (the `Authorization` header).
    pub(crate) fn last_authorization(&self) -> String {
        self.state.last_authorization.lock().unwrap().clone()
    }
}

fn error_body(code: &str) -> String {
    json!({ "__type": code, "message": "said by the fake" }).to_string()
}

impl State {
    /// HTTP/1.1, one request after the other.
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        loop {
            let (head, body) = read_request(&mut stream).await?;
            let operation = header(&head, "x-amz-target").rsplit('.').next().unwrap().to_owned();
            let number = {
                let mut asked = self.asked.lock().unwrap();
                asked.push(operation.clone());
                asked.len()
            };
            header(&head, "authorization").clone_into(&mut self.last_authorization.lock().unwrap());
            let refused = *self.refused.lock().unwrap();
            let refused = refused
                .filter(|(id, _)| header(&head, "authorization").contains(&format!("={id}/")));
            let fault = self.faults.lock().unwrap().pop_front();
            let (mut status, mut extra) = (200, "");
            let mut answer = match refused {
                Some((_, code)) => {
                    status = 400;
                    error_body(code)
                }
                None => match self.answer(&operation, &body) {
                    Ok(answer) => answer.to_string(),
                    Err(code) => {
                        status = 400;
                        error_body(code)
                    }
                },
            };
            let mut cut_after = usize::MAX;
            match fault {
                None => {}
                Some(Fault::Answer(s, e, b)) => (status, extra, answer) = (s, e, b),
                Some(Fault::Slow(delay)) => tokio::time::sleep(delay).await,
                Some(Fault::Cut) => cut_after = 0,
                Some(Fault::Truncated) => cut_after = answer.len() / 2,
                Some(Fault::Changed(fields)) => {
                    let mut changed: Value = serde_json::from_str(&answer).unwrap();
                    for (name, value) in fields.as_object().unwrap() {
                        changed[name] = value.clone();
                    }
                    answer = changed.to_string();
                }
            }
            if cut_after == 0 {
                return Ok(());
            }
            let head = format!(
                "HTTP/1.1 {status} Status\r\ncontent-type: application/x-amz-json-1.1\r\n\
                 x-amzn-RequestId: request-{number}\r\ncontent-length: {}\r\n{extra}\r\n",
                answer.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&answer.as_bytes()[..answer.len().min(cut_after)]).await?;
            stream.flush().await?;
            if cut_after < answer.len() {
                return Ok(());
            }
        }
    }

    fn answer(&self, operation: &str, body: &[u8]) -> Result<Value, &'static str> {
        let body: Value = serde_json::from_slice(body).map_err(|_| "SerializationException")?;
        match operation {
            "GetPublicKey" => Ok(json!({
                "KeyId": ARN,
                "PublicKey": STANDARD.encode(&self.spki),
                "KeySpec": "RSA_2048",
                "KeyUsage": "ENCRYPT_DECRYPT",
                "EncryptionAlgorithms": ["RSAES_OAEP_SHA_1", "RSAES_OAEP_SHA_256"],
            })),
            "Decrypt" => {
                if body["KeyId"] != ARN {
                    return Err("NotFoundException");
                }
                let algorithm = match body["EncryptionAlgorithm"].as_str() {
                    Some("RSAES_OAEP_SHA_1") => Algorithm::RsaOaep,
                    Some("RSAES_OAEP_SHA_256") => Algorithm::RsaOaep256,
                    _ => return Err("InvalidCiphertextException"),
                };
                let wrapped = body["CiphertextBlob"].as_str().unwrap_or_default();
                let wrapped = STANDARD.decode(wrapped).map_err(|_| "SerializationException")?;
                let mut out = [0; 256];
                let plaintext = self
                    .private
                    .decrypt(oaep(algorithm).unwrap(), &wrapped, &mut out, None)
                    .map_err(|_| "InvalidCiphertextException")?;
                Ok(json!({
                    "KeyId": ARN,
                    "Plaintext": STANDARD.encode(plaintext),
                    "EncryptionAlgorithm": body["EncryptionAlgorithm"],
                }))
            }
            _ => Err("UnknownOperationException"),
        }
    }
}

async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(String, Vec<u8>)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8(head).unwrap();
    let mut body = vec![0; header(&head, "content-length").parse().unwrap_or(0)];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(found, _)| found.eq_ignore_ascii_case(name))
        .map_or("", |(_, value)| value.trim())
}
