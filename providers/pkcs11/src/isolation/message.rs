//! What parent and child say to each other.
//!
//! A key is a number that the parent gives it; it stays the same when the process is started anew.

mod conversions;

use std::fmt;

use zeroize::Zeroize;

/// From the daemon.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct ToChild {
    #[prost(oneof = "Request", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    pub(super) request: Option<Request>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Request {
    #[prost(message, tag = "1")]
    Start(Start),
    #[prost(message, tag = "2")]
    Open(Open),
    /// The key with this number.
    #[prost(uint32, tag = "3")]
    Close(u32),
    #[prost(message, tag = "4")]
    Call(Call),
    /// Nothing waits for the answer to the call with this number any more.
    #[prost(uint64, tag = "5")]
    Cancel(u64),
    #[prost(message, tag = "6")]
    Pin(Pin),
    /// The caller of the call with this number has left. The answer is waited for.
    #[prost(uint64, tag = "7")]
    CallerLeft(u64),
    /// [`Start::log_level`] from now on.
    #[prost(uint32, tag = "8")]
    LogLevel(u32),
    #[prost(message, tag = "9")]
    Make(Make),
}

/// The first message.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Start {
    /// The provider's options, as JSON.
    #[prost(string, tag = "1")]
    pub(super) config: String,
    /// The state directory's path.
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) state_dir: Option<Vec<u8>>,
    /// Events above it are not sent: 0 none, 1 errors, …, 5 all.
    #[prost(uint32, tag = "3")]
    pub(super) log_level: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Open {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint32, tag = "2")]
    pub(super) key: u32,
    #[prost(string, tag = "3")]
    pub(super) locator: String,
    /// JWA names.
    #[prost(string, repeated, tag = "4")]
    pub(super) algorithms: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    pub(super) sign_algorithms: Vec<String>,
    /// SHA-256 of the public key that was found before. No private-key operation is tried with another one.
    #[prost(bytes = "vec", optional, tag = "6")]
    pub(super) meant_sha256: Option<Vec<u8>>,
}

/// A key pair to be made or imported. Answered with its public half as bytes, DER.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Make {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    /// By `object` and `id`, both.
    #[prost(string, tag = "2")]
    pub(super) locator: String,
    #[prost(uint32, tag = "3")]
    pub(super) bits: u32,
    #[prost(bool, tag = "4")]
    pub(super) decrypt: bool,
    #[prost(bool, tag = "5")]
    pub(super) sign: bool,
    /// The private key to import, PKCS#8 in DER; none: the token generates one.
    #[prost(bytes = "vec", optional, tag = "6")]
    pub(super) pkcs8: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Call {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    #[prost(uint32, tag = "2")]
    pub(super) key: u32,
    /// The caller's slot.
    #[prost(uint32, tag = "3")]
    pub(super) caller: u32,
    /// How long it is worth to be started, in microseconds from now.
    #[prost(uint64, tag = "4")]
    pub(super) remaining: u64,
    #[prost(oneof = "Asked", tags = "5, 6, 7")]
    pub(super) asked: Option<Asked>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Asked {
    #[prost(message, tag = "5")]
    Unwrap(Unwrap),
    #[prost(message, tag = "6")]
    Sign(Sign),
    #[prost(message, tag = "7")]
    Check(Check),
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Unwrap {
    /// The place in `Algorithm::ALL`.
    #[prost(uint32, tag = "1")]
    pub(super) algorithm: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) wrapped: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) label: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Sign {
    /// The place in `SignAlgorithm::ALL`.
    #[prost(uint32, tag = "1")]
    pub(super) algorithm: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) digest: Vec<u8>,
}

/// A canary, and repairs if it fails.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct Check {}

/// The PIN that the child asked for.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Pin {
    #[prost(oneof = "PinOutcome", tags = "1, 2")]
    pub(super) outcome: Option<PinOutcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum PinOutcome {
    #[prost(bytes = "vec", tag = "1")]
    Pin(Vec<u8>),
    #[prost(message, tag = "2")]
    Failure(Failure),
}

/// From the child.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct FromChild {
    #[prost(oneof = "Event", tags = "1, 2, 3, 4, 5")]
    pub(super) event: Option<Event>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Event {
    /// The answer to `Start`.
    #[prost(message, tag = "1")]
    Ready(Ready),
    #[prost(message, tag = "2")]
    Answer(Answer),
    #[prost(message, tag = "3")]
    Log(Log),
    /// The PIN lies in Vault, and the child has no way there.
    #[prost(message, tag = "4")]
    PinWanted(PinWanted),
    /// The token was asked for a login.
    #[prost(message, tag = "5")]
    Login(Login),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Ready {
    #[prost(message, repeated, tag = "1")]
    pub(super) measures: Vec<Taken>,
}

/// A measure of confinement.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Taken {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    /// Whether it is in force.
    #[prost(bool, tag = "2")]
    pub(super) in_force: bool,
    #[prost(string, tag = "3")]
    pub(super) text: String,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(super) struct PinWanted {}

/// A [`Login`](claviger_provider_api::Login) of the provider contract.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Login {
    #[prost(string, tag = "1")]
    pub(super) token: String,
    #[prost(string, tag = "2")]
    pub(super) serial: String,
    #[prost(string, optional, tag = "3")]
    pub(super) error: Option<String>,
}

