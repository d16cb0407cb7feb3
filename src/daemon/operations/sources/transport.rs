//! The series of connections, of certificates and CRLs, of the list of denied callers, and of issuers.

use std::fmt;
use std::time::SystemTime;

use prometheus_client::encoding::DescriptorEncoder;

use super::Sources;
use crate::daemon::records::metrics::render::{
    counter, gauge, plain_counter, plain_gauge, sample_counter, sample_gauge,
};
use crate::daemon::records::metrics::seconds;
use crate::daemon::transport::listener::{Cut, HandshakeFailure};
use crate::daemon::transport::tokens::Trusted;

impl Sources {
    pub(super) fn connections(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let stats = &self.connections;
        plain_gauge(encoder, "connections", "Open connections", stats.open())?;
        let help = "Connections that were accepted";
        plain_counter(encoder, "connections_accepted", help, stats.accepted())?;
        let help = "Connections closed at once, because as many as allowed were open";
        plain_counter(encoder, "connections_refused", help, stats.refused_at_cap())?;
        let help = "Times that the system refused to accept a connection";
        plain_counter(encoder, "accept_errors", help, stats.accept_errors())?;
        let help = "Connections that served calls and were ended by the daemon";
        let mut cuts = counter(encoder, "connections_cut", help)?;
        for reason in Cut::ALL {
            sample_counter(&mut cuts, &[("reason", reason.name())], stats.cut(reason))?;
        }
        let help = "Answers whose stream was reset, because the peer did not take them in time";
        plain_counter(encoder, "answers_unread", help, stats.unread())?;
        plain_counter(encoder, "handshakes", "TLS handshakes that succeeded", stats.handshakes())?;
        let help = "Connections that did not get as far as their first call";
        let mut failed = counter(encoder, "handshakes_failed", help)?;
        for reason in HandshakeFailure::ALL {
            sample_counter(&mut failed, &[("reason", reason.name())], stats.failed(reason))?;
        }
        Ok(())
    }

    pub(super) fn tls(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(tls) = &self.tls else { return Ok(()) };
        let (done, failed) = tls.reloads();
        let mut reloads =
            counter(encoder, "tls_reloads", "Certificates and CRLs read again, by outcome")?;
        sample_counter(&mut reloads, &[("outcome", "ok")], done)?;
        sample_counter(&mut reloads, &[("outcome", "refused")], failed)?;
        let help =
            "Whether the certificate files cannot be used as they are; older ones are in force";
        plain_gauge(encoder, "tls_stale", help, tls.alarms().reload_failed)?;
        let loaded = tls.load();
        let name = "certificate_not_after_timestamp_seconds";
        let help = "When the server's certificate expires";
        plain_gauge(encoder, name, help, seconds(loaded.not_after()))?;
        let crls = loaded.trust().crls();
        let help = "When a CRL promised its successor";
        let mut next_update = gauge(encoder, "crl_next_update_timestamp_seconds", help)?;
        for (file, at) in &crls {
            sample_gauge(&mut next_update, &[("crl", file.as_str())], seconds(*at))?;
        }
        let help = "Whether a CRL's successor is overdue; connections are refused after crl_grace";
        let mut stale = gauge(encoder, "crl_stale", help)?;
        let now = SystemTime::now();
        for (file, at) in &crls {
            sample_gauge(&mut stale, &[("crl", file.as_str())], *at < now)?;
        }
        Ok(())
    }

    pub(super) fn denied(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Entries of the list of denied callers in force";
        plain_gauge(encoder, "denied_callers", help, self.denied.entries())?;
        let help = "Lists of denied callers put in force since the start";
        plain_counter(encoder, "denied_callers_reloads", help, self.denied.generation())?;
        let help = "Whether the list of denied callers could not be read; the last one is in force";
        plain_gauge(encoder, "denied_callers_stale", help, self.denied.failed())
    }

    /// Nothing where there are no issuers.
    pub(super) fn issuers(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let active = self.active.load();
        let Some(tokens) = active.snapshot.tokens() else { return Ok(()) };
        let label = |trusted: &Trusted| [("issuer", trusted.name.to_string())];
        let help = "Whether the keys of an issuer of tokens are known and not too old";
        let mut ready = gauge(encoder, "issuer_ready", help)?;
        for trusted in tokens.trusted() {
            sample_gauge(&mut ready, &label(trusted), trusted.issuer.known().is_some())?;
        }
        let help = "How long ago the keys of an issuer were fetched";
        let mut age = gauge(encoder, "issuer_keys_age_seconds", help)?;
        for trusted in tokens.trusted() {
            if let (Some(at), _) = trusted.issuer.condition() {
                let seconds = i64::try_from(at.elapsed().as_secs()).unwrap_or(i64::MAX);
                sample_gauge(&mut age, &label(trusted), seconds)?;
            }
        }
        Ok(())
    }
}
