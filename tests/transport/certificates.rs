//! Which client certificates are let in, and as whom.

use claviger::daemon::transport::listener::HandshakeFailure as Failure;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod,
    KeyPair, KeyUsagePurpose, NameConstraints, RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::setup::{
    CA_NAME, Client, DAY, Files, Identified, KEY_CONNECTOR, SECOND_CALLER, anonymous, checking,
    eventually, handshake, replace,
};

fn leaf(names: Vec<SanType>) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::minutes(5);
    parameters.not_after = now + Duration::days(1);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, KEY_CONNECTOR);
    parameters.subject_alt_names = names;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    parameters
}

fn text(text: &str) -> Ia5String {
    text.try_into().unwrap()
}

fn uri(id: &str) -> SanType {
    SanType::URI(text(id))
}

fn good() -> CertificateParams {
    leaf(vec![uri(KEY_CONNECTOR)])
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut parameters = good();
    change(&mut parameters);
    parameters
}

/// A CA made by hand, with an empty CRL.
struct OwnCa {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn ca_parameters(name: &str) -> CertificateParams {
    let mut parameters = CertificateParams::default();
    let now = OffsetDateTime::now_utc();
    parameters.not_before = now - Duration::days(2);
    parameters.not_after = now + Duration::days(2);
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    parameters
}

impl OwnCa {
    fn root(parameters: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { pem, der, issuer: Issuer::new(parameters, key) }
    }

    fn under(&self, parameters: CertificateParams) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.issuer).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { pem, der, issuer: Issuer::new(parameters, key) }
    }

    fn client(&self, parameters: &CertificateParams) -> Identified {
        let mut client = Identified::issued(parameters, &self.issuer);
        client.chain.push(self.der.clone());
        client
    }

    fn crl(&self, revoked: &[u64]) -> String {
        crl_of(&self.issuer, revoked, Duration::days(1))
    }
}

pub(crate) fn crl_of(issuer: &Issuer<'_, KeyPair>, revoked: &[u64], lasts: Duration) -> String {
    let now = OffsetDateTime::now_utc();
    let entry = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: now,
        reason_code: None,
        invalidity_date: None,
    };
    let parameters = CertificateRevocationListParams {
        this_update: now - Duration::days(1),
        next_update: now + lasts,
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().map(entry).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    parameters.signed_by(issuer).unwrap().pem().unwrap()
}

