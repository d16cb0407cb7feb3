//! What is accepted and what it becomes; that everything wrong is found, with its place.

mod bad;
mod fuzz;
mod tokens;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use claviger::daemon::config::{
    Audit, Balance, Config, ConfigErrors, Identity, Limits, Listen, Log, Match, Operation,
    PublicKeys, Rate, Rotation, Server, SignedBy, State, path_or_default,
};
use claviger_provider_api::public_key::sha256;
use claviger_provider_api::{Algorithm, SecretSource, VaultField};
use rustix::time::{ClockId, clock_gettime};

use crate::bad::BAD;

const GOOD: &str = include_str!("good.toml");
const EXAMPLE: &str = include_str!("../../deploy/claviger.example.toml");

fn parse(text: &str) -> Result<Config, ConfigErrors> {
    Config::parse(Path::new("claviger.toml"), text)
}

fn refusal(text: &str) -> String {
    parse(text).expect_err("this must be refused").to_string()
}

#[test]
fn every_bad_configuration_is_refused_with_exactly_these_words() {
    assert!(BAD.len() >= 60);
    parse(GOOD).unwrap();
    for (find, write, expected) in BAD {
        assert_eq!(GOOD.matches(find).count().min(1), 1, "{find:?} is not in good.toml");
        let got = refusal(&GOOD.replacen(find, write, 1));
        assert_eq!(&got, expected, "{find:?} -> {write:?}");
    }
}

#[test]
fn a_good_configuration_becomes_what_it_says() {
    let config = parse(GOOD).unwrap();
    assert_eq!(config.sha256, sha256(GOOD.as_bytes()));
    let here = std::env::current_dir().unwrap();
    let tcp = Listen::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 8443)));
    assert_eq!(config.server.listen, [tcp, Listen::Unix(here.join("claviger.sock"))]);
    assert_eq!(config.server.state_dir, Some(here.join("state")));
    let tls = config.server.tls.unwrap();
    assert_eq!(tls.certificate, here.join("server.crt"));
    assert_eq!(tls.client_ca, BTreeMap::from([("clients".to_owned(), here.join("clients.pem"))]));
    assert_eq!((tls.crl_grace, tls.allow_tls12), (Duration::from_hours(72), false));
    assert_eq!(config.operations.unwrap().readers, ["prometheus"]);
    assert_eq!(config.audit, Audit::Off);
    assert_eq!(config.log, Log { json: false, filter: "info".to_owned() });

    let hsm = &config.providers["hsm-a"];
    assert!(!hsm.required);
    assert_eq!(hsm.secrets["pin"], SecretSource::File(here.join("pin")));

    let versions = &config.keys["user-keys"].versions;
    assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(versions[0].state, State::Active);
    assert_eq!(versions[0].algorithms, [Algorithm::RsaOaep]);
    assert_eq!(versions[0].public_key_sha256, Some([0x22; 32]));
    assert_eq!(versions[1].algorithms, [Algorithm::RsaOaep256]);
    assert_eq!(versions[1].replicas[0].provider, "files");
    assert_eq!(config.keys["other"].versions[0].public_key_sha256, None);

    let [connector, local, prometheus] = config.callers.as_slice() else { panic!("three callers") };
    assert_eq!(connector.grants[0].operations, [Operation::Unwrap, Operation::Read]);
    let per = Duration::from_secs(1);
    assert_eq!(
        connector.limits,
        Limits { rate: Some(Rate { count: 50, per }), failed_unwraps: None, unwraps_alarm: None }
    );
    assert_eq!(local.matches, [Match { identity: Identity::Uid(1000), ca: None }]);
    assert_eq!(local.limits, Limits::default());
    assert!(prometheus.grants.is_empty());
}

