//! Certificates and revocation lists that `openssl ca` has made: what we say of each chain, beside
//! what `openssl verify` says. Where the two differ, the row says why.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use claviger::daemon::config;
use claviger::daemon::transport::tls::TlsState;
use rustls::CertificateError as E;

use crate::setup::{Files, der, replace};

/// What is said of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Revoked,
    /// No list vouches for the certificate.
    Unknown,
    /// The list that would is too old.
    Stale,
    /// The chain itself is refused.
    Refused,
    /// We refuse the files at load.
    NotLoaded,
}
use Verdict::{Good, NotLoaded, Refused, Revoked, Stale, Unknown};

/// What every section of extensions is appended to.
const CONFIG: &str = "
[ca]
default_ca = ours
[ours]
database = index.txt
serial = serial
crlnumber = crlnumber
new_certs_dir = .
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_days = 30
default_crl_days = 30
policy = any
unique_subject = no
[without_numbers]
database = index.txt
certificate = ca.pem
private_key = ca.key
default_md = sha256
default_crl_days = 30
[any]
organizationName = optional
commonName = supplied
[req]
distinguished_name = dn
[dn]
[permitted]
O = Bank
[full]
authorityKeyIdentifier = keyid
";

/// Sections for CAs that sign certificates: what follows `CA:TRUE`, and further extensions.
const CAS: [(&str, &str, &str); 10] = [
    ("root", "", ""),
    ("root_length_0", ", pathlen:0", ""),
    (
        "root_any_policy",
        "",
        "inhibitAnyPolicy = critical, 0\npolicyConstraints = critical, inhibitPolicyMapping:0",
    ),
    ("root_explicit_policy", "", "policyConstraints = critical, requireExplicitPolicy:0"),
    ("root_uri", "", "nameConstraints = critical, permitted;URI:example.org"),
    ("root_uri_below", "", "nameConstraints = critical, permitted;URI:.example.org"),
    ("root_uri_excluded", "", "nameConstraints = critical, excluded;URI:example.org"),
    ("root_directory", "", "nameConstraints = critical, permitted;dirName:permitted"),
    ("root_directory_excluded", "", "nameConstraints = critical, excluded;dirName:permitted"),
    ("middle", "", ""),
];
/// Sections for CAs that may not sign certificates.
const WITHOUT_SIGN: [&str; 2] = ["root_without_sign", "middle_without_sign"];

/// Sections for clients: the usage, the trust domain, and further extensions.
const LEAVES: [(&str, &str, &str, &str); 4] = [
    ("leaf", "digitalSignature", "example.org", ""),
    ("leaf_below", "digitalSignature", "a.example.org", ""),
    ("leaf_without_signature", "keyEncipherment", "example.org", ""),
    (
        "leaf_of_1",
        "digitalSignature",
        "example.org",
        "crlDistributionPoints = URI:http://crl.example.org/1.crl",
    ),
];

/// Sections for lists: the issuing distribution point.
const LISTS: [(&str, &str); 8] = [
    ("shard_1", "fullname = URI:http://crl.example.org/1.crl"),
    ("shard_2", "fullname = URI:http://crl.example.org/2.crl"),
    ("users", "onlyuser = TRUE"),
    ("users_of_1", "fullname = URI:http://crl.example.org/1.crl\nonlyuser = TRUE"),
    ("cas", "onlyCA = TRUE"),
    ("compromised", "onlysomereasons = keyCompromise, CACompromise"),
    (
        "not_compromised",
        "onlysomereasons = affiliationChanged, superseded, cessationOfOperation, certificateHold, privilegeWithdrawn, AACompromise",
    ),
    ("indirect", "indirectCRL = TRUE"),
];

