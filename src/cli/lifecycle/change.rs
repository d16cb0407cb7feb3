//! What a command changes in the configuration: as lines to be written by hand, or in the file's text.

use claviger_provider_api::{Algorithm, SignAlgorithm};
use toml_edit::{Array, ArrayOfTables, DocumentMut, InlineTable, Item, Table, Value};

use crate::cli::configuration_file::{self, version_table};
use crate::daemon::config::{Config, Replica, State, joined};

/// A change of the configuration.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// A key that was not there, with its lists and its first version.
    Key(NewKey),
    /// One more version of a key.
    Version(NewVersion),
    /// One more replica of a version.
    Replica { key: String, version: u32, replica: Replica },
    /// Another state of a version.
    State { key: String, version: u32, state: State },
}

/// A key that was not there.
#[derive(Clone, Debug)]
pub(super) struct NewKey {
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) sign_algorithms: Vec<SignAlgorithm>,
    pub(super) first: NewVersion,
}

/// A version that was not there.
#[derive(Clone, Debug)]
pub(super) struct NewVersion {
    pub(super) key: String,
    pub(super) number: u32,
    pub(super) state: State,
    /// Its own lists; none: its key's.
    pub(super) algorithms: Option<Vec<Algorithm>>,
    pub(super) sign_algorithms: Option<Vec<SignAlgorithm>>,
    pub(super) replica: Replica,
    pub(super) public_key_sha256: [u8; 32],
}

impl Change {
    /// The lines to write, and where.
    pub(super) fn lines(&self, config: &Config) -> String {
        match self {
            Self::State { key, version, state } => {
                let line = config.line_of_version(key, *version);
                let line = line.map_or_else(String::new, |line| format!(", line {line}"));
                let table = joined("keys", key);
                let word = word(*state);
                format!(
                    "in [[{table}.versions]] with version = {version}{line}:\nstate = \"{word}\"\n"
                )
            }
            Self::Replica { key, version, replica } => {
                let (table, replica) = (joined("keys", key), in_line(replica));
                format!(
                    "at the end of replicas in [[{table}.versions]] with version = {version}:\n\
                     {replica}\n"
                )
            }
            Self::Key(_) | Self::Version(_) => {
                let mut document = DocumentMut::new();
                self.apply_to_new(&mut document);
                document.to_string().trim_start().to_owned()
            }
        }
    }

    /// Makes the change in the text of a configuration.
    pub(super) fn apply(&self, document: &mut DocumentMut) -> Result<(), String> {
        match self {
            Self::Key(new)
                if document.get("keys").and_then(|k| k.get(&new.first.key)).is_some() =>
            {
                Err(format!("there is a key {} already", new.first.key))
            }
            Self::Key(_) => {
                self.apply_to_new(document);
                Ok(())
            }
            Self::Version(new) => {
                let missing = || format!("the versions of keys.{} were not found", new.key);
                let versions = configuration_file::versions(document, &new.key);
                match versions.ok_or_else(missing)? {
                    Item::ArrayOfTables(tables) => tables.push(new.table()),
                    Item::Value(Value::Array(array)) => array.push(new.table().into_inline_table()),
                    _ => return Err(missing()),
                }
                Ok(())
            }
            Self::Replica { key, version, replica } => {
                let versions = configuration_file::versions(document, key);
                let table = versions.and_then(|versions| version_table(versions, *version));
                let replicas = table.and_then(|table| table.get_mut("replicas"));
                match replicas {
                    Some(Item::ArrayOfTables(tables)) => tables.push(in_line(replica).into_table()),
                    Some(Item::Value(Value::Array(array))) => array.push(in_line(replica)),
                    _ => return Err(format!("the replicas of keys.{key} were not found")),
                }
                Ok(())
            }
            Self::State { key, version, state } => {
                let versions = configuration_file::versions(document, key);
                let table = versions.and_then(|versions| version_table(versions, *version));
                let value =
                    table.and_then(|table| table.get_mut("state")).and_then(Item::as_value_mut);
                let value = value
                    .ok_or_else(|| format!("version {version} of keys.{key} was not found"))?;
                let decor = value.decor().clone();
                *value = Value::from(word(*state));
                *value.decor_mut() = decor;
                Ok(())
            }
        }
    }

