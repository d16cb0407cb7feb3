//! Why a connection did not get as far as its first request: from TLS errors to a closed set.

use std::io;

use rustls::{AlertDescription, CertificateError};

use super::stats::HandshakeFailure;
use crate::daemon::transport::caller::Peer;

/// A connection that did not get as far as its first request.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) reason: HandshakeFailure,
    pub(super) detail: String,
}

impl Refusal {
    /// Of a peer that is known by now.
    pub(super) fn of(peer: &Peer, reason: HandshakeFailure) -> Self {
        Self { reason, detail: peer.identity().unwrap_or_default().into_owned() }
    }
}

impl From<HandshakeFailure> for Refusal {
    fn from(reason: HandshakeFailure) -> Self {
        Self { reason, detail: String::new() }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(tls) => tls.clone().into(),
            None => Self { reason: HandshakeFailure::PeerLeft, detail: error.to_string() },
        }
    }
}

impl From<rustls::Error> for Refusal {
    fn from(error: rustls::Error) -> Self {
        let reason = classify(&error);
        let detail = explanation(reason).map_or_else(|| error.to_string(), str::to_owned);
        Self { reason, detail }
    }
}

/// Where rustls has a word, and an operator needs a sentence.
fn explanation(reason: HandshakeFailure) -> Option<&'static str> {
    match reason {
        HandshakeFailure::UnknownIssuer => Some(
            "no CA of client_ca has signed the client's certificate: it is another CA's, which may \
             bear the same name, or its intermediate was not sent",
        ),
        HandshakeFailure::RevocationUnknown => Some(
            "no CRL vouches for the client's certificate or for an intermediate: there is none of \
             its CA, its issuingDistributionPoint does not fit, or it is past crl_grace",
        ),
        HandshakeFailure::Revoked => {
            Some("the client's certificate, or its intermediate, is revoked")
        }
        _ => None,
    }
}

fn classify(error: &rustls::Error) -> HandshakeFailure {
    match error {
        rustls::Error::NoCertificatesPresented => HandshakeFailure::NoCertificate,
        rustls::Error::InvalidCertificate(fault) => match fault {
            CertificateError::UnknownIssuer => HandshakeFailure::UnknownIssuer,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => HandshakeFailure::NotValidNow,
            CertificateError::Revoked => HandshakeFailure::Revoked,
            CertificateError::UnknownRevocationStatus
            | CertificateError::ExpiredRevocationList
            | CertificateError::ExpiredRevocationListContext { .. } => {
                HandshakeFailure::RevocationUnknown
            }
            _ => HandshakeFailure::BadCertificate,
        },
        rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol => {
            HandshakeFailure::Incompatible
        }
        rustls::Error::AlertReceived(alert) => match alert {
            AlertDescription::CloseNotify | AlertDescription::UserCanceled => {
                HandshakeFailure::PeerLeft
            }
            _ => HandshakeFailure::RefusedUs,
        },
        _ => HandshakeFailure::Protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_cas_certificate_is_told_in_words() {
        let refusal = |error: CertificateError| Refusal::from(rustls::Error::from(error));
        let unknown = refusal(CertificateError::UnknownIssuer);
        assert!(unknown.detail.contains("may bear the same name"), "{}", unknown.detail);
        let refused = io::Error::other(rustls::Error::from(CertificateError::Revoked));
        let revoked = Refusal::from(refused);
        assert!(matches!(revoked.reason, HandshakeFailure::Revoked));
        assert!(revoked.detail.ends_with("is revoked"), "{}", revoked.detail);
        let other = refusal(CertificateError::BadEncoding);
        assert!(other.detail.contains("BadEncoding"), "{}", other.detail);
    }
}