/// The configuration of openssl, with all sections.
fn openssl_config() -> String {
    let mut text = CONFIG.to_owned();
    let mut section = |name: &str, lines: &[&str]| {
        let _ = write!(text, "[{name}]\n{}\n", lines.join("\n"));
    };
    for (name, length, more) in CAS {
        let is_ca = format!("basicConstraints = critical, CA:TRUE{length}");
        section(name, &[&is_ca, "keyUsage = critical, keyCertSign, cRLSign", more]);
    }
    for name in WITHOUT_SIGN {
        section(name, &["basicConstraints = critical, CA:TRUE", "keyUsage = critical, cRLSign"]);
    }
    for (name, usage, domain, more) in LEAVES {
        let usage = format!("keyUsage = critical, {usage}");
        let name_of_client = format!("subjectAltName = URI:spiffe://{domain}/kc");
        let is_leaf = "basicConstraints = critical, CA:FALSE";
        section(name, &[is_leaf, &usage, "extendedKeyUsage = clientAuth", &name_of_client, more]);
    }
    for (name, point) in LISTS {
        let at = format!("issuingDistributionPoint = critical, @{name}_point");
        section(name, &[&at]);
        section(&format!("{name}_point"), &[point]);
    }
    text
}

/// A CA of `openssl ca`, in a folder of its own.
struct Authority {
    folder: tempfile::TempDir,
}

impl Authority {
    /// A self-signed CA with the extensions of a section.
    fn new(section: &str) -> Self {
        let ca = Self { folder: tempfile::tempdir().unwrap() };
        ca.write("openssl.cnf", &openssl_config());
        ca.write("index.txt", "");
        ca.write("index.txt.attr", "unique_subject = no\n");
        ca.write("serial", "1000\n");
        ca.write("crlnumber", "01\n");
        ca.key("ca.key");
        ca.openssl(&format!(
            "req -x509 -new -key ca.key -config openssl.cnf -extensions {section} -subj /O=Bank/CN=ca -days 30 -out ca.pem"
        ));
        ca
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        replace(&self.at(name), content);
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.at(name)).unwrap()
    }

    fn key(&self, name: &str) {
        self.openssl(&format!(
            "genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out {name}"
        ));
    }

    /// Runs openssl in the folder; arguments have no spaces.
    fn openssl(&self, arguments: &str) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "openssl {arguments}: {said}");
        said
    }

    fn run(&self, arguments: &str) -> std::process::Output {
        let command = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.folder.path())
            .output();
        command.expect("this test needs the openssl command line")
    }

    /// Issues a certificate with the extensions of a section: NAME.pem, NAME.key.
    fn issue(&self, name: &str, section: &str, subject: &str) {
        self.key(&format!("{name}.key"));
        self.openssl(&format!(
            "req -new -key {name}.key -config openssl.cnf -subj {subject} -out {name}.csr"
        ));
        self.openssl(&format!(
            "ca -batch -notext -config openssl.cnf -extensions {section} -in {name}.csr -out {name}.pem"
        ));
    }

    fn revoke(&self, name: &str) {
        self.openssl(&format!("ca -config openssl.cnf -revoke {name}.pem -crl_reason superseded"));
    }

    /// Takes every revocation back, as a CA does when it ends a hold.
    fn release(&self) {
        let index = self.text("index.txt");
        let released = index.lines().map(|line| {
            let mut columns: Vec<_> = line.split('\t').collect();
            if columns[0] == "R" {
                (columns[0], columns[2]) = ("V", "");
            }
            columns.join("\t") + "\n"
        });
        let released: String = released.collect();
        self.write("index.txt", &released);
    }

    /// A list with the extensions of a section, from and until so many days from now.
    fn list(&self, name: &str, section: &str, from: i64, until: i64) {
        let day = |days: i64| {
            let then = time::OffsetDateTime::now_utc() + time::Duration::days(days);
            let (date, time) = (then.date(), then.time());
            format!(
                "{:04}{:02}{:02}{:02}0000Z",
                date.year(),
                u8::from(date.month()),
                date.day(),
                time.hour()
            )
        };
        self.openssl(&format!(
            "ca -gencrl -config openssl.cnf -crlexts {section} -crl_lastupdate {} -crl_nextupdate {} -out {name}",
            day(from),
            day(until)
        ));
    }

    /// What `openssl verify` says of the chain under our CA, as a TLS client's.
    fn openssl_says(&self, chain: &[&str], lists: &[&str]) -> Verdict {
        let mut arguments = "verify -purpose sslclient -CAfile ca.pem".to_owned();
        for middle in &chain[1..] {
            let _ = write!(arguments, " -untrusted {middle}");
        }
        if !lists.is_empty() {
            arguments += " -crl_check -extended_crl";
        }
        for list in lists {
            let _ = write!(arguments, " -CRLfile {list}");
        }
        let _ = write!(arguments, " {}", chain[0]);
        let output = self.run(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let number = said.split("error ").nth(1).and_then(|rest| rest.split(' ').next());
        match (output.status.success(), number) {
            (true, _) => Good,
            (false, Some("23")) => Revoked,
            // No list, or one of another scope.
            (false, Some("3" | "44")) => Unknown,
            (false, Some("12")) => Stale,
            (false, Some(_)) => Refused,
            (false, None) => panic!("openssl {arguments}: {said}"),
        }
    }

    fn config(&self, lists: &[&str]) -> (Files, config::Tls) {
        let files = Files::new();
        let mut config = files.config.clone();
        config.client_ca = [("clients".to_owned(), self.at("ca.pem"))].into();
        config.crl = lists.iter().map(|list| self.at(list)).collect();
        config.crl_grace = Duration::from_hours(72);
        (files, config)
    }

    fn loaded(&self, lists: &[&str]) -> Result<std::sync::Arc<TlsState>, String> {
        let (_files, config) = self.config(lists);
        TlsState::open(&config, false).map_err(|error| error.to_string())
    }

    fn we_say(&self, chain: &[&str], lists: &[&str]) -> Verdict {
        let Ok(tls) = self.loaded(lists) else { return NotLoaded };
        let chain: Vec<_> = chain.iter().map(|name| der(&self.text(name))).collect();
        match tls.load().trust().verify(&chain, SystemTime::now()) {
            Ok(_) => Good,
            Err(rustls::Error::InvalidCertificate(error)) => match error {
                E::Revoked => Revoked,
                E::UnknownRevocationStatus => Unknown,
                E::ExpiredRevocationListContext { .. } => Stale,
                _ => Refused,
            },
            Err(error) => panic!("{error}"),
        }
    }

    /// Compares both verdicts of a chain with what is expected.
    fn expect(&self, what: &str, chain: &[&str], lists: &[&str], openssl: Verdict, ours: Verdict) {
        assert_eq!(self.openssl_says(chain, lists), openssl, "{what}: openssl");
        assert_eq!(self.we_say(chain, lists), ours, "{what}: ours");
    }
}