#[tokio::test]
async fn a_good_client_is_known_over_post_quantum_tls_without_resumption() {
    let files = Files::new();
    let setup = files.start();
    let config = checking(&files.key_connector(), files.ca.certificate_pem());
    for _ in 0..3 {
        let stream = handshake(setup.address, config.clone()).await.unwrap();
        let tls = stream.get_ref().1;
        let group = tls.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(tls.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(tls.alpn_protocol(), Some(&b"h2"[..]));
        let mut client = Client::over(stream).await.unwrap();
        assert_eq!(client.ask("/").await.unwrap(), "caller 0");
    }
    assert_eq!(setup.ask(&files.second_caller()).await.unwrap(), "caller 1");
    assert_eq!(setup.stats.handshakes(), 4);
    setup.end().await;
}

#[expect(clippy::too_many_lines, reason = "one list of cases")]
#[tokio::test]
async fn bad_certificates_are_refused_before_any_request() {
    let mut files = Files::new();
    let ours = files.issuer();
    let root = OwnCa::root(ca_parameters("root"));
    let middle = root.under(ca_parameters("middle"));
    let unlisted = root.under(ca_parameters("middle without a CRL"));
    let expired = root.under({
        let mut parameters = ca_parameters("expired middle");
        parameters.not_after = OffsetDateTime::now_utc() - Duration::hours(1);
        parameters
    });
    let revoked = root.under({
        let mut parameters = ca_parameters("revoked middle");
        parameters.serial_number = Some(SerialNumber::from(77_u64));
        parameters
    });
    let short = root.under({
        let mut parameters = ca_parameters("middle, last");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters
    });
    let too_deep = short.under(ca_parameters("middle too many"));
    let constrained = OwnCa::root({
        let mut parameters = ca_parameters("constrained");
        parameters.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("other.org".to_owned())],
            excluded_subtrees: Vec::new(),
        });
        parameters
    });
    let cannot_sign_crls = root.under({
        let mut parameters = ca_parameters("no CRL signer");
        parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        parameters
    });
    let bundle = [files.ca.certificate_pem(), &root.pem, &constrained.pem].concat();
    replace(&files.config.client_ca["clients"], bundle);
    files.config.crl.push(files.at("more.crl"));
    let crls = [
        root.crl(&[77]),
        middle.crl(&[]),
        expired.crl(&[]),
        revoked.crl(&[]),
        short.crl(&[]),
        too_deep.crl(&[]),
        constrained.crl(&[]),
    ];
    replace(&files.at("more.crl"), crls.concat());
    let same_name = OwnCa::root({
        let mut parameters = ca_parameters(CA_NAME);
        parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        parameters
    });
    let stranger = OwnCa::root(ca_parameters("stranger"));
    let revoked_leaf = files.key_connector();
    files.ca.revoke_serial(&revoked_leaf.serial).unwrap();
    files.new_crl();
    let setup = files.start();

    let issued = |parameters: &CertificateParams| Identified::issued(parameters, &ours);
    let with_usage = |usages: Vec<ExtendedKeyUsagePurpose>| {
        issued(&changed(|parameters| parameters.extended_key_usages = usages))
    };
    let now = OffsetDateTime::now_utc();
    let flipped = |place: fn(usize) -> usize| {
        let mut client = issued(&good());
        let mut der = client.chain[0].to_vec();
        let at = place(der.len());
        der[at] ^= 1;
        client.chain[0] = der.into();
        client
    };
    let with_chain = |chain: Vec<CertificateDer<'static>>| Identified { chain, ..issued(&good()) };
    let too_deep = {
        let mut client = too_deep.client(&good());
        client.chain.push(short.der.clone());
        client
    };
    let by_a_leaf = {
        let key = KeyPair::generate().unwrap();
        let parameters = good();
        let certificate = parameters.signed_by(&key, &ours).unwrap();
        let mut client = Identified::issued(&good(), &Issuer::new(parameters, key));
        client.chain.push(certificate.der().clone());
        client
    };
    let the_ca_itself = Identified {
        chain: vec![crate::setup::der(files.ca.certificate_pem())],
        key: crate::setup::key(&std::fs::read_to_string(files.at("ca/ca.key")).unwrap()),
        serial: String::new(),
    };
    let self_signed = {
        let key = KeyPair::generate().unwrap();
        let certificate = good().self_signed(&key).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        Identified { chain: vec![certificate.der().clone()], key, serial: String::new() }
    };

    let cases = [
        (
            "expired",
            issued(&changed(|p| p.not_after = now - Duration::minutes(1))),
            Failure::NotValidNow,
        ),
        (
            "not yet valid",
            issued(&changed(|p| p.not_before = now + Duration::hours(1))),
            Failure::NotValidNow,
        ),
        ("a stranger's CA", stranger.client(&good()), Failure::UnknownIssuer),
        ("another CA of the same name", same_name.client(&good()), Failure::UnknownIssuer),
        ("self-signed", self_signed, Failure::UnknownIssuer),
        (
            "for servers only",
            with_usage(vec![ExtendedKeyUsagePurpose::ServerAuth]),
            Failure::BadCertificate,
        ),
        (
            "for code only",
            with_usage(vec![ExtendedKeyUsagePurpose::CodeSigning]),
            Failure::BadCertificate,
        ),
        ("revoked", revoked_leaf, Failure::Revoked),
        ("the CA itself", the_ca_itself, Failure::BadCertificate),
        ("issued by a leaf", by_a_leaf, Failure::BadCertificate),
        ("signature flipped", flipped(|length| length - 1), Failure::UnknownIssuer),
        ("content flipped", flipped(|length| length / 2), Failure::UnknownIssuer),
        (
            "somebody else's certificate",
            with_chain(files.key_connector().chain),
            Failure::BadCertificate,
        ),
        (
            "bytes that are no certificate",
            with_chain(vec![vec![0x30, 3, 1, 2, 3].into()]),
            Failure::BadCertificate,
        ),
        ("an empty certificate", with_chain(vec![Vec::new().into()]), Failure::BadCertificate),
        (
            "cut short",
            with_chain(vec![files.key_connector().chain[0][..200].to_vec().into()]),
            Failure::BadCertificate,
        ),
        (
            "an unknown critical extension",
            issued(&changed(|p| {
                let mut extension =
                    CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
                extension.set_criticality(true);
                p.custom_extensions.push(extension);
            })),
            Failure::BadCertificate,
        ),
        ("its intermediate has no CRL", unlisted.client(&good()), Failure::RevocationUnknown),
        (
            "its intermediate may not sign CRLs",
            cannot_sign_crls.client(&good()),
            Failure::RevocationUnknown,
        ),
        ("its intermediate has expired", expired.client(&good()), Failure::NotValidNow),
        ("its intermediate is revoked", revoked.client(&good()), Failure::Revoked),
        ("one intermediate too many", too_deep, Failure::BadCertificate),
        (
            "its intermediate was not sent",
            Identified::issued(&good(), &middle.issuer),
            Failure::UnknownIssuer,
        ),
        (
            "outside its CA's name constraints",
            constrained.client(&leaf(vec![SanType::DnsName(text(SECOND_CALLER))])),
            Failure::BadCertificate,
        ),
    ];
    for (what, client, reason) in &cases {
        let before = setup.stats.failed(*reason);
        let outcome = setup.ask(client).await;
        assert!(outcome.is_err(), "{what}: {outcome:?}");
        let failures: Vec<_> = Failure::ALL
            .into_iter()
            .filter_map(|reason| Some(reason.name()).filter(|_| setup.stats.failed(reason) > 0))
            .collect();
        eventually(&format!("{what}: {reason:?} of {failures:?}"), || {
            setup.stats.failed(*reason) == before + 1
        })
        .await;
    }
    assert_eq!((setup.served(), setup.stats.handshakes()), (0, 0));
    assert_eq!(setup.ask(&middle.client(&good())).await.unwrap(), "caller 0");
    setup.end().await;
}

