//! What `claviger config pin` found and wrote: for people, for machines, and between root's process and
//! that of the daemon's user.

use std::fmt::Write;

use serde_json::{Value, json};

use super::pinned_keys::{Answers, Pin, PinError};
use crate::daemon::config::Config;

/// What was found in the backends, and whether the file has it.
pub(super) struct Report<'a> {
    config: &'a Config,
    answers: &'a Answers,
    /// Why the file does not have what was found.
    not_written: Option<PinError>,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        config: &'a Config,
        answers: &'a Answers,
        not_written: Option<PinError>,
    ) -> Self {
        Self { config, answers, not_written }
    }

    /// A line for each hash, what to do with it, and the file's state.
    pub(super) fn to_text(&self) -> String {
        let Answers { new, confirmed, .. } = self.answers;
        let word = if self.not_written.is_some() { "found" } else { "pinned" };
        let line = |word: &str, pin: &Pin| {
            format!("{word}: {}: {}\n", words(pin), hex::encode(pin.sha256))
        };
        let mut text: String = confirmed.iter().map(|pin| line("unchanged", pin)).collect();
        text.extend(new.iter().map(|pin| line(word, pin)));
        let file = self.config.path.display();
        // Writing to a String does not fail.
        let _ = match &self.not_written {
            None if new.is_empty() => {
                let all = "every version that may be used has its pin";
                return text + &format!("{file} is unchanged: {all}");
            }
            None => writeln!(text, "{file} has {} more public_key_sha256.", new.len()),
            Some(reason) => writeln!(text, "{reason}\n{}", self.to_add()),
        };
        text += "Confirm each hash out of band with the person who made the key, before `serve` uses it:\n";
        text += "  openssl pkey -pubin -in PUBLIC_KEY.pem -outform DER | sha256sum";
        text
    }

    /// As one JSON object: `pinned` is in the file now, `found` is not.
    pub(super) fn to_json(&self) -> Value {
        let Answers { new, confirmed, silent, notes } = self.answers;
        let (pinned, found): (&[Pin], &[Pin]) =
            if self.not_written.is_some() { (&[], new) } else { (new, &[]) };
        let found: Vec<Value> = found.iter().map(|pin| self.found_as_json(pin)).collect();
        json!({
            "ok": true,
            "pinned": pins_as_json(pinned),
            "found": found,
            "unchanged": pins_as_json(confirmed),
            "silent": silent,
            "notes": notes,
            "not_written": self.not_written.as_ref().map(ToString::to_string),
        })
    }

    fn found_as_json(&self, pin: &Pin) -> Value {
        let mut found = pin_as_json(pin);
        found["file"] = self.config.path.display().to_string().into();
        found["below_line"] = self.config.line_of_version(&pin.key, pin.version).into();
        found["line"] = line_to_add(pin).into();
        found
    }

    /// Each line that is missing, and where.
    fn to_add(&self) -> String {
        let mut text = "Run it as root (sudo claviger config pin), or add by hand:".to_owned();
        for pin in &self.answers.new {
            let Pin { key, version, .. } = pin;
            let place = match self.config.line_of_version(key, *version) {
                Some(line) => {
                    format!("{}, in the table at line {line}", self.config.path.display())
                }
                None => format!(
                    "{}, in the table of {key} version {version}",
                    self.config.path.display()
                ),
            };
            let _ = write!(text, "\n  {place}:\n    {}", line_to_add(pin));
        }
        text
    }
}

fn line_to_add(pin: &Pin) -> String {
    format!("public_key_sha256 = \"{}\"", hex::encode(pin.sha256))
}

fn words(pin: &Pin) -> String {
    let Pin { key, version, bits, replicas, .. } = pin;
    let replicas =
        if *replicas == 1 { "1 replica".to_owned() } else { format!("{replicas} replicas") };
    format!("{key} version {version}, RSA-{bits}, {replicas}")
}