const SUBJECT: &str = "/O=Bank/CN=kc";

#[test]
fn a_revoked_certificate_is_refused_however_many_lists_its_ca_has() {
    let ca = Authority::new("root");
    ca.issue("any", "leaf", SUBJECT);
    ca.issue("one", "leaf_of_1", SUBJECT);
    for (name, section) in
        [("full.crl", "full"), ("1.crl", "shard_1"), ("2.crl", "shard_2"), ("users.crl", "users")]
    {
        ca.list(name, section, -2, 10);
    }
    ca.list("users_of_1.crl", "users_of_1", -2, 10);
    ca.list("cas.crl", "cas", -2, 10);
    ca.list("compromised.crl", "compromised", -2, 10);
    ca.list("not_compromised.crl", "not_compromised", -2, 10);
    let good = ["full.crl", "1.crl", "2.crl"].map(|name| (name, ca.text(name)));
    ca.revoke("any");
    ca.revoke("one");
    ca.list("full-revoked.crl", "full", -1, 10);
    ca.list("1-revoked.crl", "shard_1", -1, 10);
    ca.list("2-revoked.crl", "shard_2", -1, 10);
    assert!(good.iter().all(|(name, text)| *text == ca.text(name)));

    let (any, one) = (["any.pem"], ["one.pem"]);
    ca.expect("not on the list", &any, &["full.crl"], Good, Good);
    ca.expect("on the list", &any, &["full-revoked.crl"], Revoked, Revoked);
    for lists in [["full.crl", "full-revoked.crl"], ["full-revoked.crl", "full.crl"]] {
        ca.expect("on the newer of two, in any order", &any, &lists, Revoked, Revoked);
    }
    ca.expect("on its own shard", &one, &["1-revoked.crl"], Revoked, Revoked);
    ca.expect("not on its own shard", &one, &["1.crl"], Good, Good);
    ca.expect("only the other shard", &one, &["2.crl"], Unknown, Unknown);
    ca.expect("both shards, on neither", &one, &["1.crl", "2.crl"], Good, Good);
    for lists in [["full-revoked.crl", "2.crl"], ["2.crl", "full-revoked.crl"]] {
        ca.expect("a shard of others beside the whole list", &any, &lists, Revoked, Revoked);
        ca.expect("the same for one that names its shard", &one, &lists, Revoked, Revoked);
    }
    ca.expect("two shards, and it names none", &any, &["1.crl", "2.crl"], Unknown, Unknown);
    // OpenSSL looks only into lists of its scope; a serial number is one certificate's of its CA.
    let lists = ["1.crl", "2-revoked.crl"];
    ca.expect("on a shard that it does not name", &any, &lists, Unknown, Revoked);
    ca.expect("on the wrong shard", &one, &lists, Good, Revoked);
    ca.expect("a list of user certificates without a name", &any, &["users.crl"], Good, Good);
    ca.expect("one with a name that it has not", &any, &["users_of_1.crl"], Unknown, Unknown);
    ca.expect("one with its name", &one, &["users_of_1.crl"], Good, Good);
    ca.expect("a list of CAs", &any, &["cas.crl"], Unknown, Unknown);
    ca.expect("some reasons", &any, &["compromised.crl"], Unknown, Unknown);
    let lists = ["compromised.crl", "not_compromised.crl"];
    ca.expect("all reasons, in two lists", &any, &lists, Good, Good);
}

