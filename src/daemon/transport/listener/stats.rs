//! What happens to connections, counted: plain atomics that metrics read.

use std::sync::atomic::{AtomicU64, Ordering};

/// What happened to connections since the start.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    accepted: AtomicU64,
    refused_at_cap: AtomicU64,
    accept_errors: AtomicU64,
    handshakes: AtomicU64,
    open: AtomicU64,
    failures: [AtomicU64; HandshakeFailure::ALL.len()],
    cuts: [AtomicU64; Cut::ALL.len()],
    unread: AtomicU64,
}

/// Why a connection did not get as far as its first request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeFailure {
    /// It took longer than allowed.
    Timeout,
    /// It took long while others waited for its place.
    Stalled,
    /// The peer went away: a port scan, a load balancer's check, or a client that does not trust us.
    PeerLeft,
    /// The peer refused our certificate.
    RefusedUs,
    /// No version, key exchange, signature or application protocol in common.
    Incompatible,
    /// No client certificate.
    NoCertificate,
    /// It chains to no CA of ours.
    UnknownIssuer,
    /// It has expired or is not valid yet.
    NotValidNow,
    /// It is revoked.
    Revoked,
    /// Its CA's CRL is missing, or past its grace.
    RevocationUnknown,
    /// Any other fault of the certificate: purpose, signature, constraints, encoding.
    BadCertificate,
    /// The peer has as many connections as one caller may.
    TooMany,
    /// It had sent nothing yet when room was needed.
    Crowded,
    /// Anything else that is not TLS as it should be.
    Protocol,
    /// The daemon ends.
    Shutdown,
}

/// Why a connection that served requests was ended by us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    /// It reached its maximum age, was asked to go and did not leave in time.
    Age,
    /// Its certificate expired.
    Expired,
    /// Its certificate no longer verifies: the CAs or CRLs have changed.
    NotTrusted,
    /// Its peer is on the list of denied callers.
    Denied,
    /// It opened and then sent no HTTP/2.
    Silent,
    /// It left an answer unread until after the call's deadline.
    Unread,
    /// It had no call in flight when room was needed, and its peer had the most connections.
    Crowded,
    /// The daemon ends, and it did not leave in time.
    Shutdown,
}

impl HandshakeFailure {
    /// Every reason, for metrics.
    pub const ALL: [Self; 15] = [
        Self::Timeout,
        Self::Stalled,
        Self::PeerLeft,
        Self::RefusedUs,
        Self::Incompatible,
        Self::NoCertificate,
        Self::UnknownIssuer,
        Self::NotValidNow,
        Self::Revoked,
        Self::RevocationUnknown,
        Self::BadCertificate,
        Self::TooMany,
        Self::Crowded,
        Self::Protocol,
        Self::Shutdown,
    ];

    /// The word in metrics and log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Stalled => "stalled",
            Self::PeerLeft => "peer_left",
            Self::RefusedUs => "refused_us",
            Self::Incompatible => "incompatible",
            Self::NoCertificate => "no_certificate",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NotValidNow => "not_valid_now",
            Self::Revoked => "revoked",
            Self::RevocationUnknown => "revocation_unknown",
            Self::BadCertificate => "bad_certificate",
            Self::TooMany => "too_many",
            Self::Crowded => "crowded",
            Self::Protocol => "protocol",
            Self::Shutdown => "shutdown",
        }
    }
}

impl Cut {
    /// Every reason, for metrics.
    pub const ALL: [Self; 8] = [
        Self::Age,
        Self::Expired,
        Self::NotTrusted,
        Self::Denied,
        Self::Silent,
        Self::Unread,
        Self::Crowded,
        Self::Shutdown,
    ];

    /// The word in metrics and log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Expired => "expired",
            Self::NotTrusted => "not_trusted",
            Self::Denied => "denied",
            Self::Silent => "silent",
            Self::Unread => "unread",
            Self::Crowded => "crowded",
            Self::Shutdown => "shutdown",
        }
    }
}

impl ConnectionStats {
    /// Connections open now, those in their handshake included.
    pub fn open(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }

    /// Connections accepted.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Connections closed at accept, because as many as allowed were open, in all or in handshakes
    /// of their address.
    pub fn refused_at_cap(&self) -> u64 {
        self.refused_at_cap.load(Ordering::Relaxed)
    }

    /// Times that the system refused to accept, for want of file descriptors for example.
    pub fn accept_errors(&self) -> u64 {
        self.accept_errors.load(Ordering::Relaxed)
    }

    /// TLS handshakes that succeeded.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Handshakes that failed for this reason.
    pub fn failed(&self, reason: HandshakeFailure) -> u64 {
        self.failures[reason as usize].load(Ordering::Relaxed)
    }

    /// Connections that were ended for this reason.
    pub fn cut(&self, reason: Cut) -> u64 {
        self.cuts[reason as usize].load(Ordering::Relaxed)
    }

    /// Answers whose stream was reset, because the peer did not take them in time.
    pub fn unread(&self) -> u64 {
        self.unread.load(Ordering::Relaxed)
    }

    pub(super) fn count_unread(&self) {
        self.unread.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_accepted(&self) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_refused_at_cap(&self) {
        self.refused_at_cap.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_handshake(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_failed(&self, reason: HandshakeFailure) {
        self.failures[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_cut(&self, reason: Cut) {
        self.cuts[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_open(&self, open: usize) {
        self.open.store(open as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter_and_word() {
        let stats = ConnectionStats::default();
        for (count, reason) in HandshakeFailure::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, count);
            stats.count_failed(reason);
            assert_eq!(stats.failed(reason), 1, "{}", reason.name());
        }
        for (count, reason) in Cut::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, count);
            stats.count_cut(reason);
            assert_eq!(stats.cut(reason), 1, "{}", reason.name());
        }
        let mut words: Vec<_> = HandshakeFailure::ALL.map(HandshakeFailure::name).into();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), HandshakeFailure::ALL.len());
    }
}
