//! One of the daemon's keys, as this program may use it, with everything that its objects show.

use claviger_client::KeyVersionState;
use claviger_provider_api::{Algorithm, Algorithms, PublicKey, SignAlgorithms};

use crate::certificate::Certificate;
use crate::config;
use crate::log;

/// A key. Its versions hide behind it: the objects show the newest active one, and the daemon finds
/// out which one a wrapped value belongs to.
#[derive(Debug)]
#[expect(clippy::struct_field_names, reason = "a public key is what it is")]
pub(crate) struct Key {
    /// The number in its objects' handles.
    pub(crate) index: usize,
    /// In the daemon's configuration.
    pub(crate) name: String,
    /// CKA_LABEL.
    pub(crate) label: String,
    /// CKA_ID.
    pub(crate) id: Vec<u8>,
    /// The version that the objects show.
    pub(crate) version: u32,
    /// Its public key.
    pub(crate) public_key: PublicKey,
    /// What the shown version wraps with; none where it may unwrap only.
    pub(crate) wraps: Algorithms,
    /// What one of the versions unwraps with; none where this program may not.
    pub(crate) unwraps: Algorithms,
    /// What the shown version's signatures verify with.
    pub(crate) verifies: SignAlgorithms,
    /// What it signs with; none where this program may not.
    pub(crate) signs: SignAlgorithms,
    /// The lengths in bytes that a wrapped value may have.
    lengths: Vec<usize>,
    /// The versions that unwrap with RSA1_5, with the lengths of what they unwrap; none: the daemon
    /// has not opened it.
    rsa15: Vec<(u32, Option<usize>)>,
    /// A certificate for one of the versions.
    pub(crate) certificate: Option<Certificate>,
}

impl Key {
    /// From what the daemon says and how it is to look; or why it cannot be used yet.
    pub(crate) fn new(
        index: usize,
        look: &config::Key,
        described: &claviger_client::Key,
    ) -> Result<Self, String> {
        let usable = || described.versions.iter().filter(|version| !version.public_key.is_empty());
        let state =
            |wanted| move |version: &&claviger_client::KeyVersion| version.state() == wanted;
        let shown = usable()
            .find(state(KeyVersionState::Active))
            .or_else(|| usable().find(state(KeyVersionState::UnwrapOnly)))
            .ok_or("the daemon has not opened it yet")?;
        let public_key = PublicKey::from_spki(&shown.public_key)
            .map_err(|error| format!("its public key: {error}"))?;
        let enabled = || usable().filter(|version| version.state() != KeyVersionState::Disabled);
        let may = |operation: &str| described.operations.iter().any(|may| may == operation);
        let verifies = parse(&shown.sign_algorithms);
        let is_active = shown.state() == KeyVersionState::Active;
        let length =
            |version: &claviger_client::KeyVersion| version.modulus_bits.div_ceil(8) as usize;
        Ok(Self {
            index,
            name: look.name.clone(),
            label: look.label.clone(),
            id: look.id.clone(),
            version: shown.version,
            wraps: if is_active { parse(&shown.algorithms) } else { Algorithms::EMPTY },
            unwraps: if may("unwrap") {
                enabled()
                    .flat_map(|version| &version.algorithms)
                    .flat_map(|name| name.parse())
                    .collect()
            } else {
                Algorithms::EMPTY
            },
            verifies,
            signs: if may("sign") && is_active { verifies } else { SignAlgorithms::EMPTY },
            lengths: enabled().map(length).collect(),
            rsa15: described
                .versions
                .iter()
                .filter(|version| version.state() != KeyVersionState::Disabled)
                .filter(|version| {
                    parse::<_, Algorithms>(&version.algorithms).contains(Algorithm::Rsa15)
                })
                .map(|version| {
                    let is_open = !version.public_key.is_empty();
                    (version.version, is_open.then(|| length(version)))
                })
                .collect(),
            certificate: certificate(look, shown, enabled()),
            public_key,
        })
    }

    /// Whether a wrapped value of this length can belong to one of the versions.
    pub(crate) fn has_length(&self, length: usize) -> bool {
        self.lengths.contains(&length)
    }

    /// The length of the longest wrapped value; no key material is longer.
    pub(crate) fn max_length(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or_default()
    }

