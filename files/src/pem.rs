//! PEM (RFC 7468): every block of a file with its line, and no block passed over in silence.
//!
//! Taken as they come: text and blank lines around blocks, blanks around lines, CRLF and CR, a byte
//! order mark before any line, base64 lines of any length. Everything that looks like a block and
//! is none is an error with its line.

mod blocks;
mod error;
mod kinds;

pub use blocks::{Block, blocks, encode, encode_secret, is_pem};
pub use error::PemError;
pub use kinds::{Beside, certificates, crls, private_key, private_key_block, public_key};
