//! What was found: for people a few lines for each replica, for machines one JSON object.

use std::fmt::Write;
use std::time::Duration;

use claviger_provider_api::Measure;
use serde_json::{Value, json};

use super::Measures;
use super::diagnosis::{Steps, Trouble, steps_with};
use super::examine::{ConfiguredReplica, Finding, Found};
use super::issuers::Issuers;
use crate::cli::failure::Exit;
use crate::cli::unneeded_rights;
use crate::daemon::backends::LatchedToken;
use crate::daemon::config::{Config, State, Version};
use crate::daemon::records::log::is_deceptive;

/// Everything that was found out.
pub(super) struct Report<'a> {
    config: &'a Config,
    /// In the order of the configuration; a disabled version has no findings.
    versions: Vec<Examined<'a>>,
    /// What confines the providers' processes.
    measures: Measures,
    /// Tokens with failed logins.
    latched: Result<Vec<LatchedToken>, String>,
    issuers: Issuers,
}

struct Examined<'a> {
    key: &'a str,
    version: &'a Version,
    replicas: Vec<(&'a ConfiguredReplica<'a>, Finding)>,
}

impl<'a> Report<'a> {
    /// A report on `keys` (all if there are none).
    pub(super) fn new(
        config: &'a Config,
        keys: &[String],
        mut findings: Vec<(&'a ConfiguredReplica<'a>, Finding)>,
        measures: Measures,
        latched: Result<Vec<LatchedToken>, String>,
        issuers: Issuers,
    ) -> Self {
        let mut versions = Vec::new();
        for (key, version) in
            config.keys.iter().filter(|(name, _)| keys.is_empty() || keys.contains(name)).flat_map(
                |(name, key)| key.versions.iter().map(move |version| (name.as_str(), version)),
            )
        {
            let of_version = |(configured, _): &mut (&ConfiguredReplica<'_>, Finding)| {
                configured.key == key && configured.version.version == version.version
            };
            let replicas = findings.extract_if(.., of_version).collect();
            versions.push(Examined { key, version, replicas });
        }
        Self { config, versions, measures, latched, issuers }
    }

    /// As `claviger doctor --help` says.
    pub(super) fn exit_code(&self) -> u8 {
        let of_replicas = self.replicas().flat_map(|(_, finding)| &finding.troubles);
        let exits: Vec<Exit> = of_replicas.map(Trouble::exit).chain(self.issuers.exits()).collect();
        let order = [Exit::Configuration, Exit::Failure, Exit::Unavailable, Exit::TryAgain];
        order.into_iter().find(|exit| exits.contains(exit)).map_or(0, |exit| exit as u8)
    }

    fn replicas(&self) -> impl Iterator<Item = &(&'a ConfiguredReplica<'a>, Finding)> {
        self.versions.iter().flat_map(|version| &version.replicas)
    }

    /// Providers that were asked, each once.
    fn providers(&self) -> impl Iterator<Item = (&'a str, &'static str, bool)> {
        let asked: std::collections::BTreeSet<&str> =
            self.replicas().map(|(configured, _)| configured.replica.provider.as_str()).collect();
        let config = self.config;
        config.providers.iter().filter(move |(name, _)| asked.contains(name.as_str())).map(
            |(name, provider)| {
                (name.as_str(), provider.config.type_name(), provider.config.is_hardware())
            },
        )
    }

    /// Whether a replica of this provider found no room: then its quota is worth a line.
    fn is_throttled(&self, provider: &str) -> bool {
        let mut its =
            self.replicas().filter(|(configured, _)| configured.replica.provider == provider);
        its.any(|(_, finding)| finding.troubles.iter().any(Trouble::is_throttled))
    }

