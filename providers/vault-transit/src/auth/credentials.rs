//! What a login sends: read from its files each time, zeroed after it.

use bytes::Bytes;
use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Cause, Error, Secret, SecretSource};
use http::header::HeaderValue;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::client::Request;
use crate::config::{AppRole, Auth, Certificate, Jwt};
use crate::error::Operation;

/// Credentials as they are now.
pub(super) enum Credentials {
    /// A token that needs no login.
    Token(HeaderValue),
    /// A request that gives one.
    Method(Method),
}

/// A login request, and a hash of the secret in it.
pub(super) struct Method {
    pub(super) request: Request,
    sha256: [u8; 32],
}

#[derive(Serialize)]
struct AppRoleBody<'a> {
    role_id: &'a str,
    secret_id: &'a str,
}

#[derive(Serialize)]
struct JwtBody<'a> {
    role: &'a str,
    jwt: &'a str,
}

#[derive(Serialize)]
struct CertificateBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

impl Credentials {
    pub(super) fn read(auth: &Auth) -> Result<Self, Error> {
        let path = format!("auth/{}/login", auth.mount());
        let method = |secret: &[u8], body: &dyn Fn(String) -> Request| {
            Self::Method(Method { request: body(path.clone()), sha256: sha256(secret) })
        };
        match auth {
            Auth::Token(source) => {
                let token = read(source, "token")?;
                token_header(token.expose())
                    .map(Self::Token)
                    .ok_or_else(|| unusable("token", "it is no token: visible ASCII on one line"))
            }
            Auth::Approle(AppRole { role_id, secret_id, .. }) => {
                let secret = read(secret_id, "secret_id")?;
                let secret_id = text(&secret, "secret_id")?;
                let body = AppRoleBody { role_id, secret_id };
                Ok(method(secret.expose(), &|path| Request::post(Operation::LogIn, path, &body)))
            }
            Auth::Kubernetes(Jwt { role, token, .. }) | Auth::Jwt(Jwt { role, token, .. }) => {
                let secret = read(token, "token")?;
                let body = JwtBody { role, jwt: text(&secret, "token")? };
                Ok(method(secret.expose(), &|path| Request::post(Operation::LogIn, path, &body)))
            }
            Auth::Certificate(Certificate { role, certificate, .. }) => {
                let name = role.as_deref();
                let body = CertificateBody { name };
                // The certificate itself is in the TLS handshake; a new file is a new attempt.
                let pem =
                    std::fs::read(certificate).map_err(|error| unusable("certificate", error))?;
                Ok(method(&pem, &|path| Request::post(Operation::LogIn, path, &body)))
            }
        }
    }

    /// A hash of the secret, to know it again.
    pub(super) fn sha256(&self) -> [u8; 32] {
        match self {
            Self::Token(token) => sha256(token.as_bytes()),
            Self::Method(method) => method.sha256,
        }
    }
}

/// A token as a header whose bytes are zeroed with its last copy, and which no log shows.
pub(super) fn token_header(token: &[u8]) -> Option<HeaderValue> {
    if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let bytes = Bytes::from_owner(Zeroizing::new(token.to_vec()));
    let mut header = HeaderValue::from_maybe_shared(bytes).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn read(source: &SecretSource, option: &str) -> Result<Secret, Error> {
    let secret = source.read_blocking().map_err(|error| {
        Error::from(error).in_context(format_args!("`auth`: {option} cannot be used"))
    })?;
    Ok(secret.without_line_end())
}

fn text<'a>(secret: &'a Secret, option: &str) -> Result<&'a str, Error> {
    std::str::from_utf8(secret.expose())
        .ok()
        .filter(|text| !text.is_empty())
        .ok_or_else(|| unusable(option, "it is empty or no text"))
}

fn unusable(option: &str, why: impl std::fmt::Display) -> Error {
    Error::needs_operator(Cause::SecretFile, format!("`auth`: {option} cannot be used: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use claviger_provider_api::ErrorKind;

    #[test]
    fn a_token_is_never_printed_and_what_is_none_is_refused() {
        let header = token_header(b"hvs.marker").unwrap();
        assert_eq!(format!("{header:?}"), "Sensitive");
        for bad in [&b""[..], b"two words", b"line\n", b"\x00", "é".as_bytes()] {
            assert!(token_header(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn credentials_are_known_again_by_their_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret-id");
        let auth = Auth::Approle(AppRole {
            mount: "approle".into(),
            role_id: "role".into(),
            secret_id: SecretSource::File(path.clone()),
        });
        let write = |content: &str| {
            use std::os::unix::fs::PermissionsExt;
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            Credentials::read(&auth).map(|credentials| credentials.sha256())
        };
        let first = write("one\n").unwrap();
        assert_eq!(write("one").unwrap(), first);
        assert_ne!(write("two").unwrap(), first);
        let empty = write("").unwrap_err();
        assert_eq!(
            (empty.kind(), empty.cause()),
            (ErrorKind::OperatorNeeded, Some(Cause::SecretFile))
        );
    }
}