    /// Whether a configuration says it.
    pub(super) fn is_in(&self, config: &Config) -> bool {
        let version = |key: &str, number: u32| {
            let key = config.keys.get(key)?;
            key.versions.iter().find(|version| version.version == number)
        };
        match self {
            Self::State { key, version: number, state } => {
                version(key, *number).is_some_and(|version| version.state == *state)
            }
            Self::Replica { key, version: number, replica } => {
                version(key, *number).is_some_and(|version| version.replicas.contains(replica))
            }
            Self::Key(NewKey { first: new, .. }) | Self::Version(new) => {
                version(&new.key, new.number).is_some_and(|version| {
                    version.state == new.state
                        && version.replicas.contains(&new.replica)
                        && version.public_key_sha256 == Some(new.public_key_sha256)
                })
            }
        }
    }

    /// A phrase for it.
    pub(super) fn phrase(&self) -> String {
        match self {
            Self::Key(new) => format!("key {} added", new.first.key),
            Self::Version(new) => {
                format!("{} version {} added as {}", new.key, new.number, word(new.state))
            }
            Self::Replica { key, version, replica } => {
                format!("{key} version {version}: a replica in {} added", replica.provider)
            }
            Self::State { key, version, state } => {
                format!("{key} version {version} made {}", word(*state))
            }
        }
    }

    /// Adds tables where none of their names are.
    fn apply_to_new(&self, document: &mut DocumentMut) {
        let (lists, new) = match self {
            Self::Key(new) => (Some((&new.algorithms, &new.sign_algorithms)), &new.first),
            Self::Version(new) => (None, new),
            Self::Replica { .. } | Self::State { .. } => return,
        };
        let keys = document.entry("keys").or_insert_with(implicit).as_table_like_mut();
        let mut key = Table::new();
        key.set_implicit(lists.is_none());
        if let Some((algorithms, sign_algorithms)) = lists {
            key.extend(list("algorithms", algorithms));
            key.extend(list("sign_algorithms", sign_algorithms));
        }
        let mut versions = ArrayOfTables::new();
        versions.push(new.table());
        key.insert("versions", Item::ArrayOfTables(versions));
        keys.map(|keys| keys.insert(&new.key, Item::Table(key)));
    }
}

impl NewVersion {
    fn table(&self) -> Table {
        let mut table = Table::new();
        table.insert("version", toml_edit::value(i64::from(self.number)));
        table.insert("state", toml_edit::value(word(self.state)));
        table.extend(self.algorithms.iter().filter_map(|own| list("algorithms", own)));
        table.extend(self.sign_algorithms.iter().filter_map(|own| list("sign_algorithms", own)));
        table.insert("public_key_sha256", toml_edit::value(hex::encode(self.public_key_sha256)));
        table.insert(
            "replicas",
            toml_edit::value(Array::from_iter([Value::from(in_line(&self.replica))])),
        );
        table
    }
}

fn in_line(replica: &Replica) -> InlineTable {
    let Replica { provider, locator } = replica;
    let mut table = InlineTable::new();
    table.insert("provider", provider.into());
    table.insert("locator", locator.into());
    table
}

fn implicit() -> Item {
    let mut table = Table::new();
    table.set_implicit(true);
    Item::Table(table)
}

/// A list of algorithms under its name; nothing where it is empty.
fn list<A: ToString>(name: &'static str, algorithms: &[A]) -> Option<(&'static str, Item)> {
    let array: Array = algorithms.iter().map(ToString::to_string).collect();
    (!algorithms.is_empty()).then(|| (name, toml_edit::value(array)))
}

/// A state as the configuration writes it.
pub(super) fn word(state: State) -> &'static str {
    match state {
        State::Active => "active",
        State::UnwrapOnly => "unwrap-only",
        State::Disabled => "disabled",
    }
}

#[cfg(all(test, feature = "software"))]
mod tests {
    use super::*;

    const HEAD: &str = "[server]\nlisten = [\"unix:c.sock\"]\n[audit]\noff = true # for now\n\n[providers.files]\ntype = \"software\"\ndirectory = \"keys\"\n";
    const TABLES: &str = "\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\n\n# The first one.\n[[keys.a.versions]]\nversion = 1\nstate = \"active\" # until the next\nreplicas = [{ provider = \"files\", locator = \"a.pem\" }]\npublic_key_sha256 = \"1111111111111111111111111111111111111111111111111111111111111111\"\n\n[[callers]]\nname = \"c\"\nmatch = { uid = 7 }\ngrants = [{ keys = [\"a\"], operations = [\"unwrap\"] }]\n";
    const INLINE: &str = "\n[keys.a]\nalgorithms = [\"RSA-OAEP\"]\nversions = [{ version = 1, state = \"active\", replicas = [{ provider = \"files\", locator = \"a.pem\" }], public_key_sha256 = \"1111111111111111111111111111111111111111111111111111111111111111\" }]\n";