#[test]
fn a_grant_can_be_narrowed_to_values_and_a_rewrap_to_its_targets() {
    let grants = format!(
        r#"keys = ["user-keys"], operations = ["unwrap", "rewrap"], wrapped_sha256 = ["{0}", "{1}"], to = ["other", "user-keys"], to_public_keys = ["{0}"] }}, {{ keys = ["other"], operations = ["rewrap"], to_public_keys = "any""#,
        "AB".repeat(32),
        "01".repeat(32),
    );
    let text = GOOD.replace(r#"keys = ["user-keys"], operations = ["unwrap", "read"]"#, &grants);
    let config = parse(&text).unwrap();
    let [narrow, any] = config.callers[0].grants.as_slice() else { panic!("two grants") };
    assert_eq!(narrow.wrapped_sha256, Some(vec![[0xab; 32], [0x01; 32]]));
    assert_eq!(narrow.to, ["other", "user-keys"]);
    assert_eq!(narrow.to_public_keys, PublicKeys::Only(vec![[0xab; 32]]));
    assert_eq!((&any.wrapped_sha256, &any.to_public_keys), (&None, &PublicKeys::Any));
    assert!(any.to.is_empty());
}

#[test]
fn each_daemon_of_a_fleet_takes_its_share_of_the_limits() {
    let fleet = |daemons: u32, rate: &str| {
        GOOD.replace("state_dir = \"state\"", &format!("state_dir = \"state\"\nfleet = {daemons}"))
            .replace("rate = \"50/s\", failed_unwraps = \"off\"", &format!("rate = \"{rate}\""))
    };
    let limits = parse(&fleet(4, "50/s")).unwrap().callers[0].limits;
    let rate = |count, seconds| Some(Rate { count, per: Duration::from_secs(seconds) });
    assert_eq!((limits.rate, limits.failed_unwraps), (rate(12, 1), rate(25, 3600)));
    assert_eq!(
        refusal(&fleet(8, "5/s")),
        "claviger.toml:55: callers[0].limits.rate: is less than one for each of the 8 daemons of server.fleet; write at least 8"
    );
    let refused = refusal(&fleet(101, "off"));
    assert!(refused.contains("claviger.toml:5: server.fleet: is 101"), "{refused}");
}

#[test]
fn unwraps_alarm_by_default_where_no_rate_says_how_many_are_usual() {
    let limits = |written: &str| {
        let text = GOOD.replace("rate = \"50/s\", failed_unwraps = \"off\"", written);
        assert_ne!(text, GOOD, "good.toml has a caller with both limits");
        parse(&text).unwrap().callers[0].limits.unwraps_alarm
    };
    let hundred_an_hour = Limits::default().unwraps_alarm;
    assert!(hundred_an_hour.is_some());
    assert_eq!(limits("rate = \"off\""), hundred_an_hour);
    assert_eq!(limits("rate = \"9/s\""), None);
    let per = Duration::from_hours(24);
    let both = limits("rate = \"9/s\", unwraps_alarm = \"5/d\"");
    assert_eq!(both, Some(Rate { count: 5, per }));
    assert_eq!(limits("unwraps_alarm = \"off\""), None);
}

#[test]
fn secrets_in_a_table_of_a_providers_are_sources_like_the_others() {
    let aws = |rest: &str| {
        format!("{GOOD}\n[providers.aws]\ntype = \"aws-kms\"\nregion = \"eu-central-1\"\n{rest}\n")
    };
    let good = "ca = \"ca.pem\"\ncredentials = { access_key_id = { file = \"id\" }, \
                secret_access_key = { credential = \"key\" } }";
    let config = parse(&aws(good)).unwrap();
    let here = std::env::current_dir().unwrap();
    let provider = &config.providers["aws"];
    let source = |name: &str| provider.secrets[&format!("credentials.{name}")].clone();
    assert_eq!(source("access_key_id"), SecretSource::File(here.join("id")));
    assert_eq!(source("secret_access_key"), SecretSource::Credential("key".to_owned()));
    let options = format!("{:?}", provider.config);
    for path in ["id", "ca.pem"] {
        assert!(options.contains(here.join(path).to_str().unwrap()), "{options}");
    }
    // A secret in the place of its source, or of the table around it, is never repeated.
    for bad in [
        "credentials = \"marker\"",
        "credentials = { access_key_id = { file = \"id\" }, secret_access_key = \"marker\" }",
        "credentials = { access_key_id = [\"marker\"], secret_access_key = { file = \"key\" } }",
    ] {
        let refusal = refusal(&aws(bad));
        assert!(refusal.contains("providers.aws.credentials"), "{refusal}");
        assert!(refusal.contains("must not stand in this file"), "{refusal}");
        assert!(!refusal.contains("marker"), "{refusal}");
    }
}

#[test]
fn what_is_left_out_has_its_documented_default() {
    let config = parse("[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n").unwrap();
    let expected = Server {
        listen: vec![Listen::Unix("/run/c.sock".into())],
        without_certificate: Vec::new(),
        state_dir: None,
        denied_callers: None,
        tls: None,
        reflection: true,
        max_connections: 16_384,
        max_connections_per_caller: 4096,
        max_concurrent_calls: 1024,
        max_streams_per_connection: 128,
        max_handshakes: 256,
        handshake_timeout: Duration::from_secs(5),
        max_connection_age: Duration::from_hours(1),
        fleet: 1,
        drain_delay: Duration::ZERO,
        drain_timeout: Duration::from_secs(30),
    };
    assert_eq!(config.server, expected);
    assert!(config.operations.is_none() && config.keys.is_empty() && config.callers.is_empty());
}

#[test]
fn replicas_are_asked_in_their_order_unless_the_least_busy_is_wanted() {
    let balance_with = |line: &str| {
        let list = "algorithms = [\"RSA-OAEP\"]\n";
        let config = parse(&GOOD.replacen(list, &format!("{list}{line}"), 1)).unwrap();
        config.keys["user-keys"].balance
    };
    assert_eq!(balance_with(""), Balance::Priority);
    assert_eq!(balance_with("balance = \"priority\"\n"), Balance::Priority);
    assert_eq!(balance_with("balance = \"least-busy\"\n"), Balance::LeastBusy);
}

#[test]
fn the_key_of_checkpoints_signs_and_no_caller_signs_with_it() {
    let checkpoints =
        "file = \"a\"\ncheckpoints = { origin = \"a\", file = \"c\", signed_by = \"other\" }";
    let lists = ("algorithms = [\"RSA-OAEP-256\", \"RSA-OAEP\"]", "sign_algorithms = [\"PS256\"]");
    let text = GOOD.replacen("off = true", checkpoints, 1).replacen(lists.0, lists.1, 1);
    let Audit::File(file) = parse(&text).unwrap().audit else { panic!("the log is on") };
    assert_eq!(file.checkpoints.unwrap().signed_by, SignedBy::Key("other".to_owned()));
    let local = "match = [{ uid = 1000 }]\n";
    let grant = "grants = [{ keys = [\"other\"], operations = [\"sign\"] }]\n";
    let error =
        parse(&text.replacen(local, &format!("{local}{grant}"), 1)).unwrap_err().to_string();
    assert!(
        error.contains("audit.checkpoints.signed_by: \"other\" may be signed with by caller \"local\", who could sign another log"),
        "{error}"
    );
}

#[test]
fn rotation_is_read_with_its_units() {
    let options = "file = \"a\"\nmax_size = \"2GiB\"\nmax_age = \"24h\"\nkeep = 30";
    let Audit::File(file) = parse(&GOOD.replacen("off = true", options, 1)).unwrap().audit else {
        panic!("the log is on")
    };
    let expected = Rotation {
        max_size: Some(2 << 30),
        max_age: Some(Duration::from_hours(24)),
        keep: Some(30),
    };
    assert_eq!(file.rotation, expected);
}

#[test]
fn other_good_forms_are_accepted() {
    for (find, write) in [
        // Each version has its own list, so the key needs none.
        (
            "state = \"active\"\nreplicas = [{ provider = \"hsm-a\"",
            "state = \"active\"\nalgorithms = [\"RSA1_5\"]\nreplicas = [{ provider = \"hsm-a\"",
        ),
        ("algorithms = [\"RSA-OAEP-256\", \"RSA-OAEP\"]", "sign_algorithms = [\"PS256\"]"),
        (
            "state = \"active\"\nreplicas = [{ provider = \"hsm-a\"",
            "state = \"disabled\"\nreplicas = [{ provider = \"hsm-a\"",
        ),
        // The same identity from two issuers is two callers.
        (
            "client_ca = { clients = \"clients.pem\" }\n",
            "client_ca = { clients = \"clients.pem\" }\nmin_version = \"1.2\"\ncrl_grace = \"0s\"\n",
        ),
        ("pin = { file = \"pin\" }", "pin = { credential = \"pin\" }"),
        ("listen = \"127.0.0.1:9443\"", "listen = \"[::]:9443\""),
        ("off = true", "off = false\nfile = \"/var/log/audit.jsonl\""),
    ] {
        let text = GOOD.replacen(find, write, 1);
        assert_ne!(text, GOOD, "{find}");
        assert!(parse(&text).is_ok(), "{write}: {}", refusal(&text));
    }
}

#[test]
fn one_identity_from_two_issuers_is_two_callers() {
    let text = GOOD
        .replace("clients = \"clients.pem\"", "a = \"a.pem\", b = \"b.pem\"")
        .replace(
            "{ spiffe = \"spiffe://example.org/kc\" }",
            "{ dns = \"kc.example.org\", ca = \"a\" }",
        )
        .replace(
            "{ dns = \"prometheus.example.org\" }",
            "{ dns = \"kc.example.org\", ca = \"b\" }",
        );
    assert_eq!(parse(&text).unwrap().callers[2].matches[0].ca.as_deref(), Some("b"));
    let same = text.replace("ca = \"b\"", "ca = \"a\"");
    assert!(refusal(&same).contains("is the same identity as callers[0].match"));
}

#[test]
fn a_locator_is_judged_by_its_provider() {
    let config = parse(GOOD).unwrap();
    let reason = config.providers["files"].config.check_locator("").unwrap_err();
    assert_eq!(
        refusal(&GOOD.replace("locator = \"other.pem\"", "locator = \"\"")),
        format!("claviger.toml:48: keys.other.versions[0].replicas[0].locator: {reason}")
    );
}

#[test]
fn all_errors_are_found_at_once_in_the_files_order() {
    let text = GOOD
        .replace("8443", "port")
        .replace("off = true", "off = 1")
        .replace("state = \"unwrap-only\"", "state = \"wrap-only\"")
        .replace("rate = \"50/s\"", "rate = \"much\"");
    let refusal = refusal(&text);
    let places: Vec<&str> = refusal.lines().filter_map(|line| line.split(": ").nth(1)).collect();
    let expected = [
        "server.listen[0]",
        "audit.off",
        "keys.user-keys.versions[1].state",
        "callers[0].limits.rate",
    ];
    assert_eq!(places, expected, "{refusal}");
}

#[test]
fn a_secret_in_the_file_never_reaches_a_message() {
    for secret in ["\"hunter2\"", "731942", "[\"hunter2\"]", "true", "{ value = \"hunter2\" }"] {
        let said = refusal(&GOOD.replace("pin = { file = \"pin\" }", &format!("pin = {secret}")));
        assert!(said.contains("providers.hsm-a.pin"), "{said}");
        assert!(!said.contains("hunter2") && !said.contains("731942"), "{said}");
    }
}

#[test]
fn paths_and_secrets_inside_a_providers_tables_are_known_as_such() {
    let with = |auth: &str| {
        format!(
            "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n[providers.v]\ntype = \"vault-transit\"\naddress = \"https://vault\"\nca = \"ca.pem\"\nauth = {auth}\n"
        )
    };
    let config = parse(&with(
        "{ certificate = { certificate = \"c.crt\", private_key = { file = \"c.key\" } } }",
    ));
    let vault = &config.unwrap().providers["v"];
    let here = std::env::current_dir().unwrap();
    let source = SecretSource::File(here.join("c.key"));
    assert_eq!(vault.secrets, [("auth.certificate.private_key".to_owned(), source.clone())].into());
    let options: &claviger_vault_transit::Config = vault.config.downcast_ref().unwrap();
    assert_eq!(options.ca, Some(here.join("ca.pem")));
    let claviger_vault_transit::Auth::Certificate(certificate) = &options.auth else {
        panic!("another method")
    };
    assert_eq!(certificate.certificate, here.join("c.crt"));
    assert_eq!(certificate.private_key, source);

    let error = refusal(&with("{ token = \"hvs.marker\" }"));
    assert!(error.contains("providers.v.auth.token: must not stand in this file"), "{error}");
    assert!(!error.contains("marker"), "{error}");
}

#[test]
fn secrets_in_vault_are_sources_of_any_provider() {
    let vault = "[providers.vault-a]\ntype = \"vault-transit\"\naddress = \"https://vault\"\nauth = { token = { file = \"token\" } }\n";
    let source = |field: &str| {
        format!(
            "{{ vault = {{ provider = \"vault-a\", path = \"secret/data/claviger\", field = \"{field}\" }} }}"
        )
    };
    let files = format!(
        "passphrase = {}\nfiles = {{ \"kc.pfx\" = {}, \"b.pem\" = {{ file = \"b.pem\" }} }}",
        source("passphrase"),
        source("pfx")
    );
    let text = GOOD
        .replace("pin = { file = \"pin\" }", &format!("pin = {}", source("pin")))
        .replace("directory = \"keys\"", &files)
        .replace("locator = \"old.pem\"", "locator = \"b.pem\"")
        .replace("locator = \"other.pem\"", "locator = \"kc.pfx\"")
        .replace("[keys.user-keys]", &format!("{vault}[keys.user-keys]"));
    let config = parse(&text).unwrap();
    let field =
        |name| SecretSource::Vault(VaultField::new("vault-a", "secret/data/claviger", name));
    assert_eq!(config.providers["hsm-a"].secrets["pin"], field("pin"));
    let here = std::env::current_dir().unwrap();
    let secrets = &config.providers["files"].secrets;
    assert_eq!(
        *secrets,
        [
            ("files.\"b.pem\"".to_owned(), SecretSource::File(here.join("b.pem"))),
            ("files.\"kc.pfx\"".to_owned(), field("pfx")),
            ("passphrase".to_owned(), field("passphrase")),
        ]
        .into()
    );
    let files = &config.providers["files"].config;
    let options: &claviger_software::Config = files.downcast_ref().unwrap();
    assert_eq!(options.files["b.pem"], SecretSource::File(here.join("b.pem")));
    assert_eq!(options.files["kc.pfx"], field("pfx"));
}

#[test]
fn a_secret_two_tables_deep_is_a_source_like_the_others() {
    let with = |auth: &str| {
        format!(
            "[server]\nlisten = [\"unix:/run/c.sock\"]\n[audit]\noff = true\n[providers.a]\ntype = \"azure-key-vault\"\nvault = \"https://contoso.vault.azure.net\"\nca = \"ca.pem\"\nauth = {{ {auth} }}\n"
        )
    };
    let ids = "tenant_id = \"contoso.example\", client_id = \"00001111-aaaa\"";
    let text = with(&format!("client_secret = {{ {ids}, secret = {{ file = \"azure\" }} }}"));
    let config = parse(&text).unwrap();
    let here = std::env::current_dir().unwrap();
    let source = SecretSource::File(here.join("azure"));
    let secrets = [("auth.client_secret.secret".to_owned(), source)].into();
    assert_eq!(config.providers["a"].secrets, secrets);
    assert!(format!("{:?}", config.providers["a"].config).contains(here.to_str().unwrap()));
    for name in ["client_secret = { secret", "workload_identity = { token"] {
        let error = refusal(&with(&format!("{name} = \"marker\", {ids} }}")));
        assert!(error.contains("must not stand in this file"), "{error}");
        assert!(!error.contains("marker"), "{error}");
    }
}

#[test]
fn the_example_says_what_every_option_is() {
    let config = Config::parse(Path::new("/etc/claviger/claviger.toml"), EXAMPLE).unwrap();
    assert_eq!(config.server.denied_callers, Some("/etc/claviger/denied".into()));
    assert_eq!(config.server.tls.unwrap().crl, [Path::new("/etc/claviger/tls/clients.crl")]);
    config.keys.values().flat_map(|key| &key.versions).for_each(|version| {
        assert!(version.public_key_sha256.is_some());
    });
    // What it shows in comments is right too.
    let shown = |line: &str| {
        let option = line.strip_prefix("# ").and_then(|line| line.split_once(" = "));
        option.is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'))
    };
    let with_all: String = EXAMPLE
        .lines()
        .map(|line| if shown(line) { format!("{}\n", &line[2..]) } else { format!("{line}\n") })
        .collect();
    assert_eq!(EXAMPLE.lines().filter(|line| shown(line)).count(), 33);
    parse(&with_all).unwrap();
    // What the parser knows stands in the example.
    for option in [
        "listen",
        "state_dir",
        "denied_callers",
        "reflection",
        "max_connections",
        "max_connections_per_caller",
        "max_concurrent_calls",
        "max_streams_per_connection",
        "max_handshakes",
        "handshake_timeout",
        "max_connection_age",
        "fleet",
        "drain_delay",
        "drain_timeout",
        "certificate",
        "private_key",
        "client_ca",
        "crl",
        "crl_grace",
        "min_version",
        "readers",
        "file",
        "max_size",
        "max_age",
        "keep",
        "hang_limit",
        "init_reserved",
        "sinks",
        "checkpoints",
        "policy",
        "format",
        "filter",
        "endpoint",
        "headers",
        "sampling",
        "service_name",
        "type",
        "region",
        "connect_timeout",
        "attempt_timeout",
        "operation_timeout",
        "required",
        "algorithms",
        "sign_algorithms",
        "version",
        "state",
        "replicas",
        "public_key_sha256",
        "name",
        "match",
        "grants",
        "limits",
        "wrapped_sha256",
        "to",
        "to_public_keys",
    ] {
        let is_set = |line: &str| {
            line.split_once('=')
                .is_some_and(|(name, _)| name.trim_start_matches("# ").trim() == option)
        };
        assert!(EXAMPLE.lines().any(is_set), "{option} is not in the example");
    }
}

#[test]
fn the_files_for_a_key_connector_are_configurations_alone_and_while_it_moves() {
    let alone = include_str!("../../deploy/key-connector/claviger.toml");
    let pfx = include_str!("../../deploy/key-connector/move-from-pfx.toml");
    let aws = include_str!("../../deploy/key-connector/move-from-aws.toml");
    let azure = include_str!("../../deploy/key-connector/move-from-azure.toml");
    let google = include_str!("../../deploy/key-connector/move-from-google.toml");
    for (more, callers) in [("", 1), (pfx, 2), (aws, 2), (azure, 2), (google, 2)] {
        let config = parse(&format!("{alone}\n{more}")).unwrap();
        assert_eq!(config.callers.len(), callers);
        for caller in &config.callers {
            let [grant] = caller.grants.as_slice() else { panic!("{} has one", caller.name) };
            assert!(grant.wrapped_sha256.is_some(), "{} is narrow", caller.name);
        }
    }
}

#[test]
fn no_text_makes_it_panic() {
    // xorshift64: the same mutations in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let pieces = [
        "\"",
        "'",
        "[",
        "]",
        "{",
        "}",
        "=",
        ".",
        "\n",
        ",",
        "#",
        "\\",
        "\0",
        "é",
        "0",
        "-1",
        "inf",
        "true",
        "1979-05-27",
        "[[",
        "]]",
        "\"\"\"",
        "99999999999999999999",
    ];
    let (mut good, mut bad) = (0, 0);
    for text in [GOOD, EXAMPLE] {
        for _ in 0..3000 {
            let mut characters: Vec<char> = text.chars().collect();
            for _ in 0..=random(3) {
                let at = random(characters.len());
                let end = (at + random(12)).min(characters.len());
                match random(3) {
                    0 => drop(characters.drain(at..end)),
                    1 => drop(characters.splice(at..at, pieces[random(pieces.len())].chars())),
                    _ => {
                        let copy = characters[at..end].to_vec();
                        let to = random(characters.len());
                        characters.splice(to..to, copy);
                    }
                }
            }
            match parse(&characters.iter().collect::<String>()) {
                Ok(_) => good += 1,
                Err(errors) => {
                    assert!(!errors.errors.is_empty() && !errors.to_string().is_empty());
                    bad += 1;
                }
            }
        }
    }
    assert!(good > 100 && bad > 1000, "{good} good, {bad} bad");
}

