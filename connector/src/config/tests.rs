//! What is said about wrong files, and that the example is right.

use claviger_tokens::KeySource;

use super::*;

const GOOD: &str = r#"
[server]
listen = "0.0.0.0:5000"
web_vault = "https://vault.example.org/"
proxies = ["172.16.0.0/12", "127.0.0.1"]
[issuer]
url = "http://identity:5000/"
name = "https://vault.example.org/identity"
[keys]
client = "client.toml"
key = "user-keys"
mode = "shared-key"
[database]
kind = "sqlite"
file = "connector.db"
"#;

fn said(text: &str) -> String {
    Config::parse(Path::new("/etc/connector.toml"), text).unwrap_err().to_string()
}

#[test]
fn a_small_file_has_the_defaults() {
    let config = Config::parse(Path::new("/etc/c/connector.toml"), GOOD).unwrap();
    assert_eq!(config.server.web_vault, "https://vault.example.org");
    assert_eq!(config.server.drain_timeout, Duration::from_secs(20));
    assert_eq!(config.keys.client, Path::new("/etc/c/client.toml"));
    assert_eq!(config.limits.user, Some(Rate { count: 60, seconds: 60 }));
    let Transport::Proxied(proxies) = &config.server.transport else { panic!() };
    assert!(proxies[0].contains(&"172.18.0.4".parse::<std::net::IpAddr>().unwrap()));
    assert!(
        matches!(&config.database, Database::Sqlite(f) if f == Path::new("/etc/c/connector.db"))
    );
}