#[test]
fn of_one_scope_the_highest_number_counts() {
    let ca = Authority::new("root");
    ca.issue("kc", "leaf", SUBJECT);
    let kc = ["kc.pem"];
    ca.list("1.crl", "full", -1, 10);
    ca.revoke("kc");
    ca.list("2.crl", "full", -1, 10);
    // Of one second, OpenSSL takes the one that it sees first.
    ca.expect("of one second", &kc, &["1.crl", "2.crl"], Good, Revoked);
    ca.expect("of one second", &kc, &["2.crl", "1.crl"], Revoked, Revoked);
    ca.release();
    ca.list("3.crl", "full", -1, 10);
    ca.expect("a hold that has ended", &kc, &["3.crl", "2.crl"], Good, Good);
    ca.revoke("kc");
    ca.list("4.crl", "full", -3, 10);
    // OpenSSL looks at thisUpdate only.
    ca.expect("an older date, a higher number", &kc, &["3.crl", "4.crl"], Good, Revoked);
}

#[test]
fn a_list_past_its_grace_takes_nothing_from_another_cas() {
    let (old, new) = (Authority::new("root"), Authority::new("root"));
    for ca in [&old, &new] {
        ca.issue("kc", "leaf", SUBJECT);
    }
    let kc = ["kc.pem"];
    old.list("old.crl", "full", -20, -10);
    old.list("stale.crl", "full", -20, -1);
    new.list("new.crl", "full", -20, -1);
    // OpenSSL knows no grace.
    old.expect("past the grace", &kc, &["old.crl"], Stale, Stale);
    old.expect("within the grace", &kc, &["stale.crl"], Stale, Good);
    old.revoke("kc");
    old.list("revoked.crl", "full", -20, -10);
    old.expect("revoked for good", &kc, &["revoked.crl"], Stale, Revoked);

    let (files, mut config) = old.config(&["old.crl"]);
    // One bundle, and one name, for both.
    let both = files.at("both.pem");
    replace(&both, old.text("ca.pem") + &new.text("ca.pem"));
    config.client_ca = [("clients".to_owned(), both)].into();
    config.crl.push(new.at("new.crl"));
    let tls = TlsState::open(&config, false).unwrap();
    let trust = tls.load().trust().clone();
    let says = |ca: &Authority, at| trust.verify(&[der(&ca.text("kc.pem"))], at);
    let now = SystemTime::now();
    says(&new, now).unwrap();
    assert!(says(&old, now).is_err());
    assert_eq!(trust.past_grace(now), 1);
    assert!(says(&new, now + Duration::from_hours(72)).is_err());
    assert_eq!(trust.past_grace(now + Duration::from_hours(72)), 2);
}

