//! Why a certificate was refused, in words: this program's by the daemon, or the daemon's by this
//! program.

use std::path::Path;

use rustls::{AlertDescription, CertificateError};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Why the daemon refused the certificate in `file`: an alert is a single number (RFC 8446 section
/// 6.2), and for its validity the file tells the rest.
pub(crate) fn refused(alert: AlertDescription, file: &Path) -> String {
    let name = file.display();
    match alert {
        AlertDescription::CertificateExpired => outside_validity(file, ASN1Time::now()),
        AlertDescription::UnknownCA => format!("no CA that the daemon trusts has issued {name}"),
        // A signature that does not verify, where the issuer's name is right.
        AlertDescription::DecryptError | AlertDescription::BadCertificate => format!(
            "the daemon trusts a CA with the name of the one that issued {name}, but with another \
             key; have the certificate issued by the daemon's own client CA"
        ),
        AlertDescription::CertificateRevoked => format!("{name} is revoked"),
        AlertDescription::CertificateRequired => "the daemon did not get one".to_owned(),
        other => format!("{name}: TLS alert {other:?}"),
    }
}

fn outside_validity(file: &Path, now: ASN1Time) -> String {
    let name = file.display();
    let Some((not_before, not_after)) = validity(file) else {
        return format!("{name} is expired or not yet valid");
    };
    let (from, until) = (date(not_before), date(not_after));
    if now > not_after {
        format!("{name} expired on {until}; have a new one issued")
    } else if now < not_before {
        format!("{name} is not valid before {from}; check this host's clock")
    } else {
        format!(
            "{name} is valid from {from} to {until}, but not by the daemon's clock; check the \
             clock there"
        )
    }
}

fn validity(file: &Path) -> Option<(ASN1Time, ASN1Time)> {
    let der = CertificateDer::from_pem_file(file).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some((certificate.validity.not_before, certificate.validity.not_after))
}

/// Why the daemon's certificate was refused.
pub(crate) fn not_trusted(error: &CertificateError) -> String {
    let seconds = |time: &UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        ASN1Time::from_timestamp(seconds).map_or_else(|_| "a far date".to_owned(), date)
    };
    match error {
        CertificateError::UnknownIssuer => "no CA in `ca` has issued it".to_owned(),
        CertificateError::BadSignature => {
            "a CA in `ca` has the name of the one that issued it, but another key".to_owned()
        }
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("it expired on {}", seconds(not_after))
        }
        CertificateError::NotValidYetContext { not_before, .. } => {
            format!("it is not valid before {}; check this host's clock", seconds(not_before))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented = presented.join(", ");
            format!("it is for {presented}, not for {}", expected.to_str())
        }
        other => other.to_string(),
    }
}

fn date(time: ASN1Time) -> String {
    let time = time.to_datetime();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", time.hour(), time.minute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair, date_time_ymd};
    use rustls::pki_types::ServerName;
    use std::time::Duration;

    fn file(from: (i32, u8), until: (i32, u8)) -> tempfile::NamedTempFile {
        let mut params = CertificateParams::new(["client".to_owned()]).unwrap();
        params.not_before = date_time_ymd(from.0, from.1, 1);
        params.not_after = date_time_ymd(until.0, until.1, 1);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), certificate.pem()).unwrap();
        file
    }

    #[test]
    fn an_expired_certificate_is_told_from_one_that_is_not_yet_valid_with_file_and_date() {
        let said = |from, until| {
            let file = file(from, until);
            let said = refused(AlertDescription::CertificateExpired, file.path());
            said.replace(file.path().to_str().unwrap(), "FILE")
        };
        assert_eq!(
            said((2020, 1), (2021, 2)),
            "FILE expired on 2021-02-01 00:00 UTC; have a new one issued"
        );
        assert_eq!(
            said((2999, 3), (3000, 1)),
            "FILE is not valid before 2999-03-01 00:00 UTC; check this host's clock"
        );
        assert_eq!(
            said((2020, 1), (2999, 1)),
            "FILE is valid from 2020-01-01 00:00 UTC to 2999-01-01 00:00 UTC, but not by the \
             daemon's clock; check the clock there"
        );
        let gone = refused(AlertDescription::CertificateExpired, Path::new("/gone.crt"));
        assert_eq!(gone, "/gone.crt is expired or not yet valid");
    }

    #[test]
    fn a_certificate_of_another_ca_is_said_to_be_so_without_words_of_the_protocol() {
        let said = |alert| refused(alert, Path::new("client.crt"));
        assert_eq!(
            said(AlertDescription::UnknownCA),
            "no CA that the daemon trusts has issued client.crt"
        );
        for alert in [AlertDescription::DecryptError, AlertDescription::BadCertificate] {
            assert!(said(alert).contains("but with another key"), "{}", said(alert));
        }
        assert_eq!(said(AlertDescription::CertificateRevoked), "client.crt is revoked");
        assert!(said(AlertDescription::InternalError).ends_with("TLS alert InternalError"));
    }

    #[test]
    fn the_daemons_certificate_is_refused_in_words() {
        let day = |days: u64| UnixTime::since_unix_epoch(Duration::from_secs(days * 86_400));
        let name = ServerName::try_from("kms.example").unwrap();
        for (error, expected) in [
            (CertificateError::UnknownIssuer, "no CA in `ca` has issued it"),
            (
                CertificateError::BadSignature,
                "a CA in `ca` has the name of the one that issued it, but another key",
            ),
            (
                CertificateError::ExpiredContext { time: day(2), not_after: day(1) },
                "it expired on 1970-01-02 00:00 UTC",
            ),
            (
                CertificateError::NotValidYetContext { time: day(1), not_before: day(2) },
                "it is not valid before 1970-01-03 00:00 UTC; check this host's clock",
            ),
            (
                CertificateError::NotValidForNameContext {
                    expected: name,
                    presented: vec!["DnsName(\"a\")".into()],
                },
                "it is for DnsName(\"a\"), not for kms.example",
            ),
        ] {
            assert_eq!(not_trusted(&error), expected);
        }
    }
}
