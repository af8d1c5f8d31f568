//! Links and addresses of one network namespace, by rtnetlink (rtnetlink(7)): what the `ip` program
//! does, for the few things that are needed here.

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoBridgePort,
    InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo,
    LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

/// A MAC address.
pub type Mac = [u8; 6];

/// The kernel refused a change to the network.
#[derive(Debug, thiserror::Error)]
#[error("{step} failed: {source}{}", advice(source))]
pub struct NetlinkError {
    /// What was being done, with the names of the interfaces.
    pub step: String,
    /// What the kernel said.
    pub source: io::Error,
}

/// What can be done about the answers that come from the kernel's configuration.
fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            " (the kernel lacks this kind of interface: `modprobe veth bridge`, or a kernel with \
             CONFIG_VETH and CONFIG_BRIDGE)"
        }
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN in this network namespace)",
        _ => "",
    }
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// The interface's name.
    pub name: &'a str,
    /// Its MAC address.
    pub mac: Mac,
}

/// A netlink socket. It speaks about the namespace in which it was made, whichever thread uses it.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket for the network namespace of the calling thread.
    ///
    /// # Errors
    /// No netlink in this kernel.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Makes a bridge that forwards at once: no spanning tree, no multicast snooping.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_bridge(&mut self, name: &str, mac: Mac) -> Result<(), NetlinkError> {
        let mut message = link_named(name);
        message.attributes.push(LinkAttribute::Address(mac.into()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            LinkInfo::Data(InfoData::Bridge(vec![
                InfoBridge::StpState(BridgeStpState::Disabled),
                InfoBridge::ForwardDelay(0),
                InfoBridge::MulticastSnooping(false),
            ])),
        ]));
        self.create(message)
            .map_err(|source| refused(format!("making bridge `{name}`"), source))?;
        self.silence_ipv6(name)
    }

    /// Makes a pair of connected Ethernet interfaces, `here` in this namespace, `there` in `other`.
    /// `silence_ipv6` there is up to the caller.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn add_veth(
        &mut self,
        here: VethEnd<'_>,
        there: VethEnd<'_>,
        other: BorrowedFd<'_>,
    ) -> Result<(), NetlinkError> {
        let mut peer = link_named(there.name);
        peer.attributes
            .push(LinkAttribute::Address(there.mac.into()));
        // The descriptor stays open during the request, which is all that the kernel needs.
        peer.attributes
            .push(LinkAttribute::NetNsFd(other.as_raw_fd()));
        let mut message = link_named(here.name);
        message
            .attributes
            .push(LinkAttribute::Address(here.mac.into()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.create(message).map_err(|source| {
            refused(
                format!("making veth pair `{}`, `{}`", here.name, there.name),
                source,
            )
        })?;
        self.silence_ipv6(here.name)
    }

    /// Makes `link` a port of the bridge `bridge`, which does not learn what is behind it: a frame for
    /// a guest goes to every port, and so to the guest's backup as well (see [`crate::ft::shadow`]).
    ///
    /// # Errors
    /// One of them is not there, or the kernel refused.
    pub fn join_bridge(&mut self, link: &str, bridge: &str) -> Result<(), NetlinkError> {
        let step = || format!("making `{link}` a port of bridge `{bridge}`");
        let index = self
            .link_index(bridge)
            .map_err(|source| refused(step(), source))?;
        let mut message = link_named(link);
        message.attributes.push(LinkAttribute::Controller(index));
        self.change(message)
            .map_err(|source| refused(step(), source))?;
        // A port's own attributes can be set once it is one.
        let mut message = link_named(link);
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::Learning(
                false,
            )])),
        ]));
        self.change(message).map_err(|source| {
            refused(
                format!("keeping bridge `{bridge}` from learning what is behind `{link}`"),
                source,
            )
        })
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// It is not there, or the kernel refused.
    pub fn set_up(&mut self, link: &str) -> Result<(), NetlinkError> {
        let mut message = link_named(link);
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
        self.change(message)
            .map_err(|source| refused(format!("setting `{link}` up"), source))
    }

    /// Gives an interface an IPv4 address and the route to its network.
    ///
    /// # Errors
    /// It is not there, or the kernel refused.
    pub fn add_address(
        &mut self,
        link: &str,
        address: Ipv4Addr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let step = || format!("giving `{link}` the address {address}/{prefix}");
        let index = self
            .link_index(link)
            .map_err(|source| refused(step(), source))?;
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = prefix;
        message.header.index = index;
        let address = IpAddr::V4(address);
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
        ];
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .map(drop)
        .map_err(|source| refused(step(), source))
    }

    /// Keeps an interface from speaking IPv6 by itself (router solicitations, duplicate address
    /// detection), so that a measured network carries nothing but what is measured.
    ///
    /// # Errors
    /// It is not there, or the kernel refused; a kernel without IPv6 is silent already.
    pub fn silence_ipv6(&mut self, link: &str) -> Result<(), NetlinkError> {
        let mut message = link_named(link);
        message
            .attributes
            .push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]));
        match self.change(message) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Ok(()),
            result => {
                result.map_err(|source| refused(format!("silencing IPv6 on `{link}`"), source))
            }
        }
    }

    fn link_index(&mut self, name: &str) -> io::Result<u32> {
        match self.request(RouteNetlinkMessage::GetLink(link_named(name)), 0)? {
            Some(RouteNetlinkMessage::NewLink(link)) => Ok(link.header.index),
            other => Err(io::Error::other(format!(
                "expected the interface's description, the kernel sent {other:?}"
            ))),
        }
    }

    fn create(&mut self, message: LinkMessage) -> io::Result<()> {
        let message = RouteNetlinkMessage::NewLink(message);
        self.request(message, NLM_F_CREATE | NLM_F_EXCL).map(drop)
    }

    fn change(&mut self, message: LinkMessage) -> io::Result<()> {
        // NEWLINK without CREATE changes what is there, and unlike SETLINK knows all attributes.
        self.request(RouteNetlinkMessage::NewLink(message), 0)
            .map(drop)
    }

    /// One request, its answer (if it has one) and its acknowledgement.
    fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<Option<RouteNetlinkMessage>> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        packet.header.sequence_number = self.sequence;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let mut answer = None;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| invalid(error.to_string()))?;
                let length = reply.header.length as usize;
                // Messages in a datagram are aligned to 4 bytes.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if reply.header.sequence_number != self.sequence {
                    continue;
                }
                match reply.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code {
                            None => Ok(answer),
                            Some(_) => Err(error.to_io()),
                        };
                    }
                    NetlinkPayload::InnerMessage(inner) => answer = Some(inner),
                    other => return Err(invalid(format!("unexpected {other:?}"))),
                }
            }
        }
    }
}

fn link_named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn refused(step: String, source: io::Error) -> NetlinkError {
    NetlinkError { step, source }
}
