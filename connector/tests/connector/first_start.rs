//! The first start: however many instances begin at once, there is one symmetric key, and no user is lost.

use std::thread;

use crate::databases::sqlite3;
use crate::services::{Connector, Services, Stored, new_key, new_user};

/// Ten instances on an empty database, 100 users enrolled in parallel, all restarted, all read at each.
pub(crate) fn loses_no_user(services: &Services, stored: &Stored) {
    let start = || -> Vec<Connector> {
        let connectors: Vec<_> = (0..10).map(|_| services.spawn(stored)).collect();
        for connector in &connectors {
            connector.wait_until_healthy();
        }
        connectors
    };
    let users: Vec<_> = (0..100).map(|_| (new_user(), new_key())).collect();
    let connectors = start();
    thread::scope(|scope| {
        for (slot, connector) in connectors.iter().enumerate() {
            let users = users.iter().skip(slot * 10).take(10);
            scope.spawn(move || {
                for (user, key) in users {
                    let reply = services.write(connector, "POST", user, key);
                    assert_eq!(reply.status, 200, "{reply:?}\n{}", connector.log());
                }
            });
        }
    });
    drop(connectors);
    let connectors = start();
    for (number, (user, key)) in users.iter().enumerate() {
        for connector in [&connectors[number % 10], &connectors[(number + 3) % 10]] {
            let reply = services.get(connector, user);
            assert_eq!((reply.status, &reply.key()), (200, key), "{}", connector.log());
        }
    }
}

#[test]
fn ten_instances_that_start_at_once_on_sqlite_lose_no_user() {
    let services = Services::softhsm();
    let stored = Stored::shared(services.sqlite("first.db"));
    loses_no_user(&services, &stored);
    assert_eq!(sqlite3(&services.path("first.db"), "SELECT count(*) FROM ApplicationDatas"), "1");
}

#[test]
fn a_row_that_an_operator_seeded_is_the_one_in_use() {
    let services = Services::software();
    let stored = Stored::shared(services.sqlite("seeded.db"));
    let database = services.path("seeded.db");
    let wrapped = crate::operations::base64(&services.setup.wrapped);
    sqlite3(
        &database,
        &format!(
            "CREATE TABLE ApplicationDatas (Id INTEGER PRIMARY KEY, SymmetricKey TEXT); INSERT INTO ApplicationDatas (SymmetricKey) VALUES ('{wrapped}')"
        ),
    );
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(sqlite3(&database, "SELECT SymmetricKey FROM ApplicationDatas"), wrapped);
    assert_eq!(services.get(&connector, &user).key(), key);
}