    /// Which version the daemon is to unwrap a value of this length with; none: those that fit.
    /// RSA1_5 is never tried across versions, so it is the only one that can be of this length, else
    /// the shown one where that has RSA1_5.
    pub(crate) fn version_for(&self, algorithm: Algorithm, length: usize) -> Option<u32> {
        if algorithm != Algorithm::Rsa15 {
            return None;
        }
        let mut may = self.rsa15.iter().filter(|(_, other)| other.is_none_or(|it| it == length));
        match (may.next(), may.next()) {
            (Some((only, Some(_))), None) => Some(*only),
            _ => self.rsa15.iter().find(|(it, _)| *it == self.version).map(|(it, _)| *it),
        }
    }
}

/// Algorithms that are known here; a newer daemon may know more.
fn parse<T: std::str::FromStr, S: FromIterator<T>>(names: &[String]) -> S {
    names.iter().filter_map(|name| name.parse().ok()).collect()
}

/// The configured certificate, else the daemon's. One for another key would make programs wrap what
/// cannot be unwrapped: it is not shown.
fn certificate<'a>(
    look: &config::Key,
    shown: &claviger_client::KeyVersion,
    mut versions: impl Iterator<Item = &'a claviger_client::KeyVersion>,
) -> Option<Certificate> {
    let content = match &look.certificate {
        Some(content) => content.as_slice(),
        None if shown.certificate.is_empty() => return None,
        None => &shown.certificate,
    };
    match Certificate::parse(content) {
        Ok(certificate) => {
            let ours = versions.any(|version| certificate.is_for(&version.public_key));
            if !ours {
                log::write(format_args!(
                    "key `{}`: its certificate is for another public key and is not shown; \
                     issue one for this key",
                    look.name
                ));
            }
            ours.then_some(certificate)
        }
        Err(reason) => {
            log::write(format_args!("key `{}`: certificate: {reason}", look.name));
            None
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer;
    use aws_lc_rs::rsa::{KeySize, PrivateDecryptingKey};
    use claviger_client::KeyVersion;
    use std::sync::LazyLock;

    static SPKI: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        key.public_key().as_der().unwrap().as_ref().to_vec()
    });

    /// The public key of every key of the tests.
    pub(crate) fn spki() -> &'static [u8] {
        &SPKI
    }

    /// A key with one active version that unwraps with RSA-OAEP, as the daemon describes it.
    pub(crate) fn described(name: &str) -> claviger_client::Key {
        claviger_client::Key {
            name: name.into(),
            operations: ["unwrap", "read"].map(String::from).into(),
            versions: vec![version(1, KeyVersionState::Active, &["RSA-OAEP"], &[])],
        }
    }

    pub(crate) fn version(
        version: u32,
        state: KeyVersionState,
        algorithms: &[&str],
        sign_algorithms: &[&str],
    ) -> KeyVersion {
        let strings = |names: &[&str]| names.iter().copied().map(String::from).collect();
        KeyVersion {
            version,
            state: state.into(),
            algorithms: strings(algorithms),
            sign_algorithms: strings(sign_algorithms),
            modulus_bits: 2048,
            public_key: spki().to_vec().into(),
            ..KeyVersion::default()
        }
    }

    /// A key of one version with these algorithms that may do everything.
    pub(crate) fn key(algorithms: &[&str], sign_algorithms: &[&str]) -> Key {
        let described = claviger_client::Key {
            name: "user-keys".into(),
            operations: ["wrap", "unwrap", "sign", "verify", "read"].map(String::from).into(),
            versions: vec![version(1, KeyVersionState::Active, algorithms, sign_algorithms)],
        };
        Key::new(0, &config::Key::named("user-keys"), &described).unwrap()
    }

    #[test]
    fn the_objects_show_the_newest_active_version_and_unwrap_with_all() {
        let mut described = described("a");
        let mut longer = version(3, KeyVersionState::UnwrapOnly, &["RSA-OAEP-512", "RSA1_5"], &[]);
        longer.modulus_bits = 3072;
        described.versions = vec![
            longer,
            version(2, KeyVersionState::Active, &["RSA-OAEP-256"], &[]),
            version(1, KeyVersionState::Disabled, &["RSA-OAEP"], &[]),
        ];
        let key = Key::new(0, &config::Key::named("a"), &described).unwrap();
        assert_eq!(key.version, 2);
        assert_eq!(format!("{:?}", key.unwraps), "[RSA-OAEP-256, RSA-OAEP-512, RSA1_5]");
        assert_eq!(format!("{:?}", key.wraps), "[RSA-OAEP-256]");
        assert_eq!((key.max_length(), key.has_length(256), key.has_length(384)), (384, true, true));
        assert!(!key.has_length(255));
    }

    #[test]
    fn pkcs1_values_go_to_the_only_version_of_their_length_else_to_the_shown_one() {
        let version_of = |versions: &[(u32, u32, &str)], algorithm, length| {
            let mut described = described("a");
            let one = |&(number, bits, algorithm): &(u32, u32, &str)| KeyVersion {
                modulus_bits: bits,
                ..version(number, KeyVersionState::Active, &["RSA-OAEP", algorithm], &[])
            };
            described.versions = versions.iter().map(one).collect();
            let key = Key::new(0, &config::Key::named("a"), &described).unwrap();
            key.version_for(algorithm, length)
        };
        let longer = [(2, 3072, "RSA1_5"), (1, 2048, "RSA1_5")];
        assert_eq!(version_of(&longer, Algorithm::Rsa15, 256), Some(1));
        assert_eq!(version_of(&longer, Algorithm::Rsa15, 384), Some(2));
        assert_eq!(version_of(&longer, Algorithm::Rsa15, 512), Some(2));
        assert_eq!(version_of(&longer, Algorithm::RsaOaep, 256), None, "the daemon finds it out");
        let equal = [(3, 2048, "RSA1_5"), (2, 2048, "RSA1_5"), (1, 2048, "RSA1_5")];
        assert_eq!(version_of(&equal, Algorithm::Rsa15, 256), Some(3));
        let given_up = [(2, 2048, "RSA-OAEP-256"), (1, 2048, "RSA1_5")];
        assert_eq!(version_of(&given_up, Algorithm::Rsa15, 256), Some(1));
        let given_up = [(2, 2048, "RSA-OAEP-256"), (1, 3072, "RSA1_5")];
        assert_eq!(version_of(&given_up, Algorithm::Rsa15, 256), None);
    }

    #[test]
    fn a_pkcs1_value_that_may_belong_to_a_version_that_is_not_open_is_left_to_the_daemon() {
        let mut described = described("a");
        let one = |number, state, algorithm| KeyVersion {
            modulus_bits: 2048,
            ..version(number, state, &[algorithm], &[])
        };
        let closed = one(2, KeyVersionState::UnwrapOnly, "RSA1_5");
        described.versions = vec![
            one(3, KeyVersionState::Active, "RSA-OAEP"),
            KeyVersion { public_key: Vec::new().into(), ..closed },
            one(1, KeyVersionState::UnwrapOnly, "RSA1_5"),
        ];
        let key = Key::new(0, &config::Key::named("a"), &described).unwrap();
        assert_eq!(key.version_for(Algorithm::Rsa15, 256), None);
    }

    #[test]
    fn a_key_whose_versions_unwrap_only_neither_wraps_nor_signs() {
        let mut described = described("a");
        described.operations = ["wrap", "unwrap", "sign", "read"].map(String::from).into();
        described.versions =
            vec![version(1, KeyVersionState::UnwrapOnly, &["RSA-OAEP", "RSA1_5"], &["RS256"])];
        let key = Key::new(0, &config::Key::named("a"), &described).unwrap();
        assert!(key.wraps.is_empty() && key.signs.is_empty());
        assert!(!key.unwraps.is_empty() && !key.verifies.is_empty());
        assert_eq!(key.version_for(Algorithm::Rsa15, 256), Some(1));
    }

    #[test]
    fn what_this_program_may_not_do_is_not_offered() {
        let mut described = described("a");
        described.versions = vec![version(1, KeyVersionState::Active, &["RSA-OAEP"], &["RS256"])];
        described.operations = vec!["read".into()];
        let key = Key::new(0, &config::Key::named("a"), &described).unwrap();
        assert!(key.unwraps.is_empty() && key.signs.is_empty());
        assert!(!key.wraps.is_empty() && !key.verifies.is_empty(), "the public half is public");
    }

    #[test]
    fn a_key_that_was_never_opened_says_so() {
        let mut described = described("a");
        described.versions[0].public_key.clear();
        let reason = Key::new(0, &config::Key::named("a"), &described).unwrap_err();
        assert_eq!(reason, "the daemon has not opened it yet");
    }

    #[test]
    fn a_certificate_of_another_key_is_not_shown() {
        let other = rcgen::generate_simple_self_signed(["localhost".into()]).unwrap();
        let mut look = config::Key::named("a");
        look.certificate = Some(other.cert.pem().into_bytes());
        assert!(Key::new(0, &look, &described("a")).unwrap().certificate.is_none());
    }
}