#[test]
fn chains_are_held_to_usages_lengths_and_constraints() {
    let verdicts = |root: &str, leaf: &str, subject: &str| {
        let ca = Authority::new(root);
        ca.issue("kc", leaf, subject);
        (ca.openssl_says(&["kc.pem"], &[]), ca.we_say(&["kc.pem"], &[]))
    };
    for (root, leaf, subject, openssl, ours) in [
        ("root", "leaf", SUBJECT, Good, Good),
        ("root", "leaf_without_signature", SUBJECT, Refused, Refused),
        ("root_without_sign", "leaf", SUBJECT, Refused, NotLoaded),
        ("root_any_policy", "leaf", SUBJECT, Good, Good),
        // OpenSSL evaluates policies on request only.
        ("root_explicit_policy", "leaf", SUBJECT, Good, NotLoaded),
        ("root_uri", "leaf", SUBJECT, Good, Good),
        ("root_uri", "leaf_below", SUBJECT, Refused, Refused),
        ("root_uri_below", "leaf", SUBJECT, Refused, Refused),
        ("root_uri_below", "leaf_below", SUBJECT, Good, Good),
        ("root_uri_excluded", "leaf", SUBJECT, Refused, Refused),
        ("root_uri_excluded", "leaf_below", SUBJECT, Good, Good),
        ("root_directory", "leaf", SUBJECT, Good, Good),
        ("root_directory", "leaf", "/O=bank/CN=kc", Good, Good),
        ("root_directory", "leaf", "/O=Other/CN=kc", Refused, Refused),
        ("root_directory_excluded", "leaf", SUBJECT, Refused, Refused),
        ("root_directory_excluded", "leaf", "/O=Other/CN=kc", Good, Good),
    ] {
        assert_eq!(verdicts(root, leaf, subject), (openssl, ours), "{root} {leaf} {subject}");
    }
}

/// A CA below another one, in the folder of the first.
fn below(ca: &Authority, section: &str) {
    ca.issue("middle", section, "/O=Bank/CN=middle");
    ca.key("kc.key");
    ca.openssl("req -new -key kc.key -config openssl.cnf -subj /O=Bank/CN=kc -out kc.csr");
    ca.openssl(
        "x509 -req -in kc.csr -CA middle.pem -CAkey middle.key -extfile openssl.cnf -extensions leaf -days 40 -out kc.pem",
    );
}

#[test]
fn intermediates_are_held_to_their_usage_and_to_the_length_that_the_ca_allows() {
    for (root, middle, openssl, ours) in [
        ("root", "middle", Good, Good),
        ("root", "middle_without_sign", Refused, Refused),
        ("root_length_0", "middle", Refused, Refused),
    ] {
        let ca = Authority::new(root);
        below(&ca, middle);
        let chain = ["kc.pem", "middle.pem"];
        assert_eq!(ca.openssl_says(&chain, &[]), openssl, "{root} {middle}");
        assert_eq!(ca.we_say(&chain, &[]), ours, "{root} {middle}");
    }
}

#[test]
fn a_chain_ends_with_the_first_of_its_certificates() {
    let ca = Authority::new("root");
    below(&ca, "middle");
    let chain = ["kc.pem", "middle.pem"].map(|name| der(&ca.text(name)));
    let tls = ca.loaded(&[]).unwrap();
    let verified = tls.load().trust().verify(&chain, SystemTime::now()).unwrap();
    // The intermediate lasts 30 days, the client's own certificate 40.
    let left = verified.not_after.duration_since(SystemTime::now()).unwrap();
    let days = left.as_secs() / (24 * 3600);
    assert!((29..=30).contains(&days), "{days} days");
    assert_eq!(&*verified.anchor.bundle, "clients");
    assert_eq!(verified.anchor.subject, "O=Bank, CN=ca");
}

