//! The demo's network: three namespaces that stand for three machines.
//!
//! ```text
//!   clients                        host-a                       host-b
//!   br0 10.77.0.1/24 ── to-a ════ uplink ── br0 ── tap0
//!                    ── to-b ══════════════════════════════════ uplink ── br0 ── tap0
//!                                  log 10.78.0.1/24 ═══════════ log 10.78.0.2/24
//! ```
//!
//! `══` is a veth pair. The guest is 10.77.0.2 with one MAC address, behind `tap0` of whichever host
//! runs it; the bridges do not learn where that is, so that both taps receive what is for it. The bridges of the hosts have no address on the
//! clients' network, and the logging network is apart from it.

use super::{Mac, Namespace, NamespaceError, VethEnd};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;

/// Address of `clients` on the clients' network.
pub const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The guest's address there.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The guest's MAC address, on whichever host it runs (locally administered).
pub const GUEST_MAC: Mac = [0x02, 0x4c, 0x53, 0x00, 0x00, 0x02];
/// Address of `host-a` on the logging network.
pub const LOG_ADDRESS_A: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
/// Address of `host-b` on the logging network.
pub const LOG_ADDRESS_B: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Prefix length of both networks.
pub const NETWORK_PREFIX: u8 = 24;
/// The tap of each host.
pub const TAP_NAME: &str = "tap0";
/// The ports of the clients' bridge that lead to `host-a` and `host-b`. What is received there was
/// said by the machine on that host: nothing else on it speaks on the clients' network.
pub const CLIENT_PORTS: [&str; 2] = ["to-a", "to-b"];

const BRIDGE: &str = "br0";
const UPLINK: &str = "uplink";
const LOG: &str = "log";

/// The three namespaces, wired.
#[derive(Debug)]
pub struct Topology {
    /// Where the load comes from.
    pub clients: Namespace,
    /// Where the first primary runs.
    pub host_a: Namespace,
    /// Where the first backup runs.
    pub host_b: Namespace,
}

impl Topology {
    /// Builds it. Everything vanishes with this object and the processes placed inside.
    ///
    /// # Errors
    /// The host lacks something; see [`super::probe`].
    pub fn build() -> Result<Self, NamespaceError> {
        let clients = Namespace::create("clients")?;
        let host_a = Namespace::create("host-a")?;
        let host_b = Namespace::create("host-b")?;

        clients.configure(|netlink| {
            netlink.add_bridge(BRIDGE, mac(0x10))?;
            netlink.add_address(BRIDGE, CLIENT_ADDRESS, NETWORK_PREFIX)?;
            netlink.set_up(BRIDGE)
        })?;
        for (host, number, port) in [
            (&host_a, 0x20, CLIENT_PORTS[0]),
            (&host_b, 0x30, CLIENT_PORTS[1]),
        ] {
            clients.configure(|netlink| {
                let here = end(port, number);
                netlink.add_veth(here, end(UPLINK, number + 1), host.as_fd())?;
                netlink.join_bridge(port, BRIDGE)?;
                netlink.set_up(port)
            })?;
            host.add_tap(TAP_NAME)?;
            host.configure(|netlink| {
                netlink.add_bridge(BRIDGE, mac(number + 2))?;
                netlink.silence_ipv6(UPLINK)?;
                for link in [UPLINK, TAP_NAME] {
                    netlink.join_bridge(link, BRIDGE)?;
                    netlink.set_up(link)?;
                }
                netlink.set_up(BRIDGE)
            })?;
        }
        host_a.configure(|netlink| {
            netlink.add_veth(end(LOG, 0x40), end(LOG, 0x41), host_b.as_fd())?;
            netlink.add_address(LOG, LOG_ADDRESS_A, NETWORK_PREFIX)?;
            netlink.set_up(LOG)
        })?;
        host_b.configure(|netlink| {
            netlink.silence_ipv6(LOG)?;
            netlink.add_address(LOG, LOG_ADDRESS_B, NETWORK_PREFIX)?;
            netlink.set_up(LOG)
        })?;
        Ok(Self {
            clients,
            host_a,
            host_b,
        })
    }
}

/// The MAC address of interface `number` of this topology.
fn mac(number: u8) -> Mac {
    [0x02, 0x4c, 0x53, 0x01, 0x00, number]
}

fn end(name: &str, number: u8) -> VethEnd<'_> {
    VethEnd {
        name,
        mac: mac(number),
    }
}