#[test]
fn many_errors_are_counted_not_printed() {
    let text = format!("{GOOD}{}", "[[callers]]\n".repeat(200));
    let refusal = refusal(&text);
    assert_eq!(refusal.lines().count(), ConfigErrors::MOST_PRINTED + 1);
    assert!(refusal.ends_with("… and 350 more errors"), "{refusal}");
}

#[test]
fn ten_thousand_keys_and_callers_take_no_more_than_their_number() {
    let text_of = |count: usize| {
        let mut text = GOOD.to_owned();
        for i in 0..count {
            writeln!(text, "[keys.k{i}]\nalgorithms = [\"RSA-OAEP\"]\n[[keys.k{i}.versions]]\nversion = 1\nstate = \"active\"\nreplicas = [{{ provider = \"files\", locator = \"{i}.pem\" }}]\npublic_key_sha256 = \"{i:064x}\"").unwrap();
            writeln!(text, "[[callers]]\nname = \"c{i}\"\nmatch = {{ dns = \"c{i}.example.org\" }}\ngrants = [{{ keys = [\"k{i}\"], operations = [\"unwrap\"] }}]").unwrap();
        }
        text
    };
    // The thread's own time: other programs may take the processors.
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let time = |text: &str| {
        let start = now();
        let outcome = parse(text);
        (now().saturating_sub(start), outcome)
    };
    let (small, _) = time(&text_of(1000));
    let (large, config) = time(&text_of(10_000));
    assert_eq!(config.unwrap().callers.len(), 10_003);
    assert!(large < small * 40 + Duration::from_millis(500), "{small:?} -> {large:?}");
    // Nor do errors.
    let (wrong, config) = time(&text_of(10_000).replace("keys = [\"k", "keys = [\"x"));
    assert_eq!(config.unwrap_err().errors.len(), 10_000);
    assert!(wrong < small * 40 + Duration::from_millis(500), "{small:?} -> {wrong:?}");
}

