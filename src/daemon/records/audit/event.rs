//! What a line says about the daemon itself: its life, whom it trusts, what alarms, what an operator did.

use std::path::Path;

use claviger_provider_api::Login;

use super::line::Line;
use super::record::{BACKEND_TEXT, IDENTITY, NAME};

/// What happened to the daemon itself.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// The first record of a process.
    Start {
        /// Of the machine's start, which `monotonic_us` counts from; none where the system tells none.
        boot_id: Option<&'a str>,
        /// Of the configuration file.
        config_sha256: &'a [u8; 32],
        /// Who has signed it, where a policy asks for that.
        signers: &'a [String],
    },
    /// A reload took effect.
    Reload {
        /// Of the configuration now in force.
        config_sha256: &'a [u8; 32],
        /// Who has signed it, where a policy asks for that.
        signers: &'a [String],
    },
    /// A reload was refused; the old configuration stays.
    ReloadRefused {
        /// The first thing that was wrong.
        error: &'a str,
    },
    /// A file that decides who is trusted took effect, at the start too, or was refused.
    Trust(Trust<'a>),
    /// What an operator should look at; nothing was refused for it alone.
    Alarm {
        /// Which.
        alarm: Alarm,
        /// The caller whom it is about, by its name in the configuration.
        caller: Option<&'a str>,
        /// The key, by its name in the configuration.
        key: Option<&'a str>,
    },
    /// A replica began or ceased to serve.
    Replica {
        /// Its provider's name in the configuration.
        provider: &'a str,
        /// Where it lives, in the backend's own form.
        locator: &'a str,
        /// `serves`, `fails`, or `diverges`: it is not what the configuration says.
        state: &'static str,
        /// Why it does not serve; none: it serves.
        error: Option<&'a str>,
    },
    /// A provider asked a token for a login.
    Login {
        /// The provider's name in the configuration.
        provider: &'a str,
        /// Which token, and what it said.
        login: &'a Login,
    },
    /// Failed logins began or ceased to keep a token shut.
    PinLatch {
        /// The token's serial number.
        token: &'a str,
        /// Its label; empty where only the serial number is on record.
        label: &'a str,
        /// Whether no PIN is tried until an operator acts.
        is_shut: bool,
    },
    /// An operator had the failed logins of a token forgotten (`claviger pin clear`).
    PinCleared {
        /// The token's serial number.
        token: &'a str,
        /// The user who asked for it.
        uid: u32,
    },
    /// An operator gave a caller's failed unwraps on a key back.
    BudgetReset {
        /// The caller's name in the configuration.
        caller: &'a str,
        /// The key's name in the configuration.
        key: &'a str,
        /// How many there were.
        failed: usize,
        /// The user who asked for it.
        uid: u32,
    },
    /// An operator took a provider out of service, or into it again.
    ProviderDrain {
        /// Its name in the configuration.
        provider: &'a str,
        /// Whether it is out.
        is_drained: bool,
        /// The user who asked for it.
        uid: u32,
    },
    /// The system's clock was set by more than five minutes; this record has the new time.
    ClockStep {
        /// By so much, in seconds.
        seconds: u64,
        /// Forward, or back.
        is_forward: bool,
    },
    /// No new calls from here on.
    Drain,
    /// The last record of a process that ended as it should.
    Stop,
}

/// A file, or a document of an issuer, that decides who is trusted.
#[derive(Clone, Copy, Debug)]
pub struct Trust<'a> {
    /// Which kind of file.
    pub what: Trusted,
    /// The name of a bundle of client CAs, or of an issuer, in the configuration; `None` for the others.
    pub name: Option<&'a str>,
    /// The file, or the URL of the issuer's discovery.
    pub file: &'a Path,
    /// Of its bytes; `None` where it could not be read.
    pub sha256: Option<&'a [u8; 32]>,
    /// Why it was refused, so that the last one stays in force; `None`: it is in force.
    pub error: Option<&'a str>,
}

/// The kinds of files that decide who is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Trusted {
    /// A bundle of client CAs.
    ClientCa,
    /// A certificate revocation list.
    Crl,
    /// The list of denied callers.
    DeniedCallers,
    /// The public keys of an issuer of tokens.
    IssuerKeys,
    /// The server's own certificate.
    ServerCertificate,
}

impl Trusted {
    /// The word in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::ClientCa => "client_ca",
            Self::Crl => "crl",
            Self::DeniedCallers => "denied_callers",
            Self::IssuerKeys => "issuer_keys",
            Self::ServerCertificate => "server_certificate",
        }
    }
}