    /// What the backends of a provider's type allow by default.
    fn quota(&self, provider: &str) -> &'static str {
        self.config.providers[provider].config.provider_type().quota
    }

    /// For people.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for examined in &self.versions {
            // Writing to a String does not fail.
            let _ = examined.write(&mut text);
        }
        for (name, type_name, _) in self.providers().filter(|(name, ..)| self.is_throttled(name)) {
            let quota = self.quota(name);
            let _ = writeln!(text, "quota of {name} ({type_name}): {quota}");
        }
        for (name, measures) in &self.measures {
            for (in_force, what) in [(true, "confined"), (false, "NOT CONFINED")] {
                let of = measures.iter().filter(|measure| measure.in_force == in_force);
                let of: Vec<String> = of.map(|measure| clean(&measure.to_string())).collect();
                if !of.is_empty() {
                    let _ = writeln!(text, "the module of {name} is {what}: {}", of.join("; "));
                }
            }
        }
        let _ = self.issuers.write(&mut text);
        match &self.latched {
            Ok(tokens) => {
                for LatchedToken { serial, label, is_shut, is_exhausted } in tokens {
                    let what = if *is_exhausted {
                        "no login until `claviger pin clear`, whatever its PIN file holds"
                    } else if *is_shut {
                        "no login until its PIN file holds another PIN, or `claviger pin clear`"
                    } else {
                        "a login to it did not end; the same PIN is tried once more"
                    };
                    let (label, serial) = (clean(label), clean(serial));
                    let _ = writeln!(
                        text,
                        "PIN latch of token {label:?} (serial number {serial:?}): {what}"
                    );
                }
            }
            Err(error) => {
                let _ = writeln!(text, "PIN latches cannot be read: {}", clean(error));
            }
        }
        let all = self.replicas().count();
        let sound = self.replicas().filter(|(_, finding)| finding.is_sound()).count();
        let replicas = if all == 1 { "replica" } else { "replicas" };
        let _ = write!(text, "{all} {replicas} asked: {sound} sound, {} failing", all - sound);
        text
    }

    /// For machines.
    pub(super) fn to_json(&self) -> Value {
        let sound = self.replicas().filter(|(_, finding)| finding.is_sound()).count();
        let asked = self.replicas().count();
        let mut keys: Vec<Value> = Vec::new();
        for examined in &self.versions {
            match keys.last_mut().filter(|key| key["key"] == examined.key) {
                Some(key) => key["versions"].as_array_mut().into_iter().for_each(|versions| {
                    versions.push(examined.to_json());
                }),
                None => keys.push(json!({ "key": examined.key, "versions": [examined.to_json()] })),
            }
        }
        let providers: Vec<Value> = self
            .providers()
            .map(|(name, type_name, hardware)| {
                let quota = self.quota(name);
                let measure = |measure: &Measure| {
                    let Measure { name, in_force, text } = measure;
                    json!({ "name": name, "in_force": in_force, "text": text })
                };
                let measures = self.measures.get(name).into_iter().flatten().map(measure);
                json!({
                    "provider": name,
                    "type": type_name,
                    "hardware": hardware,
                    "quota": quota,
                    "measures": measures.collect::<Vec<_>>(),
                })
            })
            .collect();
        let latched = self.latched.as_ref().ok().map(|tokens| {
            let token = |token: &LatchedToken| {
                let LatchedToken { serial, label, is_shut, .. } = token;
                json!({ "serial": serial, "label": label, "shut": is_shut })
            };
            tokens.iter().map(token).collect::<Vec<_>>()
        });
        json!({
            "ok": asked == sound && self.issuers.exits().next().is_none(),
            "exit_code": self.exit_code(),
            "file": self.config.path.display().to_string(),
            "replicas": { "asked": asked, "sound": sound, "failing": asked - sound },
            "keys": keys,
            "providers": providers,
            "issuers": self.issuers.to_json(),
            "latched_tokens": latched,
        })
    }
}

impl Examined<'_> {
    /// Whether all replicas have the same public key; none while one of them is not known.
    fn agree(&self) -> Option<bool> {
        let mut hashes = self.replicas.iter().map(|(_, f)| f.found.as_ref().map(|f| f.sha256));
        let known: Vec<[u8; 32]> = hashes.clone().flatten().collect();
        if known.windows(2).any(|pair| pair[0] != pair[1]) {
            return Some(false);
        }
        (!self.replicas.is_empty() && hashes.all(|hash| hash.is_some())).then_some(true)
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        let Version { version, state, public_key_sha256, .. } = self.version;
        let pin =
            public_key_sha256.map_or("not pinned".into(), |p| format!("pinned {}", hex::encode(p)));
        writeln!(text, "{} version {version}, {}, {pin}", self.key, name(*state))?;
        if *state == State::Disabled {
            return writeln!(text, "  not asked");
        }
        for (configured, finding) in &self.replicas {
            let verdict = if finding.is_sound() { "ok  " } else { "FAIL" };
            let replica = configured.replica;
            writeln!(text, "  {verdict}  {}  {}", replica.provider, clean(&replica.locator))?;
            if let Some(found) = &finding.found {
                writeln!(text, "        {}", found.words())?;
                if let Some(note) = unneeded_rights::note(&found.unneeded_rights) {
                    writeln!(text, "        note: {note}")?;
                }
            }
            for trouble in &finding.troubles {
                let said = clean(&trouble.said);
                writeln!(text, "        {}: {said}", trouble.diagnosis.name())?;
                writeln!(text, "        do: {}", trouble.diagnosis.advice())?;
            }
            if !finding.is_sound() {
                writeln!(text, "        {}", words_of(steps(finding)))?;
            }
        }
        match self.agree() {
            Some(true) if self.replicas.len() > 1 => writeln!(text, "  the replicas agree"),
            Some(false) => writeln!(text, "  THE REPLICAS DO NOT AGREE: they hold different keys"),
            None if self.replicas.len() > 1 => {
                writeln!(text, "  whether the replicas agree is not known")
            }
            Some(true) | None => Ok(()),
        }
    }

    fn to_json(&self) -> Value {
        let Version { version, state, algorithms, sign_algorithms, public_key_sha256, .. } =
            self.version;
        json!({
            "version": version,
            "state": name(*state),
            "algorithms": algorithms,
            "sign_algorithms": sign_algorithms,
            "pinned_sha256": public_key_sha256.map(hex::encode),
            "replicas_agree": self.agree(),
            "replicas": self.replicas.iter().map(|(configured, f)| replica_json(configured, f)).collect::<Vec<_>>(),
        })
    }
}

