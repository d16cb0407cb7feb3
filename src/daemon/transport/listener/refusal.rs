//! Why a connection did not get as far as its first request: from TLS errors to a closed set.

use std::{fmt, io};

use rustls::{AlertDescription, CertificateError};

use super::entrance::Entrance;
use super::stats::HandshakeFailure;
use crate::daemon::transport::caller::Peer;

/// A connection that did not get as far as its first request.
pub(super) struct Refusal {
    pub(super) reason: HandshakeFailure,
    pub(super) detail: String,
}

impl Refusal {
    /// Of a peer that is known by now.
    pub(super) fn of(peer: &Peer, reason: HandshakeFailure) -> Self {
        Self { reason, detail: peer.identity().unwrap_or_default().into_owned() }
    }

    pub(super) fn record(self, entrance: &Entrance, address: impl fmt::Display) {
        entrance.stats.count_failed(self.reason);
        let reason = self.reason.name();
        match self.reason {
            HandshakeFailure::PeerLeft | HandshakeFailure::Crowded | HandshakeFailure::Shutdown => {
                tracing::debug!(%address, reason, "no handshake");
            }
            _ if entrance.log_limit.allows() => {
                tracing::info!(%address, reason, detail = self.detail, "handshake refused");
            }
            _ => {}
        }
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
        let reason = tls.map_or(HandshakeFailure::PeerLeft, classify);
        Self { reason, detail: error.to_string() }
    }
}

impl From<rustls::Error> for Refusal {
    fn from(error: rustls::Error) -> Self {
        Self { reason: classify(&error), detail: error.to_string() }
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