#[test]
fn what_is_no_ca_is_refused_at_load_in_words() {
    let ca = Authority::new("root");
    ca.issue("kc", "leaf", SUBJECT);
    ca.openssl("req -x509 -new -key kc.key -config openssl.cnf -extensions leaf -subj /CN=own -out own.pem");
    ca.write("empty.cnf", "[req]\ndistinguished_name = dn\n[dn]\n");
    ca.openssl("req -new -key kc.key -config empty.cnf -subj /CN=v1 -out v1.csr");
    ca.openssl("x509 -req -in v1.csr -signkey kc.key -days 3 -out v1.pem");
    let root = ca.text("ca.pem");
    let said = |content: String| {
        ca.write("ca.pem", &content);
        let said = ca.loaded(&[]).map(|_| ());
        ca.write("ca.pem", &root);
        said
    };
    // As in a fullchain.pem.
    let error = said(ca.text("kc.pem") + &root).unwrap_err();
    assert!(error.contains("CN=kc: it is no CA (basicConstraints without CA:TRUE)"), "{error}");
    let error = said(ca.text("own.pem")).unwrap_err();
    assert!(error.contains("CN=own: it is no CA"), "{error}");
    let error = said(ca.text("v1.pem")).unwrap_err();
    assert!(error.contains("version 1 certificate"), "{error}");
    said(root.clone()).unwrap();
    let sub = Authority::new("root_without_sign");
    let error = sub.loaded(&[]).map(|_| ()).unwrap_err();
    assert!(error.contains("keyUsage without keyCertSign"), "{error}");
    let explicit = Authority::new("root_explicit_policy");
    let error = explicit.loaded(&[]).map(|_| ()).unwrap_err();
    assert!(error.contains("requireExplicitPolicy"), "{error}");
}

#[test]
fn lists_that_cannot_be_used_are_named_with_the_cause() {
    let ca = Authority::new("root");
    ca.issue("kc", "leaf", SUBJECT);
    ca.list("good.crl", "full", -1, 10);
    ca.list("indirect.crl", "indirect", -1, 10);
    ca.openssl("ca -gencrl -config openssl.cnf -name without_numbers -out v1.crl");
    let stranger = Authority::new("root");
    stranger.list("other.crl", "full", -1, 10);
    ca.write("other.crl", &stranger.text("other.crl"));
    ca.write("ca.crl", &ca.text("ca.pem"));
    let two = ca.text("good.crl") + &ca.text("indirect.crl");
    ca.write("two.crl", &two);
    for (list, expected) in [
        ("v1.crl", "v1.crl: it is a version 1 CRL"),
        ("indirect.crl", "indirect.crl: it is an indirect CRL"),
        ("two.crl", "two.crl: its list 2: it is an indirect CRL"),
        (
            "other.crl",
            "other.crl: its CRL bears the name O=Bank, CN=ca and another key's signature",
        ),
        ("ca.crl", "ca.crl: line 1: it holds CERTIFICATE, where only X509 CRL belongs"),
    ] {
        let said = ca.loaded(&[list]).map(|_| ()).unwrap_err();
        assert!(said.contains(expected), "{said}");
    }
    // What an editor of Windows makes of it.
    let windows = format!("\u{feff}{}", ca.text("good.crl").replace('\n', "\r\n"));
    ca.write("windows.crl", &windows);
    ca.loaded(&["windows.crl"]).unwrap();
}

#[test]
fn a_byte_order_mark_drops_no_ca_of_a_bundle() {
    let (one, two) = (Authority::new("root"), Authority::new("root"));
    for ca in [&one, &two] {
        ca.issue("kc", "leaf", SUBJECT);
    }
    let bundle = format!("\u{feff}{}\r\n\u{feff}{}", one.text("ca.pem"), two.text("ca.pem"));
    let path: &Path = &one.at("ca.pem");
    replace(path, bundle);
    let tls = one.loaded(&[]).unwrap();
    for ca in [&one, &two] {
        tls.load().trust().verify(&[der(&ca.text("kc.pem"))], SystemTime::now()).unwrap();
    }
}
