//! The same on real PostgreSQL and MariaDB servers, each in a folder of its own.

use std::fs;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use e2e::process::{command, run};

use crate::approvals::{Stage, is_approved_once};
use crate::databases::{opened_as_the_original, taken_over, users};
use crate::first_start::loses_no_user;
use crate::services::{Services, Stored, folder};

/// A database server on a Unix socket; killed when dropped.
struct Server {
    child: Child,
    kind: Kind,
    folder: PathBuf,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Postgres,
    MariaDb,
}

impl Server {
    fn start(services: &Services, kind: Kind) -> Self {
        let folder = services.path("server");
        fs::create_dir(&folder).unwrap();
        let shown = folder.display().to_string();
        let folder_of_all = services.path("");
        let script = match kind {
            // Its server refuses to run as root.
            Kind::Postgres => format!(
                "chmod a+x {}; chown nobody {shown}; cd {shown}
                setpriv --reuid=nobody --clear-groups $(ls -d /usr/lib/postgresql/*/bin/initdb) --auth=trust --username=kc --pgdata={shown}/data > /dev/null
                exec setpriv --reuid=nobody --clear-groups $(ls -d /usr/lib/postgresql/*/bin/postgres) -D {shown}/data -k {shown} -c listen_addresses= -c max_connections=300 2> {shown}/log",
                folder_of_all.display()
            ),
            Kind::MariaDb => format!(
                "mariadb-install-db --no-defaults --user=$(id -un) --datadir={shown}/data --skip-test-db --auth-root-authentication-method=normal > /dev/null
                exec mariadbd --no-defaults --user=$(id -un) --datadir={shown}/data --socket={shown}/sock --skip-networking --pid-file={shown}/pid --max-connections=300 2> {shown}/log"
            ),
        };
        let child = command("sh").args(["-euc", &script]).spawn().unwrap();
        let server = Self { child, kind, folder };
        let begun = Instant::now();
        while !server
            .client(
                if kind == Kind::MariaDb { "CREATE DATABASE IF NOT EXISTS kc" } else { "SELECT 1" },
                false,
            )
            .0
        {
            assert!(begun.elapsed() < Duration::from_mins(1), "no server");
            std::thread::sleep(Duration::from_millis(200));
        }
        server
    }