#[test]
fn serve_asks_for_a_pin_of_each_version_that_may_be_used() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claviger.toml");
    std::fs::write(&path, GOOD).unwrap();
    let errors = Config::load(&path).unwrap().check_for_serve().unwrap_err();
    let expected = format!(
        "{}:45: keys.other.versions[0].public_key_sha256: is missing; run `claviger config pin`, which asks the backends, and confirm what it prints",
        path.display()
    );
    assert_eq!(errors.to_string(), expected);

    std::fs::write(
        &path,
        GOOD.replace("version = 1\nstate = \"active\"", "version = 1\nstate = \"disabled\""),
    )
    .unwrap();
    Config::load(&path).unwrap().check_for_serve().unwrap();

    // Without the text that was parsed there is no line, and the version is still named.
    let errors = parse(GOOD).unwrap().check_for_serve().unwrap_err().to_string();
    assert!(
        errors.starts_with("claviger.toml: keys.other.versions[version = 1].public_key_sha256:")
    );
}

#[test]
fn only_root_or_its_owner_may_write_the_file_and_everybody_may_read_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claviger.toml");
    std::fs::write(&path, GOOD).unwrap();
    let set_mode = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    let link = folder.path().join("link.toml");
    symlink(&path, &link).unwrap();
    for mode in [0o600, 0o640, 0o644, 0o444] {
        set_mode(mode);
        Config::load(&link).unwrap();
    }
    for mode in [0o660, 0o664, 0o602, 0o666, 0o622] {
        set_mode(mode);
        let error = Config::load(&path).unwrap_err().to_string();
        let expected = format!("is refused: mode {mode:o} lets others write it; chmod 644 it");
        assert_eq!(error, format!("{}: {expected}", path.display()));
    }
    set_mode(0o644);
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let error = Config::load(&path).unwrap_err().to_string();
    let expected = format!("chmod go-w {}", folder.path().display());
    assert!(error.contains("is refused: the folder") && error.ends_with(&expected), "{error}");
}

#[test]
fn what_cannot_be_read_is_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let error = Config::load(folder.path()).unwrap_err().to_string();
    assert!(error.ends_with("is refused: it is not a regular file"), "{error}");
    let error = Config::load(&folder.path().join("none.toml")).unwrap_err().to_string();
    assert!(error.contains("cannot be read: No such file"), "{error}");
    let latin = folder.path().join("latin.toml");
    std::fs::write(&latin, b"# fine\n# caf\xe9\n").unwrap();
    let error = Config::load(&latin).unwrap_err().to_string();
    assert!(error.ends_with("is not UTF-8 in line 2; save it as UTF-8"), "{error}");
}

#[test]
fn the_given_path_comes_before_the_default() {
    assert_eq!(path_or_default(Some("x.toml".into())), Path::new("x.toml"));
}