/// What an operator should look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alarm {
    /// A caller unwraps more than its `unwraps_alarm`.
    MoreUnwrapsThanUsual,
    /// A caller has used up its `failed_unwraps` on a key.
    FailedUnwrapsUsedUp,
    /// One and the same value of a caller fails again and again.
    SameValueAgain,
    /// A caller asks for a value that its grant does not list.
    ValueNotGranted,
    /// The disk of the audit log is nearly full.
    AuditRoomLow,
    /// Only unwrap, rewrap and sign are recorded and answered: the rest of the disk is kept for them.
    AuditReserve,
    /// Another program cut the audit log: lines may be missing.
    AuditCut,
    /// Another program wrote into the audit log.
    AuditWrittenByOthers,
    /// The system's clock was set by more than five minutes; [`Event::ClockStep`] says by how much.
    ClockStep,
}

impl Alarm {
    /// The word in the audit log.
    pub fn name(self) -> &'static str {
        match self {
            Self::MoreUnwrapsThanUsual => "more_unwraps_than_usual",
            Self::FailedUnwrapsUsedUp => "failed_unwraps_used_up",
            Self::SameValueAgain => "same_value_again",
            Self::ValueNotGranted => "value_not_granted",
            Self::AuditRoomLow => "audit_room_low",
            Self::AuditReserve => "audit_reserve",
            Self::AuditCut => "audit_cut",
            Self::AuditWrittenByOthers => "audit_written_by_others",
            Self::ClockStep => "clock_step",
        }
    }
}

impl Event<'_> {
    pub(super) fn write(&self, line: &mut Line<'_>) {
        line.plain("event", self.name());
        match self {
            Self::Start { boot_id, config_sha256, signers } => {
                line.plain("program_version", env!("CARGO_PKG_VERSION"));
                line.some_text("boot_id", *boot_id, NAME);
                line.sha256("config_sha256", Some(config_sha256));
                line.some_texts("signers", signers, NAME);
            }
            Self::Reload { config_sha256, signers } => {
                line.sha256("config_sha256", Some(config_sha256));
                line.some_texts("signers", signers, NAME);
            }
            Self::ReloadRefused { error } => line.text("error", error, BACKEND_TEXT),
            Self::Trust(trust) => trust.write(line),
            Self::Alarm { alarm, caller, key } => {
                line.plain("alarm", alarm.name());
                line.some_text("caller", *caller, NAME);
                line.some_text("key", *key, NAME);
            }
            Self::Replica { provider, locator, state, error } => {
                line.text("provider", provider, NAME);
                line.text("locator", locator, IDENTITY);
                line.plain("state", state);
                line.some_text("error", *error, BACKEND_TEXT);
            }
            Self::Login { provider, login: Login { token, serial, error } } => {
                line.text("provider", provider, NAME);
                line.text("token", serial, NAME);
                line.text("label", token, NAME);
                line.plain("outcome", if error.is_some() { "failed" } else { "ok" });
                line.some_text("error", error.as_deref(), BACKEND_TEXT);
            }
            Self::PinLatch { token, label, is_shut } => {
                line.text("token", token, NAME);
                line.some_text("label", Some(*label).filter(|label| !label.is_empty()), NAME);
                line.plain("state", if *is_shut { "shut" } else { "open" });
            }
            Self::PinCleared { token, uid } => {
                line.text("token", token, NAME);
                line.number("uid", (*uid).into());
            }
            Self::BudgetReset { caller, key, failed, uid } => {
                line.text("caller", caller, NAME);
                line.text("key", key, NAME);
                line.number("failed", *failed as u64);
                line.number("uid", (*uid).into());
            }
            Self::ProviderDrain { provider, is_drained, uid } => {
                line.text("provider", provider, NAME);
                line.plain("state", if *is_drained { "drained" } else { "in_service" });
                line.number("uid", (*uid).into());
            }
            Self::ClockStep { seconds, is_forward } => {
                line.number("seconds", *seconds);
                line.plain("direction", if *is_forward { "forward" } else { "back" });
            }
            Self::Drain | Self::Stop => {}
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Start { .. } => "start",
            Self::Reload { .. } => "reload",
            Self::ReloadRefused { .. } => "reload-refused",
            Self::Trust(_) => "trust",
            Self::Alarm { .. } => "alarm",
            Self::Replica { .. } => "replica",
            Self::Login { .. } => "login",
            Self::PinLatch { .. } => "pin-latch",
            Self::PinCleared { .. } => "pin-cleared",
            Self::BudgetReset { .. } => "budget-reset",
            Self::ProviderDrain { .. } => "provider-drain",
            Self::ClockStep { .. } => "clock-step",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }
}

impl Trust<'_> {
    fn write(&self, line: &mut Line<'_>) {
        line.plain("what", self.what.name());
        line.some_text("name", self.name, NAME);
        line.text("file", &self.file.to_string_lossy(), IDENTITY);
        line.sha256("file_sha256", self.sha256);
        line.plain("outcome", if self.error.is_some() { "refused" } else { "in_force" });
        line.some_text("error", self.error, BACKEND_TEXT);
    }
}
