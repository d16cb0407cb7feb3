//! Between the two modes, under load, interrupted, and back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use e2e::encoding::random;

use crate::databases::{each_user_is_right, sqlite3, users};
use crate::services::{Connector, Services, Stored, folder, new_key, new_user};

#[test]
fn per_user_mode_asks_the_hsm_for_each_read_under_the_users_name() {
    let services = Services::softhsm();
    let connector = services.start(&Stored::per_user(services.sqlite("per-user.db")));
    let (user, key, newer) = (new_user(), new_key(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(services.write(&connector, "POST", &user, &newer).status, 400);
    for _ in 0..3 {
        assert_eq!(services.get(&connector, &user).key(), key);
    }
    assert_eq!(services.write(&connector, "PUT", &user, &newer).status, 200);
    assert_eq!(services.get(&connector, &user).key(), newer);
    let records = services.setup.files.audit_records();
    let named = format!("user:{user}:");
    let unwraps: Vec<_> = records
        .iter()
        .filter(|record| record["operation"] == "unwrap" && record["outcome"] == "ok")
        .filter(|record| {
            record["caller_request_id"].as_str().is_some_and(|id| id.starts_with(&named))
        })
        .collect();
    assert_eq!(unwraps.len(), 4, "{records:?}");
    let database = services.path("per-user.db");
    assert_eq!(sqlite3(&database, "SELECT Key IS NULL FROM UserKeys"), "1");
    assert_eq!(
        sqlite3(&database, "SELECT count(*) FROM ApplicationDatas"),
        "0",
        "no symmetric key"
    );
}

#[test]
fn another_users_wrapped_value_does_not_open() {
    let services = Services::software();
    let connector = services.start(&Stored::per_user(services.sqlite("swapped.db")));
    let (one, other) = (new_user(), new_user());
    for user in [&one, &other] {
        assert_eq!(services.write(&connector, "POST", user, &new_key()).status, 200);
    }
    let (one_id, other_id) = (one.to_uppercase(), other.to_uppercase());
    sqlite3(
        &services.path("swapped.db"),
        &format!(
            "UPDATE ClavigerUserKeys SET Wrapped = (SELECT Wrapped FROM ClavigerUserKeys WHERE Id = '{other_id}') WHERE Id = '{one_id}'"
        ),
    );
    assert_eq!(services.get(&connector, &one).status, 500);
    assert_eq!(services.get(&connector, &other).status, 200);
    assert!(connector.log().contains("the stored value is another user's"));
}

#[test]
fn an_existing_database_moves_to_per_user_mode_and_back_under_reads() {
    let services = Services::of_the_databases();
    let database = services.path("kc.db");
    std::fs::copy(folder("databases/sqlite.db"), &database).unwrap();
    let stored = Stored::shared(services.sqlite("kc.db"));
    let per_user = Stored::per_user(services.sqlite("kc.db"));
    let serving = [services.start(&stored), services.start(&per_user)];
    let reads = while_users_read(&services, &serving, || {
        assert_eq!(
            migrated(&services, &stored, "per-user"),
            "5 users are now under the RSA key, 0 were so before, 0 failed"
        );
        assert_eq!(sqlite3(&database, "SELECT count(*) FROM UserKeys WHERE Key IS NULL"), "5");
        assert_eq!(
            migrated(&services, &stored, "per-user"),
            "0 users are now under the RSA key, 5 were so before, 0 failed"
        );
        assert_eq!(
            migrated(&services, &stored, "shared-key"),
            "5 users are now under the symmetric key, 0 were so before, 0 failed"
        );
    });
    assert!(reads > 0);
    assert_eq!(sqlite3(&database, "SELECT count(*) FROM UserKeys WHERE Key IS NULL"), "0");
    assert_eq!(sqlite3(&database, "SELECT count(*) FROM ClavigerUserKeys"), "0");
    for connector in &serving {
        each_user_is_right(&services, connector);
    }
}

#[test]
fn a_user_that_does_not_open_is_named_and_the_others_are_migrated() {
    let services = Services::of_the_databases();
    let database = services.path("kc.db");
    std::fs::copy(folder("databases/sqlite.db"), &database).unwrap();
    let bad = users()[1].0.clone();
    sqlite3(
        &database,
        &format!("UPDATE UserKeys SET Key = 'AAAA' WHERE Id = '{}'", bad.to_uppercase()),
    );
    let output =
        services.command(&Stored::shared(services.sqlite("kc.db")), &["migrate", "per-user"]);
    assert_eq!(output.status.code(), Some(65), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains(&format!("user {bad}: the stored value does not open")), "{said}");
    assert_eq!(sqlite3(&database, "SELECT Key FROM UserKeys WHERE Key IS NOT NULL"), "AAAA");
}

/// Reads each user all the time at each connector while `work` is done; gives how many reads there were.
fn while_users_read(services: &Services, connectors: &[Connector], work: impl FnOnce()) -> usize {
    let (done, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        for connector in connectors {
            let (done, reads) = (&done, &reads);
            scope.spawn(move || {
                while !done.load(Relaxed) {
                    each_user_is_right(services, connector);
                    reads.fetch_add(5, Relaxed);
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Relaxed);
        outcome.unwrap();
    });
    reads.load(Relaxed)
}

fn migrated(services: &Services, stored: &Stored, to: &str) -> String {
    let output = services.command(stored, &["migrate", to]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "long: 50 migrations of 60 users, each killed at some moment"]
fn a_migration_that_is_killed_50_times_loses_and_doubles_no_user() {
    let services = Services::softhsm();
    let stored = Stored::shared(services.sqlite("killed.db"));
    let database = services.path("killed.db");
    let connector = services.start(&stored);
    let users: Vec<_> = (0..60).map(|_| (new_user(), new_key())).collect();
    for (user, key) in &users {
        assert_eq!(services.write(&connector, "POST", user, key).status, 200);
    }
    let (mut killed, mut moved) = (0, 0);
    while killed < 50 {
        let to = if moved % 2 == 0 { "per-user" } else { "shared-key" };
        let (configuration, ..) = services.configuration(&stored);
        let mut child = e2e::process::command(env!("CARGO_BIN_EXE_claviger-connector"))
            .args(["migrate", to, "--config"])
            .arg(configuration)
            .spawn()
            .unwrap();
        thread::sleep(Duration::from_millis(60 + u64::from(random(1)[0]) * 2));
        if let Some(status) = child.try_wait().unwrap() {
            assert!(status.success());
            moved += 1;
        } else {
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
        }
        let forms = "SELECT count(*), sum(u.Key IS NOT NULL AND c.Id IS NULL), sum(u.Key IS NULL AND c.Id IS NOT NULL) FROM UserKeys u LEFT JOIN ClavigerUserKeys c ON c.Id = u.Id";
        let counted = sqlite3(&database, forms);
        let counted: Vec<usize> = counted.split('|').map(|n| n.parse().unwrap()).collect();
        assert_eq!((counted[0], counted[1] + counted[2]), (60, 60), "one form each");
    }
    assert!(moved > 0, "none came to its end");
    for (user, key) in &users {
        assert_eq!(services.get(&connector, user).key(), *key, "{}", connector.log());
    }
}