#[tokio::test]
async fn what_is_not_our_tls_is_refused_before_any_request() {
    let files = Files::new();
    let setup = files.start();
    let client = files.key_connector();
    assert!(async { setup.connect(anonymous()).await?.ask("/").await }.await.is_err());
    eventually("no certificate", || setup.stats.failed(Failure::NoCertificate) == 1).await;

    let old = client.config_with(&[&rustls::version::TLS12]);
    assert!(handshake(setup.address, old.into()).await.is_err());
    let mut http1 = client.config_with(&[&rustls::version::TLS13]);
    http1.alpn_protocols = vec![b"http/1.1".to_vec()];
    assert!(handshake(setup.address, http1.into()).await.is_err());
    eventually("incompatible", || setup.stats.failed(Failure::Incompatible) == 2).await;

    let mut plain = tokio::net::TcpStream::connect(setup.address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.len() <= 7, "an alert at most: {answer:?}");
    eventually("plain text", || setup.stats.failed(Failure::Protocol) == 1).await;
    assert_eq!((setup.served(), setup.stats.handshakes()), (0, 0));
    setup.end().await;
}

#[tokio::test]
async fn tls_1_2_is_spoken_only_where_it_is_configured() {
    let mut files = Files::new();
    files.config.allow_tls12 = true;
    let setup = files.start();
    let config = std::sync::Arc::new(files.key_connector().config_with(&[&rustls::version::TLS12]));
    for _ in 0..2 {
        let stream = handshake(setup.address, config.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(Client::over(stream).await.unwrap().ask("/").await.unwrap(), "caller 0");
    }
    setup.end().await;
}

#[tokio::test]
async fn trusted_certificates_of_nobody_are_not_identified() {
    let mut files = Files::new();
    let second = OwnCa::root(ca_parameters("second"));
    let (path, crl) = (files.at("second.pem"), files.at("second.crl"));
    replace(&path, &second.pem);
    replace(&crl, second.crl(&[]));
    files.config.client_ca.insert("second".to_owned(), path);
    files.config.crl.push(crl);
    let setup = files.start();
    let ours = files.issuer();
    let dns = |name: &str| SanType::DnsName(text(name));
    let cases = [
        ("two URI SANs", vec![uri(KEY_CONNECTOR), uri("spiffe://example.org/b")]),
        ("the same URI twice", vec![uri(KEY_CONNECTOR), uri(KEY_CONNECTOR)]),
        ("only a common name", vec![]),
        ("a wildcard", vec![dns("*.example.org")]),
        ("only an address", vec![SanType::IpAddress("127.0.0.1".parse().unwrap())]),
        ("only an e-mail address", vec![SanType::Rfc822Name(text("kc@example.org"))]),
        ("a URI that is no SPIFFE ID", vec![uri("https://example.org/key-connector")]),
        ("that, beside a good DNS name", vec![uri("https://example.org/x"), dns(SECOND_CALLER)]),
        ("another trust domain", vec![uri("spiffe://example.com/key-connector")]),
        ("a longer path", vec![uri("spiffe://example.org/key-connector/x")]),
        ("a query", vec![uri("spiffe://example.org/key-connector?x=1")]),
        ("other case", vec![uri("spiffe://example.org/Key-Connector")]),
        ("a port", vec![uri("spiffe://example.org:1/key-connector")]),
        ("a final dot", vec![dns("kc.example.org.")]),
        ("a subdomain", vec![dns("x.kc.example.org")]),
        ("the URI as a DNS name", vec![dns("key-connector")]),
    ];
    for (what, names) in cases {
        let answer = setup.ask(&Identified::issued(&leaf(names), &ours)).await.unwrap();
        assert!(answer.starts_with("unidentified"), "{what}: {answer}");
    }
    let from_the_other_ca = setup.ask(&second.client(&good())).await.unwrap();
    assert!(from_the_other_ca.starts_with("unidentified"), "{from_the_other_ca}");
    assert_eq!(setup.served(), 0);
    assert_eq!(setup.ask(&files.key_connector()).await.unwrap(), "caller 0");
    setup.end().await;
}

type Change = fn(&mut Files);

#[tokio::test]
async fn configurations_that_could_lock_out_or_let_in_are_refused_in_words() {
    use claviger::daemon::transport::tls::TlsState;
    use claviger::pki::{Ca, CaOptions};

    let refusal = |change: fn(&mut Files)| {
        let mut files = Files::new();
        change(&mut files);
        TlsState::open(&files.config, false).unwrap_err().to_string()
    };
    let demo = |files: &Files| {
        let options = CaOptions { demo: true, ..CaOptions::default() };
        Ca::create(&files.at("demo"), &options).unwrap()
    };
    let second_ca: Change = |files| {
        let second = OwnCa::root(ca_parameters("second"));
        let both = [files.ca.certificate_pem(), &second.pem].concat();
        replace(&files.config.client_ca["clients"], both);
    };
    let forged_crl: Change = |files| {
        let other = OwnCa::root(ca_parameters(CA_NAME));
        replace(&files.config.crl[0], other.crl(&[]));
    };
    let other_key: Change = |files| {
        let key = KeyPair::generate().unwrap().serialize_pem();
        replace(&files.config.private_key, key);
    };
    let open_mode: Change = |files| {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(&files.config.client_ca["clients"], mode).unwrap();
    };
    let in_two_bundles: Change = |files| {
        let path = files.config.client_ca["clients"].clone();
        files.config.client_ca.insert("again".to_owned(), path);
    };
    for (change, words) in [
        (second_ca, "there is no CRL of CN=second"),
        (forged_crl, "another key's signature"),
        (other_key, "not the one of the certificate"),
        (open_mode, "lets others write it"),
        (in_two_bundles, "Keep it in one"),
        (|files| replace(&files.config.crl[0], "hello"), "no X509 CRL"),
        (|files| replace(&files.config.crl[0], [0x30, 1]), "cannot be parsed"),
        (|files| replace(&files.config.certificate, ""), "no certificate"),
        (|files| replace(&files.config.private_key, "-"), "no private key"),
        (|files| files.config.crl[0] = files.at("nowhere"), "nowhere"),
    ] {
        let error = refusal(change);
        assert!(error.contains(words), "{words}: {error}");
    }

    let files = Files::new();
    let ca = demo(&files);
    replace(&files.config.client_ca["clients"], ca.certificate_pem());
    replace(&files.config.crl[0], ca.crl(DAY).unwrap());
    let error = TlsState::open(&files.config, false).unwrap_err().to_string();
    assert!(error.contains("the demo's CA"), "{error}");
    assert!(TlsState::open(&files.config, true).is_ok());
    let files = Files::new();
    let issued = demo(&files).issue_server(&["127.0.0.1".to_owned()], DAY).unwrap();
    replace(&files.config.certificate, &issued.certificate_pem);
    replace(&files.config.private_key, &issued.private_key_pem);
    let error = TlsState::open(&files.config, false).unwrap_err().to_string();
    assert!(error.contains("the demo's CA"), "{error}");
}
