//! The databases that a real Key Connector wrote (`tests/databases`), taken over as they are and given
//! back: the original's tables and values, told by the same checks before and after.

use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use claviger_provider_api::Algorithm;
use e2e::process::{command, run};
use serde_json::Value;

use crate::services::{Connector, Services, Stored, folder, new_key, new_user};

/// The five users and the keys that each must get.
pub(crate) fn users() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(folder("databases/users.json")).unwrap();
    let users: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(users.len(), 5);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    users.iter().map(|user| (text(&user["id"]), text(&user["key"]))).collect()
}

/// Each user gets the right key, and a user who is not there none.
pub(crate) fn each_user_is_right(services: &Services, connector: &Connector) {
    for (user, key) in users() {
        let reply = services.get(connector, &user);
        assert_eq!((reply.status, reply.key()), (200, key), "{user}\n{}", connector.log());
    }
    assert_eq!(services.get(connector, &new_user()).status, 404);
}

/// What takes a database over does: reads, an enrolment, a replacement, and the same over a restart.
/// Gives the enrolled user with the key, and the replaced one's new key.
pub(crate) fn taken_over(services: &Services, stored: &Stored) -> ((String, String), String) {
    let connector = services.start(stored);
    each_user_is_right(services, &connector);
    let (user, key, newer) = (new_user(), new_key(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(services.write(&connector, "POST", &user, &newer).status, 400);
    let (first, old) = users().swap_remove(0);
    assert_eq!(services.write(&connector, "PUT", &first, &newer).status, 200);
    assert_eq!(services.get(&connector, &first).key(), newer);
    assert_eq!(connector.stop(), Some(0));

    let connector = services.start(stored);
    assert_eq!(services.get(&connector, &user).key(), key);
    assert_eq!(services.get(&connector, &first).key(), newer);
    // As it was, for the checks that follow.
    assert_eq!(services.write(&connector, "PUT", &first, &old).status, 200);
    each_user_is_right(services, &connector);
    assert_eq!(connector.stop(), Some(0));
    ((user, key), newer)
}

/// What the original would get, without any code of the connector: the symmetric key by RSA-OAEP with
/// SHA-1, the user's key by AES-256-GCM.
pub(crate) fn opened_as_the_original(services: &Services, wrapped: &str, stored: &str) -> String {
    use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
    let wrapped = STANDARD.decode(wrapped).unwrap();
    let key =
        services.setup.key.unwrap_oaep(&wrapped, Algorithm::RsaOaep, b"").expect("OAEP, SHA-1");
    assert_eq!(key.len(), 32);
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    let stored = STANDARD.decode(stored).unwrap();
    let (sealed, nonce) = stored.split_at(stored.len() - 12);
    let nonce = Nonce::try_assume_unique_for_key(nonce).unwrap();
    let mut sealed = sealed.to_vec();
    STANDARD.encode(key.open_in_place(nonce, Aad::empty(), &mut sealed).unwrap())
}

pub(crate) fn sqlite3(database: &Path, statement: &str) -> String {
    let mut sqlite3: Command = command("sqlite3");
    let output = run(sqlite3.args(["-separator", "|"]).arg(database).arg(statement));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_sqlite_database_is_taken_over_and_given_back() {
    let services = Services::of_the_databases();
    let database = services.path("kc.db");
    std::fs::copy(folder("databases/sqlite.db"), &database).unwrap();
    let schema = sqlite3(&database, ".schema");
    let before =
        sqlite3(&database, "SELECT * FROM ApplicationDatas; SELECT * FROM __EFMigrationsHistory");
    let dates =
        "SELECT Id, CreationDate FROM UserKeys WHERE CreationDate < '2026-11-30 15:52' ORDER BY Id";
    let created = sqlite3(&database, dates);
    let ((user, key), _) = taken_over(&services, &Stored::shared(services.sqlite("kc.db")));

    // The original finds its own tables, and in them what it would have written.
    assert_eq!(sqlite3(&database, ".schema"), schema, "nothing of ours is added in this mode");
    let after =
        sqlite3(&database, "SELECT * FROM ApplicationDatas; SELECT * FROM __EFMigrationsHistory");
    assert_eq!(after, before);
    assert_eq!(sqlite3(&database, dates), created);
    let wrapped = sqlite3(&database, "SELECT SymmetricKey FROM ApplicationDatas");
    let mut all = users();
    all.push((user.clone(), key));
    for (user, key) in all {
        let row = format!("SELECT Key FROM UserKeys WHERE Id = '{}'", user.to_uppercase());
        assert_eq!(opened_as_the_original(&services, &wrapped, &sqlite3(&database, &row)), key);
    }
    let row = format!(
        "SELECT CreationDate, RevisionDate, LastAccessDate FROM UserKeys WHERE Id = '{}'",
        user.to_uppercase()
    );
    let row = sqlite3(&database, &row);
    let times: Vec<_> = row.split('|').collect();
    let [created, "", accessed] = times[..] else { panic!("{row}") };
    for time in [created, accessed] {
        assert!(time.len() >= 19 && time.as_bytes()[10] == b' ' && !time.ends_with('0'), "{row}");
    }
}

#[test]
fn the_json_file_is_imported_and_given_back() {
    let services = Services::of_the_databases();
    let stored = Stored::shared(services.sqlite("imported.db"));
    let original = folder("databases/data.json");
    let import = ["migrate", "import-json", original.to_str().unwrap()];
    for expected in ["5 users were imported, 0 were so", "0 users were imported, 5 were so"] {
        let output = services.command(&stored, &import);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains(expected), "{output:?}");
    }
    let connector = services.start(&stored);
    each_user_is_right(&services, &connector);
    assert_eq!(connector.stop(), Some(0));

    let given_back = services.path("data.json");
    let export = ["migrate", "export-json", given_back.to_str().unwrap()];
    let output = services.command(&stored, &export);
    assert!(output.status.success(), "{output:?}");
    let read =
        |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let (before, mut after) = (read(&original), read(&given_back));
    // Each was read once meanwhile; the rest is the same to the letter, but for the order.
    let by_id = |data: &Value| -> std::collections::BTreeMap<String, Value> {
        let users = data["userKey"].as_array().unwrap().iter();
        users.map(|user| (user["id"].as_str().unwrap().to_owned(), user.clone())).collect()
    };
    for user in after["userKey"].as_array_mut().unwrap() {
        assert!(user["lastAccessDate"].as_str().unwrap().ends_with('Z'));
        user["lastAccessDate"] =
            by_id(&before)[user["id"].as_str().unwrap()]["lastAccessDate"].clone();
    }
    assert_eq!(by_id(&after), by_id(&before));
    assert_eq!(after["symmetricKey"], before["symmetricKey"]);
    // What is there is not written over.
    assert!(!services.command(&stored, &export).status.success());
}

#[test]
fn another_installation_is_not_imported_into_this_one() {
    let services = Services::of_the_databases();
    std::fs::copy(folder("databases/sqlite.db"), services.path("kc.db")).unwrap();
    let stored = Stored::shared(services.sqlite("kc.db"));
    let original = folder("databases/data.json");
    let output = services.command(&stored, &["migrate", "import-json", original.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("has another symmetric key"));
    let connector = services.start(&stored);
    each_user_is_right(&services, &connector);
}
