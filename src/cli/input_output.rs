//! Bytes from stdin or a file and to stdout, without copies left behind and never to a terminal by accident.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::failure::{self, Exit, Failure};

/// The most that is read where a whole value is expected; far above the longest of them.
const MAX_INPUT: usize = 64 * 1024;

/// How bytes come in and go out.
#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct BytesArgs {
    /// Base64 text in and out
    #[arg(long)]
    base64: bool,
    /// Base64 text in
    #[arg(long)]
    base64_in: bool,
    /// Base64 text out
    #[arg(long)]
    base64_out: bool,
    /// Write bytes even to a terminal
    #[arg(long)]
    force: bool,
}

/// How bytes go out.
#[derive(Args, Clone, Copy, Debug)]
pub struct OutputArgs {
    /// Write Base64 text instead of bytes
    #[arg(long)]
    pub base64: bool,
    /// Write bytes even to a terminal
    #[arg(long)]
    pub force: bool,
}

impl BytesArgs {
    /// The half that is about the output.
    pub fn output(&self) -> OutputArgs {
        OutputArgs { base64: self.base64 || self.base64_out, force: self.force }
    }

    /// One value as a file holds it; `what` names it in errors.
    pub fn decoded(&self, content: Vec<u8>, what: &str) -> Result<Vec<u8>, Failure> {
        let is_text = self.base64 || self.base64_in;
        let value = if is_text { decode(&content, what)?.to_vec() } else { content };
        if value.is_empty() {
            return Err(Failure::new(Exit::Data, format!("holds no {what}: it is empty")));
        }
        Ok(value)
    }

    /// Reads one value from `file`, or from stdin; `what` names it in errors.
    pub fn read(&self, file: Option<&Path>, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let input = Input::open(file, what)?;
        let content = input.read_all(what)?;
        let value = if self.base64 || self.base64_in { decode(&content, what)? } else { content };
        if value.is_empty() {
            let message = format!("{} holds no {what}: it is empty", input.name);
            return Err(Failure::new(Exit::Data, message));
        }
        Ok(value)
    }
}

impl OutputArgs {
    /// Refuses before anything is done what would garble a terminal.
    pub fn check(self, json: bool) -> Result<(), Failure> {
        if json { Ok(()) } else { self.allow(io::stdout().is_terminal()) }
    }

    fn allow(self, terminal: bool) -> Result<(), Failure> {
        if !terminal || self.base64 || self.force {
            return Ok(());
        }
        Err(Failure::new(Exit::Usage, "the result is bytes, and stdout is a terminal")
            .advise("Redirect stdout, or add --base64 (text) or --force."))
    }

    /// One value as it goes into a file.
    pub fn encoded(self, bytes: &[u8]) -> Vec<u8> {
        if self.base64 { format!("{}\n", *encode(bytes)).into_bytes() } else { bytes.to_vec() }
    }

    /// Writes one value to stdout.
    pub fn write(self, bytes: &[u8]) -> Result<(), Failure> {
        if self.base64 { print(&encode(bytes)) } else { write(bytes) }
    }
}

/// Base64 in a buffer that is zeroed.
pub fn encode(bytes: &[u8]) -> Zeroizing<String> {
    // `encode` allocates once, in the right size.
    Zeroizing::new(STANDARD.encode(bytes))
}

/// PEM (RFC 7468): lines of 64 characters between two that name the kind.
pub fn pem(label: &str, der: &[u8]) -> String {
    let text = encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// Decodes Base64; blanks and line ends do not count.
pub fn decode(text: &[u8], what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let mut packed = Zeroizing::new(Vec::with_capacity(text.len()));
    packed.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let mut bytes = Zeroizing::new(vec![0; base64::decoded_len_estimate(packed.len())]);
    let len = STANDARD
        .decode_slice(packed.as_slice(), &mut bytes)
        .map_err(|_| Failure::new(Exit::Data, format!("the {what} is not Base64 (RFC 4648)")))?;
    bytes.truncate(len);
    Ok(bytes)
}

/// Hands `file`, or stdin, to `take`, piece by piece, until it ends; `what` names it in errors.
pub fn each_piece(
    file: Option<&Path>,
    what: &str,
    mut take: impl FnMut(&[u8]),
) -> Result<(), Failure> {
    let input = Input::open(file, what)?;
    let mut buffer = Zeroizing::new(vec![0; MAX_INPUT]);
    loop {
        match input.read_some(&mut buffer)? {
            0 => return Ok(()),
            len => take(&buffer[..len]),
        }
    }
}

/// Writes a line of text, or a JSON object, to stdout.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut line = Zeroizing::new(Vec::with_capacity(text.len() + 1));
    line.extend_from_slice(text.as_bytes());
    line.push(b'\n');
    write(&line)
}