impl Found {
    fn words(&self) -> String {
        let mut words = vec![format!("RSA-{}", self.bits)];
        words.extend(self.proofs.iter().map(|(algorithm, proof)| match proof {
            Ok(()) => format!("{algorithm} proven"),
            Err(_) => format!("{algorithm} NOT PROVEN"),
        }));
        words.push(
            match self.extractable {
                Some(false) => "not extractable",
                Some(true) => "EXTRACTABLE",
                None => "extractable or not: not told",
            }
            .to_owned(),
        );
        if let (Some(min), Some(median)) = (self.unwraps.first(), median(&self.unwraps)) {
            let of = self.unwraps.len();
            words.push(format!("unwrap {min:.1?} at best, {median:.1?} median of {of}"));
        }
        words.join("; ")
    }
}

fn replica_json(configured: &ConfiguredReplica<'_>, finding: &Finding) -> Value {
    let [reachable, authenticated, key_found, proven] = steps(finding);
    let found = finding.found.as_ref();
    let pin_matches = match (found, configured.version.public_key_sha256) {
        (Some(found), Some(pin)) => Some(found.sha256 == pin),
        _ => finding.holds_another_key().then_some(false),
    };
    let trouble = |trouble: &Trouble| {
        json!({
            "diagnosis": trouble.diagnosis.name(),
            "reason": trouble.reason(),
            "said": trouble.said,
            "do": trouble.diagnosis.advice(),
            "backend_request_id": trouble.backend_request_id,
        })
    };
    let proof = |(algorithm, proof): &(&str, Result<(), claviger_provider_api::Error>)| {
        let said = proof.as_ref().err().map(ToString::to_string);
        json!({ "algorithm": algorithm, "proven": said.is_none(), "said": said })
    };
    json!({
        "provider": configured.replica.provider,
        "locator": configured.replica.locator,
        "ok": finding.is_sound(),
        "reachable": reachable,
        "authenticated": authenticated,
        "key_found": key_found,
        "proven": proven,
        "pin_matches": pin_matches,
        "modulus_bits": found.map(|found| found.bits),
        "public_key_sha256": found.map(|found| hex::encode(found.sha256)),
        "extractable": found.and_then(|found| found.extractable),
        "unneeded_rights": found.map_or(&[][..], |found| &found.unneeded_rights),
        "algorithms": found.map_or(Vec::new(), |found| found.proofs.iter().map(proof).collect()),
        "unwrap_ms": found.and_then(|found| {
            let (min, median) = (found.unwraps.first()?, median(&found.unwraps)?);
            Some(json!({
                "min": milliseconds(*min),
                "median": milliseconds(median),
                "canaries": found.unwraps.len(),
            }))
        }),
        "took_ms": milliseconds(finding.took),
        "troubles": finding.troubles.iter().map(trouble).collect::<Vec<_>>(),
    })
}

/// How far a replica got, whatever is wrong with it: no is more than not known, and that than yes.
fn steps(finding: &Finding) -> Steps {
    let mut steps = [Some(true); 4];
    if finding.found.is_none() {
        // Nothing was tried with a key that did not open.
        steps[3] = None;
    }
    for trouble in &finding.troubles {
        for (step, of_trouble) in steps.iter_mut().zip(steps_with(trouble.diagnosis)) {
            *step = match (*step, of_trouble) {
                (Some(false), _) | (_, Some(false)) => Some(false),
                (None, _) | (_, None) => None,
                (Some(true), Some(true)) => Some(true),
            };
        }
    }
    steps
}

fn words_of(steps: Steps) -> String {
    let names = ["reached", "logged in", "key found", "proven"];
    let word = |step: Option<bool>| step.map_or("?", |yes| if yes { "yes" } else { "no" });
    let each = names.iter().zip(steps).map(|(name, step)| format!("{name}: {}", word(step)));
    each.collect::<Vec<_>>().join(", ")
}

fn median(sorted: &[Duration]) -> Option<Duration> {
    sorted.get(sorted.len() / 2).copied()
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

fn name(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::UnwrapOnly => "unwrap-only",
        State::Disabled => "disabled",
    }
}

/// What a backend said, fit for a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().map(|c| if is_deceptive(c) { '?' } else { c }).collect()
}