    fn new_version(key: &str, number: u32) -> NewVersion {
        NewVersion {
            key: key.to_owned(),
            number,
            state: State::UnwrapOnly,
            algorithms: None,
            sign_algorithms: None,
            replica: Replica {
                provider: "files".to_owned(),
                locator: format!("{key}-{number}.pem"),
            },
            public_key_sha256: [0x22; 32],
        }
    }

    fn edited(text: &str, changes: &[Change]) -> String {
        let text = configuration_file::edit(text, |document| {
            changes.iter().try_for_each(|change| change.apply(document))
        });
        let text = text.unwrap();
        let config = Config::parse("claviger.toml".as_ref(), &text).unwrap();
        assert!(changes.iter().all(|change| change.is_in(&config)), "{text}");
        text
    }

    #[test]
    fn a_version_is_added_and_every_line_that_was_there_stays() {
        let change = Change::Version(new_version("a", 2));
        for text in [TABLES, INLINE] {
            let text = format!("{HEAD}{text}");
            let after = edited(&text, std::slice::from_ref(&change));
            for line in text.lines().filter(|line| !line.starts_with("versions = ")) {
                assert!(after.lines().any(|kept| kept == line), "{line}\n{after}");
            }
        }
    }

    #[test]
    fn the_lines_that_are_printed_are_those_that_are_written() {
        let config = Config::parse("claviger.toml".as_ref(), &format!("{HEAD}{TABLES}")).unwrap();
        let change = Change::Version(new_version("a", 2));
        let lines = change.lines(&config);
        assert_eq!(
            lines,
            format!(
                "[[keys.a.versions]]\nversion = 2\nstate = \"unwrap-only\"\npublic_key_sha256 = \
                 \"{}\"\nreplicas = [{{ provider = \"files\", locator = \"a-2.pem\" }}]\n",
                "22".repeat(32)
            )
        );
        let by_hand = format!("{HEAD}{TABLES}\n{lines}");
        assert!(change.is_in(&Config::parse("claviger.toml".as_ref(), &by_hand).unwrap()));
        let after = edited(&format!("{HEAD}{TABLES}"), &[change]);
        assert!(after.contains(&lines), "{after}");
    }

    #[test]
    fn a_replica_is_added_at_the_end() {
        let replica = Replica { provider: "files".to_owned(), locator: "copy.pem".to_owned() };
        let change = Change::Replica { key: "a".to_owned(), version: 1, replica };
        let (list, table) = (
            "replicas = [{ provider = \"files\", locator = \"a.pem\" }]\n",
            "[[keys.a.versions.replicas]]\nprovider = \"files\"\nlocator = \"a.pem\"\n",
        );
        let (before, after) = TABLES.split_once(list).unwrap();
        let (pin, callers) = after.split_once("\n\n").unwrap();
        let tables = format!("{HEAD}{before}{pin}\n\n{table}\n{callers}");
        let after = edited(&tables, std::slice::from_ref(&change));
        let new = table.replace("a.pem", "copy.pem");
        assert!(after.contains(&format!("{table}\n{new}")), "{after}");
        for text in [TABLES, INLINE] {
            let after = edited(&format!("{HEAD}{text}"), std::slice::from_ref(&change));
            let both = "{ provider = \"files\", locator = \"a.pem\" }, \
                        { provider = \"files\", locator = \"copy.pem\" }]";
            assert!(after.contains(both), "{after}");
        }
    }

    #[test]
    fn states_change_and_the_comments_behind_them_stay() {
        let state = |version, state| Change::State { key: "a".to_owned(), version, state };
        let added = Change::Version(new_version("a", 2));
        let added = edited(&format!("{HEAD}{TABLES}"), &[added]);
        let changes = [state(2, State::Active), state(1, State::UnwrapOnly)];
        let after = edited(&added, &changes);
        assert!(after.contains("state = \"unwrap-only\" # until the next"), "{after}");
    }

    #[test]
    fn a_key_is_added_beside_others_and_where_there_are_none() {
        let new = |key: &str| {
            Change::Key(NewKey {
                algorithms: vec![Algorithm::RsaOaep, Algorithm::RsaOaep256],
                sign_algorithms: vec![],
                first: new_version(key, 1),
            })
        };
        for text in ["", TABLES, INLINE] {
            let text = format!("{HEAD}{text}");
            let after = edited(&text, &[new("b.c")]);
            assert!(
                after.contains("[keys.\"b.c\"]\nalgorithms = [\"RSA-OAEP\", \"RSA-OAEP-256\"]"),
                "{after}"
            );
        }
        let mut document: DocumentMut = format!("{HEAD}{TABLES}").parse().unwrap();
        assert!(new("a").apply(&mut document).is_err());
    }
}