/// Writes to stdout itself: the standard library's buffer would keep a copy.
pub fn write(mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        match rustix::io::write(io::stdout(), bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::INTR) => {}
            Err(Errno::PIPE) => return Err(Failure::closed()),
            Err(error) => {
                return Err(Failure::new(
                    Exit::Failure,
                    format!("cannot write to stdout: {error}"),
                ));
            }
        }
    }
    Ok(())
}

/// Where a value or a message comes from.
struct Input {
    /// None: stdin.
    file: Option<File>,
    /// In errors.
    name: String,
}

impl Input {
    /// `-` is stdin, as is no file.
    fn open(file: Option<&Path>, what: &str) -> Result<Self, Failure> {
        let Some(path) = file.filter(|path| *path != Path::new("-")) else {
            hint_at_a_terminal();
            return Ok(Self { file: None, name: "stdin".to_owned() });
        };
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| {
            Failure::new(Exit::Usage, format!("{name}: cannot read the {what}: {error}"))
        })?;
        Ok(Self { file: Some(file), name })
    }

    fn read_all(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        // In full size at once: a buffer that grows would leave copies behind.
        let mut buffer = Zeroizing::new(vec![0; MAX_INPUT + 1]);
        let mut filled = 0;
        loop {
            match self.read_some(&mut buffer[filled..])? {
                0 => break,
                len => filled += len,
            }
            if filled > MAX_INPUT {
                let Self { name, .. } = self;
                let message =
                    format!("{name} holds more than {MAX_INPUT} bytes: that is no {what}");
                return Err(Failure::new(Exit::Data, message));
            }
        }
        buffer.truncate(filled);
        Ok(buffer)
    }

    fn read_some(&self, buffer: &mut [u8]) -> Result<usize, Failure> {
        loop {
            let read = match &self.file {
                Some(file) => rustix::io::read(file, &mut *buffer),
                None => rustix::io::read(io::stdin(), &mut *buffer),
            };
            match read {
                Ok(len) => return Ok(len),
                Err(Errno::INTR) => {}
                Err(error) => {
                    let message = format!("cannot read {}: {error}", self.name);
                    return Err(Failure::new(Exit::Failure, message));
                }
            }
        }
    }
}

fn hint_at_a_terminal() {
    if io::stdin().is_terminal() {
        failure::tell("reading from the terminal; end with Ctrl-D");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_text_unless_bytes_are_forced_on_it() {
        let args = |base64, force| OutputArgs { base64, force };
        assert!(args(false, false).allow(true).is_err());
        assert!(args(true, false).allow(true).is_ok());
        assert!(args(false, true).allow(true).is_ok());
        assert!(args(false, false).allow(false).is_ok());
    }

    #[test]
    fn pem_lines_have_64_characters() {
        let pem = pem("PUBLIC KEY", &[7; 50]);
        let lines: Vec<_> = pem.lines().collect();
        assert_eq!(lines[0], "-----BEGIN PUBLIC KEY-----");
        assert_eq!((lines[1].len(), lines[2].len(), lines.len()), (64, 4, 4));
        assert!(pem.ends_with("-----END PUBLIC KEY-----\n"));
    }

    #[test]
    fn base64_reads_back_across_line_ends() {
        let bytes: Vec<u8> = (0..=255).collect();
        let text = encode(&bytes);
        let (left, right) = text.split_at(76);
        let wrapped = format!("{left}\r\n {right}\n");
        assert_eq!(*decode(wrapped.as_bytes(), "value").unwrap(), bytes);
        assert!(decode(b"no base64!", "value").is_err());
        assert!(decode(b"", "value").unwrap().is_empty());
    }
}
