//! Restricts webhooks to addresses of the public internet, so that they cannot reach the networks of the server itself.
//!
//! An address in the URL is checked directly. The addresses of a name are checked in the resolver of the HTTP client, so that the
//! client cannot connect to an address that was not checked.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why a name is rejected. The text is the same for unknown names and names of internal addresses, so that a user who may set a
/// channel cannot find out which internal names exist.
pub const REFUSED: &str =
    "leads to no public address: it is not known, or private, loopback, link-local or otherwise special";

/// Top-level names that are never on the public internet (RFC 6761, 6762 and 8375, and names that ICANN reserves for internal use).
const INTERNAL_SUFFIXES: [&str; 8] =
    ["localhost", "local", "localdomain", "internal", "intranet", "lan", "home.arpa", "corp"];

/// Returns whether a name can only lead to an internal address: it has no domain, or a domain for internal use.
pub fn is_internal_name(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    let is_below = |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    !name.contains('.') || INTERNAL_SUFFIXES.iter().any(|suffix| is_below(suffix))
}

/// Networks that are not on the public internet (RFC 6890 and its updates), with the lengths of their prefixes in bits.
const SPECIAL_V4: [(Ipv4Addr, u32); 15] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, then reserved with broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Returns whether the address is on the public internet.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = |(network, bits): &(Ipv4Addr, u32)| (address.to_bits() ^ network.to_bits()) >> (32 - bits) == 0;
    !SPECIAL_V4.iter().any(special)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let embedded = |high: u16, low: u16| is_public_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match address.segments() {
        // NAT64, by which networks without IPv4 reach IPv4 hosts.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        // 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        // Protocol assignments, such as Teredo and benchmarking. Documentation.
        [0x2001, 0..0x200, ..] | [0x2001, 0xdb8, ..] | [0x3fff, 0..0x1000, ..] => false,
        // Global unicast. Other addresses are mapped, compatible, unspecified, loopback, unique local, link-local, multicast.
        [first, ..] => first >> 13 == 1,
    }
}

/// Resolves names with the resolver of the system, and returns only public addresses.
pub struct PublicResolver;

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            // The HTTP client replaces port 0 by the port of the URL.
            let found = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map(|found| found.filter(|address| is_public(address.ip())).collect::<Vec<SocketAddr>>());
            let public = match found {
                Ok(public) if !public.is_empty() => public,
                failed => {
                    // Only the operator may see the difference.
                    let error = failed.err().map(|error| error.to_string());
                    tracing::info!(name = name.as_str(), error, "the host name of a webhook has no public address");
                    return Err(REFUSED.into());
                }
            };
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_public_internet_are_accepted() {
        let public = ["1.1.1.1", "93.184.216.34", "172.32.0.1", "100.128.0.1", "198.20.0.1", "2606:4700::1111"];
        let reachable = ["64:ff9b::101:101", "2002:101:101::1", "2001:4860:4860::8888"];
        for address in public.iter().chain(&reachable) {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
        let v4 = [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
        ];
        let v6 = [
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "::127.0.0.1",
            "::10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b:1::1.1.1.1",
            "100::1",
            "2001::1",
            "2001:10::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
            "2002:c0a8:101::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd12:3456::1",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "4000::1",
        ];
        for address in v4.iter().chain(&v6) {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[tokio::test]
    async fn names_of_this_machine_and_unknown_names_have_the_same_error() {
        for name in ["localhost", "no-such-host.invalid"] {
            let Err(error) = PublicResolver.resolve(name.parse().unwrap()).await else { panic!("{name}") };
            assert_eq!(error.to_string(), REFUSED);
        }
    }

    #[test]
    fn internal_names_are_recognised_without_a_lookup() {
        let internal =
            ["localhost", "LocalHost.", "a.localhost", "intranet", "db.internal", "printer.local", "x.home.arpa"];
        for name in internal {
            assert!(is_internal_name(name), "{name}");
        }
        for name in ["example.com", "localhost.example.com", "notlocal.net", "hooks.invalid", "mylocalhost.io"] {
            assert!(!is_internal_name(name), "{name}");
        }
    }
}
