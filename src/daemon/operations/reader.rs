//! Who asks the operations listener, and whether a browser was led here by a page of another site.

use http::header::{HOST, HeaderMap};
use rustls_pki_types::CertificateDer;

use super::Authorise;

/// Who asks.
pub(super) enum Reader {
    /// Any program of this host: loopback without TLS.
    ThisHost,
    /// Who showed this chain, which was verified; it may be empty.
    Peer {
        /// The leaf first.
        chain: Vec<CertificateDer<'static>>,
        /// Whether it is a reader at this moment.
        authorise: Authorise,
    },
}

impl Reader {
    pub(super) fn peer(chain: &[CertificateDer<'_>], authorise: Authorise) -> Self {
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        Self::Peer { chain, authorise }
    }

    /// Whether it may read more than the probes, at this moment.
    pub(super) fn may_read(&self) -> bool {
        match self {
            Self::ThisHost => true,
            Self::Peer { chain, authorise } => !chain.is_empty() && authorise(chain),
        }
    }

    /// Whether a browser asks for a page of another site. On loopback without TLS the browser of any user
    /// of the host could be used so: by a name of that site that means this address (DNS rebinding), or
    /// by a request from its page (Fetch Metadata Request Headers, section 2.3).
    pub(super) fn is_led_here(&self, headers: &HeaderMap) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let by_name = || text(HOST.as_str()).is_some_and(|host| !means_this_host(host));
        let by_page = || text("sec-fetch-site").is_some_and(|site| site.ends_with("-site"));
        match self {
            Self::ThisHost => by_name() || by_page(),
            Self::Peer { .. } => by_page(),
        }
    }
}

/// Whether no other site can have this name: `localhost`, or an address.
fn means_this_host(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _port)| name);
    let is_ipv6 = host.starts_with('[');
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let is_localhost = name == "localhost" || name.ends_with(".localhost");
    is_ipv6 || is_localhost || name.parse::<std::net::Ipv4Addr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_led_here(reader: &Reader, headers: &[(&'static str, &str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), value.parse().expect("a header's value"))
        });
        reader.is_led_here(&headers.collect())
    }

    #[test]
    fn a_name_that_another_site_can_have_is_refused_on_loopback_and_its_pages_everywhere() {
        let peer = Reader::peer(&[], std::sync::Arc::new(|_| true));
        for host in ["127.0.0.1:9443", "127.0.0.1", "localhost:9443", "a.localhost", "[::1]:9443"] {
            assert!(!is_led_here(&Reader::ThisHost, &[("host", host)]), "{host}");
        }
        for host in ["example.org:9443", "example.org", "localhost.example.org", "127.0.0.1.nip.io"]
        {
            assert!(is_led_here(&Reader::ThisHost, &[("host", host)]), "{host}");
            assert!(
                !is_led_here(&peer, &[("host", host)]),
                "{host}: the certificate says who it is"
            );
        }
        for (site, led) in
            [("same-origin", false), ("none", false), ("same-site", true), ("cross-site", true)]
        {
            assert_eq!(is_led_here(&peer, &[("sec-fetch-site", site)]), led, "{site}");
            let headers = [("host", "localhost"), ("sec-fetch-site", site)];
            assert_eq!(is_led_here(&Reader::ThisHost, &headers), led, "{site}");
        }
        assert!(!is_led_here(&Reader::ThisHost, &[]), "HTTP/1.0 has no Host");
    }
}