#[test]
fn the_approvals_that_are_shipped_are_good_with_their_defaults() {
    let text = include_str!("../../../deploy/connector/connector.example.toml");
    let (before, section) = text.split_once("# [approvals]\n").unwrap();
    let (section, after) = section.split_once("\n\n").unwrap();
    let section: Vec<&str> = section.lines().map(|line| line.strip_prefix("# ").unwrap()).collect();
    let section = section.join("\n");
    let approvals = |section: &str| {
        let text = format!("{before}[approvals]\n{section}\n{after}");
        Config::parse(Path::new("c.toml"), &text).map(|config| config.approvals.unwrap())
    };
    let whole = approvals(&section).unwrap();
    let needed: Vec<&str> = section.lines().take(4).collect();
    let small = approvals(&needed.join("\n")).unwrap();
    assert_eq!(small.max_age, Duration::from_mins(15));
    assert_eq!(
        (small.device_expiry, small.admin_expiry),
        (whole.device_expiry, whole.admin_expiry)
    );
    assert_eq!((small.max_age, small.requests), (whole.max_age, whole.requests));
    assert_eq!((small.scope.as_str(), whole.scope.as_str()), ("", "groups"));
    for (from, to, expected) in [
        ("key          = \"recovery\"", "", "approvals.key: is missing"),
        ("{ claims = { groups = \"device-approvers\" } }", "{}", "could approve"),
        ("client_id    = \"approvals\"", "client_id = \"\"", "is empty"),
        ("scope ", "scopes ", "did you mean"),
        ("\"30/h\"", "\"30\"", "is no rate"),
    ] {
        assert!(section.contains(from), "{from}");
        let said = approvals(&section.replace(from, to)).unwrap_err().to_string();
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn the_files_that_are_shipped_are_good() {
    let text = include_str!("../../../deploy/connector/connector.example.toml");
    Config::parse(Path::new("/etc/claviger/connector.toml"), text).unwrap();
    // Each option that is commented out is one: the other ways, one after the other.
    let with = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        Config::parse(Path::new("c.toml"), &text.replace(from, to)).unwrap_err().to_string()
    };
    assert!(with("# proxies =", "proxies =").contains("`tls` is there too"));
    assert!(with("# keys =", "keys =").contains("is there beside `url`"));
    for option in
        ["max_connections", "drain_timeout", "timeout", "user    =", "refused", "format", "filter"]
    {
        let line = text.lines().find(|l| l.starts_with(&format!("# {option}")));
        let line = line.unwrap_or_else(|| panic!("{option}"));
        Config::parse(Path::new("c.toml"), &text.replace(line, &line[2..])).unwrap();
    }
}

#[test]
fn the_file_for_vaultwarden_is_good_with_discovery_and_with_its_public_key() {
    let text = include_str!("../../../deploy/vaultwarden/connector.toml");
    let parse = |text: &str| Config::parse(Path::new("/etc/claviger/connector.toml"), text);
    let config = parse(text).unwrap();
    assert!(matches!(config.issuer.source, KeySource::Discovery { .. }));
    let by_file = text.replace("url  =", "# url  =").replace("# keys =", "keys =");
    let config = parse(&by_file).unwrap();
    assert!(matches!(config.issuer.source, KeySource::File(_)));
    assert_eq!(config.issuer.name.as_deref(), Some("https://vault.example.org|login"));
    let port = format!(":{}", config.server.listen.port());
    let environment = include_str!("../../../deploy/vaultwarden/vaultwarden.env");
    let url = environment.lines().find_map(|line| line.strip_prefix("KEY_CONNECTOR_URL="));
    assert!(url.is_some_and(|url| url.ends_with(&port)), "{environment}");
}

#[test]
fn the_files_for_bitwardens_folders_agree_with_each_other() {
    let folder = "/etc/bitwarden/key-connector/claviger";
    let text = include_str!("../../../deploy/connector/bwdata/connector.toml");
    let config = Config::parse(&Path::new(folder).join("connector.toml"), text).unwrap();
    assert_eq!(config.server.listen.port(), 5000, "where the installer's nginx looks");
    let Transport::Proxied(proxies) = &config.server.transport else { panic!() };
    assert!(
        proxies
            .iter()
            .any(|network| network.contains(&"172.18.0.9".parse::<std::net::IpAddr>().unwrap()))
    );
    let compose = include_str!("../../../deploy/connector/bwdata/docker-compose.override.yml");
    assert!(compose.contains("\n  key-connector:\n"), "the installer's name");
    for name in ["claviger-connector", "connector.toml"] {
        assert!(compose.contains(&format!("{folder}/{name}\"")), "{name}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_in_one_run_with_its_line() {
    let text = r#"[server]
listen = "5000"
web_vaults = "https://vault.example.org"
[issuer]
keys = "issuer.pem"
[keys]
client = "client.toml"
mode = "sharedkey"
[database]
kind = "sqlserver"
[limits]
user = "60"
[log]
filter = "claviger_connector=loud"
"#;
    let said = said(text);
    for expected in [
        "connector.toml:2: server.listen: \"5000\" is no address; write an IP address",
        "connector.toml:3: server.web_vaults: is not a known field; did you mean \"web_vault\"?",
        "server.web_vault: is missing; write the web vault's origin",
        "server.tls: is missing; write tls = {",
        "issuer.name: is missing; write what `iss` is in its tokens",
        "keys.key: is missing; write the name that the daemon gives the key",
        "connector.toml:8: keys.mode: \"sharedkey\" is not known; did you mean \"shared-key\"?",
        "connector.toml:10: database.kind: is \"sqlserver\", which this program does not speak",
        "connector.toml:12: limits.user: \"60\" is no rate; write a number and a unit",
        "connector.toml:14: log.filter: ",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}

#[test]
fn plain_http_needs_the_proxies_and_a_database_over_tcp_needs_a_word_about_tls() {
    let open = GOOD.replace("proxies = [\"172.16.0.0/12\", \"127.0.0.1\"]\n", "");
    assert!(said(&open).contains("or `proxies` for plain HTTP behind a proxy"));
    let none = GOOD.replace("[\"172.16.0.0/12\", \"127.0.0.1\"]", "[]");
    assert!(said(&none).contains("server.proxies: is empty"));
    let sqlite = "kind = \"sqlite\"\nfile = \"connector.db\"";
    let server = "kind = \"postgresql\"\nhost = \"db\"\nuser = \"kc\"\nname = \"kc\"";
    assert!(said(&GOOD.replace(sqlite, server)).contains("database.ca: is missing"));
    let socket = server.replace("\"db\"", "\"/run/postgresql\"");
    Config::parse(Path::new("c.toml"), &GOOD.replace(sqlite, &socket)).unwrap();
}