fn pin_as_json(pin: &Pin) -> Value {
    json!({
        "key": pin.key,
        "version": pin.version,
        "bits": pin.bits,
        "replicas": pin.replicas,
        "public_key_sha256": hex::encode(pin.sha256),
    })
}

fn pins_as_json(pins: &[Pin]) -> Value {
    pins.iter().map(pin_as_json).collect()
}

/// What was found, from the process of the daemon's user to that of root.
pub(super) fn to_wire(answers: &Answers) -> Value {
    json!({
        "new": pins_as_json(&answers.new),
        "confirmed": pins_as_json(&answers.confirmed),
        "silent": answers.silent,
        "notes": answers.notes,
    })
}

/// What [`to_wire`] made.
pub(super) fn from_wire(bytes: &[u8]) -> Result<Answers, serde_json::Error> {
    let answers: Wire = serde_json::from_slice(bytes)?;
    let pins = |pins: Vec<WirePin>| pins.into_iter().map(TryInto::try_into).collect();
    let Wire { new, confirmed, silent, notes } = answers;
    let (new, confirmed): (Result<_, _>, Result<_, _>) = (pins(new), pins(confirmed));
    Ok(Answers { new: new?, confirmed: confirmed?, silent, notes })
}

#[derive(serde::Deserialize)]
struct Wire {
    new: Vec<WirePin>,
    confirmed: Vec<WirePin>,
    silent: Vec<String>,
    notes: Vec<String>,
}

#[derive(serde::Deserialize)]
struct WirePin {
    key: String,
    version: u32,
    bits: usize,
    replicas: usize,
    public_key_sha256: String,
}

impl TryFrom<WirePin> for Pin {
    type Error = serde_json::Error;

    fn try_from(pin: WirePin) -> Result<Self, Self::Error> {
        let mut sha256 = [0; 32];
        hex::decode_to_slice(&pin.public_key_sha256, &mut sha256)
            .map_err(<serde_json::Error as serde::de::Error>::custom)?;
        let WirePin { key, version, bits, replicas, .. } = pin;
        Ok(Self { key, version, bits, replicas, sha256 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin() -> Pin {
        Pin { key: "a".to_owned(), version: 2, bits: 3072, replicas: 1, sha256: [7; 32] }
    }

    #[test]
    fn what_the_daemons_user_found_reaches_root_unchanged() {
        let silent = vec!["b version 1: no answer".to_owned()];
        let notes = vec!["a in provider b: its backend also allows CKA_SIGN".to_owned()];
        let answers = Answers { new: vec![pin()], confirmed: vec![pin()], silent, notes };
        let wire = to_wire(&answers).to_string();
        assert_eq!(from_wire(wire.as_bytes()).unwrap(), answers);
        assert!(from_wire(wire.replace("0707", "zz").as_bytes()).is_err());
    }

    #[cfg(feature = "software")]
    #[test]
    fn a_hash_that_was_found_and_not_written_comes_with_its_line_and_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claviger.toml");
        let text = "[server]\nlisten = [\"unix:c.sock\"]\n[audit]\noff = true\n[providers.files]\ntype = \"software\"\ndirectory = \"keys\"\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\n[[keys.a.versions]]\nversion = 2\nstate = \"active\"\nreplicas = [{ provider = \"files\", locator = \"a.pem\" }]\n";
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        let answers = Answers { new: vec![pin()], ..Answers::default() };
        let reason = PinError(vec!["it cannot be replaced".to_owned()]);
        let report = Report::new(&config, &answers, Some(reason));
        let line = format!("public_key_sha256 = \"{}\"", "07".repeat(32));
        let json = report.to_json();
        assert_eq!(json["pinned"], json!([]));
        assert_eq!(json["found"][0]["line"], line);
        assert_eq!(json["found"][0]["below_line"], 10);
        let said = report.to_text();
        assert!(said.contains("found: a version 2") && said.contains(&line), "{said}");
        assert!(said.contains("at line 10:"), "{said}");
    }
}
