//! What the devices of the demo's user do: enrol, ask, fetch.

use aws_lc_rs::encoding::AsDer;
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA1_MGF1SHA1, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey,
    OaepPublicEncryptingKey, PrivateDecryptingKey, PublicEncryptingKey,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::program::Connector;
use crate::cli::failure::{Exit, Failure};

/// The user's key, on the device that made it.
pub(super) struct UserKey(Zeroizing<[u8; 64]>);

impl UserKey {
    /// A new key, stored and read again.
    pub(super) async fn enrol(connector: &Connector, token: &str) -> Result<Self, Failure> {
        let mut key = Zeroizing::new([0; 64]);
        aws_lc_rs::rand::fill(&mut *key).map_err(|_| wrong("the system gave no random bytes"))?;
        let encoded = Zeroizing::new(STANDARD.encode(*key));
        let body = json!({ "key": *encoded });
        connector.ask_as(token, Method::POST, "/user-keys", Some(&body)).await?;
        let read = connector.ask_as(token, Method::GET, "/user-keys", None).await?;
        if read["key"].as_str() == Some(&encoded) {
            Ok(Self(key))
        } else {
            Err(wrong("another key came back than was stored"))
        }
    }

    /// Its bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &*self.0
    }

    /// Stores it under the organisation's public key.
    pub(super) async fn enrol_for_recovery(
        &self,
        connector: &Connector,
        token: &str,
    ) -> Result<(), Failure> {
        let path = "/approvals/organization-key";
        let organization = connector.ask_as(token, Method::GET, path, None).await?;
        let spki = decoded(&organization["publicKey"])?;
        let refused = |_| wrong("the organisation's key is no RSA key");
        let key =
            PublicEncryptingKey::from_der(&spki).map_err(|_| wrong("the key is no RSA key"))?;
        let key = OaepPublicEncryptingKey::new(key).map_err(refused)?;
        let mut wrapped = vec![0; key.ciphertext_size()];
        key.encrypt(&OAEP_SHA256_MGF1SHA256, &*self.0, &mut wrapped, None).map_err(refused)?;
        let body = json!({ "value": STANDARD.encode(&wrapped) });
        connector.ask_as(token, Method::PUT, "/approvals/recovery", Some(&body)).await.map(drop)
    }
}

/// A device that has asked for the key.
pub(super) struct NewDevice {
    pub(super) id: String,
    pub(super) fingerprint: String,
    code: String,
    key: OaepPrivateDecryptingKey,
}

impl NewDevice {
    /// Makes a pair of keys for this once, and asks.
    pub(super) async fn ask(connector: &Connector, email: &str) -> Result<Self, Failure> {
        let refused = |_| wrong("no RSA key could be made");
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).map_err(refused)?;
        let public = key.public_key();
        let spki = public.as_der().map_err(refused)?;
        let code = claviger_tokens::random_text();
        let body = json!({
            "email": email, "publicKey": STANDARD.encode(spki.as_ref()), "accessCode": code, "kind": "admin",
        });
        let path = "/auth-requests";
        let asked = connector.ask(Method::POST, path, ("accept", "*/*"), Some(&body)).await?;
        let text = |name: &str| asked.as_ref().and_then(|asked| asked[name].as_str());
        let (Some(id), Some(fingerprint)) = (text("id"), text("fingerprint")) else {
            return Err(wrong("the connector took no request"));
        };
        let key = OaepPrivateDecryptingKey::new(key).map_err(|_| wrong("the key is no RSA key"))?;
        Ok(Self { id: id.to_owned(), fingerprint: fingerprint.to_owned(), code, key })
    }

    /// The user's key once it was approved; none inside where it was denied, none outside while it is
    /// open.
    pub(super) async fn fetch(
        &self,
        connector: &Connector,
    ) -> Result<Option<Option<Zeroizing<Vec<u8>>>>, Failure> {
        let path = format!("/auth-requests/{}", self.id);
        let answer = connector.ask(Method::GET, &path, ("x-access-code", &self.code), None).await?;
        let answer = answer.ok_or_else(|| wrong("the request has expired"))?;
        match answer["state"].as_str() {
            Some("open") => Ok(None),
            Some("denied") => Ok(Some(None)),
            _ => self.opened(&decoded(&answer["value"])?).map(|key| Some(Some(key))),
        }
    }

    fn opened(&self, value: &[u8]) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let mut bytes = Zeroizing::new(vec![0; self.key.min_output_size()]);
        let opened = self.key.decrypt(&OAEP_SHA1_MGF1SHA1, value, &mut bytes, None);
        let opened = opened.map_err(|_| wrong("the value does not open on the new device"))?;
        Ok(Zeroizing::new(opened.to_vec()))
    }
}

fn decoded(value: &Value) -> Result<Vec<u8>, Failure> {
    let decoded = value.as_str().and_then(|text| STANDARD.decode(text).ok());
    decoded.ok_or_else(|| wrong("the connector answers without a value"))
}

fn wrong(message: &str) -> Failure {
    Failure::new(Exit::Failure, message)
}