/// To an `Open`, a `Call` or a `Make`.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub(super) struct Answer {
    #[prost(uint64, tag = "1")]
    pub(super) id: u64,
    /// How often something of the token was repaired since the process started; with failures and
    /// checks.
    #[prost(uint64, tag = "2")]
    pub(super) repairs: u64,
    #[prost(oneof = "Outcome", tags = "3, 4, 5, 6")]
    pub(super) outcome: Option<Outcome>,
    /// How long a call was in the token's queue, in microseconds.
    #[prost(uint64, tag = "7")]
    pub(super) queued: u64,
}

#[derive(Clone, PartialEq, prost::Oneof)]
#[prost(skip_debug)]
pub(super) enum Outcome {
    /// Key material, a signature, or the public half of a key that was made.
    #[prost(bytes = "vec", tag = "3")]
    Bytes(Vec<u8>),
    #[prost(message, tag = "4")]
    Failure(Failure),
    #[prost(message, tag = "5")]
    Opened(Opened),
    /// The canary came back right.
    #[prost(message, tag = "6")]
    Well(Check),
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Opened {
    #[prost(uint32, tag = "1")]
    pub(super) key: u32,
    /// The public key, DER.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) spki: Vec<u8>,
    /// JWA names of the algorithms with which the token takes a label.
    #[prost(string, repeated, tag = "3")]
    pub(super) labels: Vec<String>,
    #[prost(bool, optional, tag = "4")]
    pub(super) extractable: Option<bool>,
    #[prost(string, repeated, tag = "5")]
    pub(super) unneeded_rights: Vec<String>,
}

/// An [`Error`](claviger_provider_api::Error).
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Failure {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    /// In milliseconds.
    #[prost(uint64, optional, tag = "2")]
    retry_after: Option<u64>,
    #[prost(string, tag = "3")]
    text: String,
    #[prost(string, optional, tag = "4")]
    backend_request_id: Option<String>,
    /// The cause as serde writes it.
    #[prost(string, optional, tag = "5")]
    cause: Option<String>,
    /// In milliseconds.
    #[prost(uint64, optional, tag = "6")]
    next_look: Option<u64>,
    /// Whether a new process may help.
    #[prost(bool, tag = "7")]
    is_of_process: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Internal = 0,
    UnwrapFailed = 1,
    Unavailable = 2,
    Throttled = 3,
    DeadlineExceeded = 4,
    OperatorNeeded = 5,
}

/// An event for the daemon's log.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Log {
    /// 1 error, 2 warn, 3 info, 4 debug, 5 trace.
    #[prost(uint32, tag = "1")]
    pub(super) level: u32,
    #[prost(string, tag = "2")]
    pub(super) text: String,
}

impl ToChild {
    /// Zeroes the PIN or the private key in it.
    pub(super) fn wipe(&mut self) {
        match &mut self.request {
            Some(Request::Pin(Pin { outcome: Some(PinOutcome::Pin(pin)) })) => pin.zeroize(),
            Some(Request::Make(make)) => make.pkcs8.zeroize(),
            _ => {}
        }
    }
}

impl FromChild {
    /// Zeroes the key material in it.
    pub(super) fn wipe(&mut self) {
        if let Some(Event::Answer(Answer { outcome: Some(Outcome::Bytes(bytes)), .. })) =
            &mut self.event
        {
            bytes.zeroize();
        }
    }
}

/// Messages may hold key material or a PIN: only their names are shown.
macro_rules! show_only_the_name {
    ($($message:ident),*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($message))
            }
        }
    )*};
}

show_only_the_name!(
    ToChild, Request, Make, Call, Asked, Unwrap, Sign, Pin, PinOutcome, FromChild, Event, Answer,
    Outcome
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_message_holds_is_never_printed() {
        let outcome = Outcome::Bytes(b"marker".to_vec());
        let answer = Answer { id: 1, repairs: 0, outcome: Some(outcome), queued: 0 };
        let shown = format!("{:?}", FromChild::from(Event::Answer(answer)));
        assert_eq!(shown, "FromChild");
        let pin = Pin { outcome: Some(PinOutcome::Pin(b"marker".to_vec())) };
        assert!(!format!("{pin:?}{:?}", pin.outcome).contains("marker"));
    }
}
