//! The address of a client: the peer's, or what a proxy that is named in the configuration says.

use std::net::IpAddr;

use http::HeaderMap;
use ipnet::IpNet;

const FORWARDED_FOR: &str = "x-forwarded-for";

/// The last address in `X-Forwarded-For` that is no proxy of ours; what stands before it was written by
/// others. Without such a header, or from a peer that is no proxy, the peer's own.
pub fn client_address(peer: IpAddr, headers: &HeaderMap, proxies: &[IpNet]) -> IpAddr {
    let peer = peer.to_canonical();
    let is_proxy = |address: &IpAddr| proxies.iter().any(|network| network.contains(address));
    if !is_proxy(&peer) {
        return peer;
    }
    let lines = headers.get_all(FORWARDED_FOR).iter().filter_map(|line| line.to_str().ok());
    let lines: Vec<_> = lines.collect();
    let mut last = peer;
    for entry in lines.iter().flat_map(|line| line.split(',')).rev() {
        let Ok(address) = entry.trim().parse::<IpAddr>() else { break };
        last = address.to_canonical();
        if !is_proxy(&last) {
            break;
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_named_proxies_are_believed_and_only_what_they_wrote() {
        let proxies: Vec<IpNet> = vec!["172.16.0.0/12".parse().unwrap()];
        let of = |peer: &str, lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_FOR, line.parse().unwrap());
            }
            client_address(peer.parse().unwrap(), &headers, &proxies).to_string()
        };
        assert_eq!(of("172.18.0.3", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(of("::ffff:172.18.0.3", &["203.0.113.7"]), "203.0.113.7");
        assert_eq!(of("172.18.0.3", &["1.1.1.1, 203.0.113.7, 172.18.0.9"]), "203.0.113.7");
        assert_eq!(of("172.18.0.3", &["1.1.1.1", "203.0.113.7"]), "203.0.113.7");
        assert_eq!(of("203.0.113.9", &["1.1.1.1"]), "203.0.113.9", "no proxy of ours");
        assert_eq!(of("172.18.0.3", &[]), "172.18.0.3");
        assert_eq!(of("172.18.0.3", &["1.1.1.1, garbage"]), "172.18.0.3");
    }
}
