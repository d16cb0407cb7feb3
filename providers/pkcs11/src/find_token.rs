//! A token by its configured name among the slots of a module.

use claviger_provider_api::{Cause, Error, ErrorKind};
use cryptoki::slot::Slot;

use crate::config::{Login, TokenName};
use crate::module::Module;
use crate::token_info::TokenInfo;

/// Looks for the one token of this name. What is there instead is in the error.
pub(crate) fn find_token(
    module: &'static Module,
    name: &TokenName,
    login: Login,
) -> Result<(Slot, TokenInfo), Error> {
    let tokens = module.tokens_in_slots()?;
    let path = module.path().display();
    let mut named: Vec<_> = tokens.iter().filter(|(_, info)| name.is_of(info)).collect();
    // Some modules show an empty slot more, with the serial number of the others.
    if named.iter().any(|(_, info)| info.is_initialised()) {
        named.retain(|(_, info)| info.is_initialised());
    }
    match named[..] {
        [(slot, info)] if info.is_initialised() || login == Login::None => {
            Ok((*slot, info.clone()))
        }
        [_] => {
            let text = format!(
                "the token with {name} in {path} is not initialised: initialise it with the vendor's \
                 tools, or write login = \"none\" if it needs no login"
            );
            Err(Error::needs_operator(Cause::TokenAbsent, text))
        }
        [] => {
            let present = if tokens.is_empty() {
                "none; what it shows depends on `environment` and on who asks".to_owned()
            } else {
                list(&tokens)
            };
            let text = format!("no token with {name} in {path}; present: {present}");
            Err(Error::new(ErrorKind::Unavailable, text).with_cause(Cause::TokenAbsent))
        }
        _ => {
            let (many, present) = (named.len(), list(&tokens));
            let other = match name {
                TokenName::Label(_) => "{ serial = \"…\" }, or give each a label of its own",
                TokenName::Serial(_) => {
                    "{ label = \"…\" }, because their serial numbers are the same"
                }
            };
            let text = format!("{many} tokens have {name}; write token = {other}: {present}");
            Err(Error::new(ErrorKind::OperatorNeeded, text))
        }
    }
}

impl TokenName {
    /// Modules pad labels as they like, and write hexadecimal digits of serial numbers as they like.
    fn is_of(&self, info: &TokenInfo) -> bool {
        match self {
            Self::Label(label) => info.identity.label == label.trim(),
            Self::Serial(serial) => info.identity.serial.eq_ignore_ascii_case(serial.trim()),
        }
    }
}

fn list(tokens: &[(Slot, TokenInfo)]) -> String {
    let name = |(_, info): &(Slot, TokenInfo)| {
        let not = if info.is_initialised() { "" } else { ", not initialised" };
        format!("{}{not}", info.identity)
    };
    tokens.iter().map(name).collect::<Vec<_>>().join(", ")
}
