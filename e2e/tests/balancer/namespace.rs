//! A network namespace with one link to the host: what is started there can be cut off from it.

use std::net::Ipv4Addr;
use std::process;

use e2e::process::command;

/// A network namespace; removed when dropped, with its link.
pub(crate) struct Namespace {
    name: String,
    /// The end of the link on the host.
    link: String,
    host: Ipv4Addr,
    /// Its own address.
    pub(crate) address: Ipv4Addr,
}

impl Namespace {
    /// Number `number`, from 0 to 63, of this process. Needs root, and `ip` of the package iproute2.
    pub(crate) fn new(number: u8) -> Self {
        let id = process::id();
        let [.., third] = id.to_be_bytes();
        let own = |host: u8| Ipv4Addr::new(10, 213, third, 4 * number + host);
        let name = format!("claviger-{id}-{number}");
        // Names of links have at most 15 characters.
        let link = format!("cl{id}n{number}");
        let namespace = Self { name, link, host: own(1), address: own(2) };
        let Self { name, link, host, .. } = &namespace;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {name}"));
        ip(&format!("addr add {host}/30 dev {link}"));
        ip(&format!("link set {link} up"));
        ip(&format!("-n {name} link set lo up"));
        ip(&format!("-n {name} link set eth0 up"));
        namespace.connect();
        namespace
    }

    /// The script that starts its arguments inside.
    pub(crate) fn script(&self) -> String {
        format!(r#"exec ip netns exec {} "$0" "$@""#, self.name)
    }

    /// From now on packets to it and from it vanish; no connection is ended.
    pub(crate) fn cut_off(&self) {
        ip(&format!("-n {} addr flush dev eth0", self.name));
    }

    /// Takes it in again.
    pub(crate) fn connect(&self) {
        ip(&format!("-n {} addr add {}/30 dev eth0", self.name, self.address));
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        for arguments in [format!("link del {}", self.link), format!("netns del {}", self.name)] {
            let _ = command("ip").args(arguments.split(' ')).status();
        }
    }
}

fn ip(arguments: &str) {
    let output = command("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {error}; this test needs root");
}
