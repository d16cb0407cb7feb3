//! `[database]`: which store, and who we are there.

use std::path::PathBuf;

use claviger_configuration::{Node, all_of};
use claviger_files::Protection;
use zeroize::Zeroizing;

use super::sections::{file, non_empty};
use super::values::one_of;
use super::{Database, DatabaseServer};

const SQL_SERVER: &str = "is \"sqlserver\", which this program does not speak; see \"SQL Server\" in docs/connector.md, and write \"sqlite\", \"postgresql\" or \"mysql\"";

#[derive(Clone, Copy)]
enum Kind {
    Sqlite,
    Postgres,
    MySql,
}

pub(super) fn database(node: &Node<'_>) -> Option<Database> {
    let kinds = [
        ("sqlite", Kind::Sqlite),
        ("postgresql", Kind::Postgres),
        ("mysql", Kind::MySql),
        ("mariadb", Kind::MySql),
    ];
    let kind = node.required("kind", "write \"sqlite\", \"postgresql\" or \"mysql\"");
    let kind = kind.parsed(|text| match text {
        "sqlserver" => Err(SQL_SERVER.to_owned()),
        text => one_of(text, &kinds),
    })?;
    match kind {
        Kind::Sqlite => Some(Database::Sqlite(file(&node.with_fields(&["kind", "file"]), "file")?)),
        Kind::Postgres => Some(Database::Postgres(server(node, 5432)?)),
        Kind::MySql => Some(Database::MySql(server(node, 3306)?)),
    }
}

fn server(node: &Node<'_>, port: u32) -> Option<DatabaseServer> {
    let known =
        ["kind", "host", "port", "user", "password_file", "name", "ca", "tls", "connections"];
    let node = node.with_fields(&known);
    let text = |name, write| node.required(name, write).parsed(non_empty);
    let host = text("host", "write a name, an address or the path of a Unix socket");
    let user = text("user", "write the database's user");
    let name = text("name", "write the name of the database");
    let port = node.optional("port").integer(1, 65_535).unwrap_or(port);
    let connections = node.optional("connections").integer(1, 1000).unwrap_or(16);
    let password = all_of(node.field("password_file").map(|node| password(&node)));
    let ca = encryption(&node, host.as_deref());
    Some(DatabaseServer {
        host: host?,
        port: u16::try_from(port).ok()?,
        user: user?,
        password: password?,
        name: name?,
        ca: ca?,
        connections,
    })
}

/// A CA, or a word that says that there is to be no TLS; a Unix socket needs neither.
#[expect(clippy::option_option, reason = "no CA is no error")]
fn encryption(node: &Node<'_>, host: Option<&str>) -> Option<Option<PathBuf>> {
    let off = node.field("tls");
    if let Some(node) = &off {
        node.parsed(|text| one_of(text, &[("off", ())]))?;
    }
    match node.field("ca") {
        Some(node) if off.is_some() => {
            node.error("is there beside tls = \"off\"; leave one of them out");
            None
        }
        Some(node) => node.file_path().map(Some),
        None if off.is_some() || host.is_none_or(|host| host.starts_with('/')) => Some(None),
        None => {
            node.missing("ca", "write the CA of the server's certificate, or tls = \"off\"");
            None
        }
    }
}

/// What the file holds, without the line end that editors add.
fn password(node: &Node<'_>) -> Option<Zeroizing<String>> {
    let path = node.file_path()?;
    let bytes = match claviger_files::read(&path, Protection::Secret, 4096) {
        Ok(bytes) => bytes,
        Err(error) => {
            node.error(&error);
            return None;
        }
    };
    let text = std::str::from_utf8(&bytes).ok();
    let text = text.map(|text| text.strip_suffix('\n').unwrap_or(text)).filter(|t| !t.is_empty());
    if text.is_none() {
        node.error("is no password in UTF-8; write the password into the file");
    }
    text.map(|text| Zeroizing::new(text.to_owned()))
}
