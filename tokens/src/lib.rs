//! JSON Web Tokens of OpenID Connect issuers: their parts, their signatures, and the issuers' keys.
//!
//! - [`Token`]: a token taken apart, its header judged
//! - [`Claims`]: what it says, each name once; [`Rules`], what is demanded of that
//! - [`Issuer`]: an issuer's keys, fetched again when they are old or a token does not fit them
//! - [`KeySet`]: public keys, from a key set or a PEM file; `discovery`, how they are asked for
//! - [`person`]: which of an issuer's people a configuration means
//! - [`examine`]: an issuer looked at for an operator, its quirks in words
//! - [`approval_nonce`]: what an ID token says that approves a rewrap
//! - [`SignIn`]: a person signs in and gets a token
//! - [`Fault`]: why a token is not good, in a closed set

mod approval;
mod claims;
mod discovery;
mod examination;
mod fault;
mod issuer;
mod key_set;
mod person;
mod rules;
mod sign_in;
mod token;

pub use approval::{APPROVAL_PREFIX, approval_nonce, approval_nonce_of_hash};
pub use claims::{ClaimValue, Claims};
pub use examination::{Examined, Trouble, examine};
pub use fault::{Fault, NotVerified};
pub use issuer::{Issuer, KeySource, Known, Settings};
pub use key_set::{KeySet, KeySetError};
pub use person::{Person, is_person, person};
pub use rules::{ALGORITHMS, Audience, Audiences, Judged, LEEWAY, Rules};
pub use sign_in::{DeviceCode, Granted, Pkce, SignIn, random_text};
pub use token::{MAX_TOKEN_LEN, Token};