    /// Runs statements; whether they succeeded, and what they printed.
    fn client(&self, statements: &str, in_database: bool) -> (bool, String) {
        let mut client = match self.kind {
            Kind::Postgres => {
                let mut psql = command("psql");
                psql.env("PGHOST", &self.folder).env("PGUSER", "kc").env("PGDATABASE", "postgres");
                psql.args([
                    "--quiet",
                    "--no-align",
                    "--tuples-only",
                    "--set=ON_ERROR_STOP=1",
                    "--command",
                    statements,
                ]);
                psql
            }
            Kind::MariaDb => {
                let mut mariadb = command("mariadb");
                mariadb
                    .arg("--no-defaults")
                    .arg(format!("--socket={}/sock", self.folder.display()));
                mariadb.args([
                    "--user=root",
                    "--skip-column-names",
                    "--batch",
                    "--execute",
                    statements,
                ]);
                if in_database {
                    mariadb.arg("kc");
                }
                mariadb
            }
        };
        let output = client.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn query(&self, statement: &str) -> String {
        let (good, said) = self.client(statement, true);
        assert!(good, "{statement}: {said}");
        said
    }

    /// Reads a dump of the original's.
    fn restore(&self, dump: &str) {
        let text = fs::read_to_string(folder("databases").join(dump)).unwrap();
        let path = self.folder.with_extension("sql");
        fs::write(&path, text).unwrap();
        let shown = self.folder.display();
        let script = match self.kind {
            Kind::Postgres => format!(
                "PGHOST={shown} PGUSER=kc PGDATABASE=postgres psql --quiet --set=ON_ERROR_STOP=1 < {}",
                path.display()
            ),
            Kind::MariaDb => format!(
                "mariadb --no-defaults --socket={shown}/sock --user=root kc < {}",
                path.display()
            ),
        };
        run(command("sh").args(["-euc", &script]));
    }

    fn database(&self) -> String {
        let shown = self.folder.display();
        match self.kind {
            Kind::Postgres => {
                format!("kind = 'postgresql'\nhost = '{shown}'\nuser = 'kc'\nname = 'postgres'")
            }
            Kind::MariaDb => {
                format!("kind = 'mysql'\nhost = '{shown}/sock'\nuser = 'root'\nname = 'kc'")
            }
        }
    }

    /// A name as this database quotes it.
    fn quoted(&self, statement: &str) -> String {
        if self.kind == Kind::MariaDb { statement.replace('"', "`") } else { statement.to_owned() }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_taken_over_and_given_back(kind: Kind, dump: &str) {
    let services = Services::of_the_databases();
    let server = Server::start(&services, kind);
    server.restore(dump);
    let created = server.quoted("SELECT \"Id\", \"CreationDate\" FROM \"UserKeys\" WHERE \"CreationDate\" < '2026-11-30 15:53' ORDER BY \"Id\"");
    let before = server.query(&created);
    assert_eq!(before.lines().count(), 5);
    let ((user, key), _) = taken_over(&services, &Stored::shared(server.database()));
    assert_eq!(server.query(&created), before);
    let wrapped = server.query(&server.quoted("SELECT \"SymmetricKey\" FROM \"ApplicationDatas\""));
    let mut all = users();
    all.push((user, key));
    for (user, key) in all {
        let row =
            server.quoted(&format!("SELECT \"Key\" FROM \"UserKeys\" WHERE \"Id\" = '{user}'"));
        assert_eq!(opened_as_the_original(&services, &wrapped, &server.query(&row)), key);
    }
    // To per-user mode and back, the same checks once more.
    let stored = Stored::shared(server.database());
    for to in ["per-user", "shared-key"] {
        let output = services.command(&stored, &["migrate", to]);
        assert!(output.status.success(), "{output:?}");
        let connector = services.start(&stored);
        crate::databases::each_user_is_right(&services, &connector);
    }
}

fn first_start_loses_no_user(kind: Kind) {
    let services = Services::softhsm();
    let server = Server::start(&services, kind);
    let database = format!("{}\nconnections = 8", server.database());
    loses_no_user(&services, &Stored::shared(database));
    let rows = server.query(&server.quoted("SELECT count(*) FROM \"ApplicationDatas\""));
    assert_eq!(rows, "1");
}

#[test]
#[ignore = "needs the Debian package postgresql, whose server it starts in a folder of its own; and root"]
fn the_postgresql_database_is_taken_over_and_given_back() {
    is_taken_over_and_given_back(Kind::Postgres, "postgresql.sql");
}

#[test]
#[ignore = "needs the Debian packages mariadb-server and mariadb-client, whose server it starts in a folder of its own"]
fn the_mariadb_database_is_taken_over_and_given_back() {
    is_taken_over_and_given_back(Kind::MariaDb, "mariadb.sql");
}

#[test]
#[ignore = "needs the Debian package postgresql, whose server it starts in a folder of its own; and root"]
fn ten_instances_that_start_at_once_on_postgresql_lose_no_user() {
    first_start_loses_no_user(Kind::Postgres);
}

#[test]
#[ignore = "needs the Debian packages mariadb-server and mariadb-client, whose server it starts in a folder of its own"]
fn ten_instances_that_start_at_once_on_mariadb_lose_no_user() {
    first_start_loses_no_user(Kind::MariaDb);
}

fn each_case_is_answered_in_both_modes(kind: Kind) {
    let services = Services::softhsm();
    let server = Server::start(&services, kind);
    for stored in [Stored::shared(server.database()), Stored::per_user(server.database())] {
        let connector = services.start(&stored);
        crate::cases::run_all(&services, &connector);
    }
}

#[test]
#[ignore = "needs the Debian package postgresql, whose server it starts in a folder of its own; and root"]
fn each_case_is_answered_as_written_on_postgresql_in_both_modes() {
    each_case_is_answered_in_both_modes(Kind::Postgres);
}

#[test]
#[ignore = "needs the Debian packages mariadb-server and mariadb-client, whose server it starts in a folder of its own"]
fn each_case_is_answered_as_written_on_mariadb_in_both_modes() {
    each_case_is_answered_in_both_modes(Kind::MariaDb);
}

fn approvals_are_stored(kind: Kind) {
    let stage = Stage::new();
    let server = Server::start(&stage.services, kind);
    is_approved_once(&stage, &stage.stored(server.database(), ""));
    let left =
        "SELECT state, public_key, code_hash FROM claviger_auth_requests WHERE value IS NULL";
    assert_eq!(server.query(left).split(['|', '\t']).collect::<String>(), "fetched");
}

#[test]
#[ignore = "needs the Debian package postgresql, whose server it starts in a folder of its own; and root"]
fn approvals_are_stored_in_postgresql() {
    approvals_are_stored(Kind::Postgres);
}

#[test]
#[ignore = "needs the Debian packages mariadb-server and mariadb-client, whose server it starts in a folder of its own"]
fn approvals_are_stored_in_mariadb() {
    approvals_are_stored(Kind::MariaDb);
}
