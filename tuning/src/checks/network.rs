//! Sockets, and what the guest's network is made of.

use super::source::Text;
use super::{Check, Finding};
use lockstep_vmm::host::namespaces::{self, Privilege};
use lockstep_vmm::settings::{Settings, TransportKind};
use std::fs::OpenOptions;

const BUSY_POLL: Check = Check {
    name: "busy-poll",
    wanted: "channel.busy-poll-us, or net.core.busy_read and busy_poll, at about 50 (transport tcp, \
             hosts with a core to spare)",
    costs: "each packet waits for the card's interrupt and a wake-up: 5 to 50 µs more for an \
            acknowledgement",
    remedy: "set channel.busy-poll-us to 50 (needs CAP_NET_ADMIN), or sysctl net.core.busy_read=50 \
             net.core.busy_poll=50",
};

/// `/proc/sys/net/core/busy_poll` and `busy_read`.
pub(super) fn busy_poll(poll: &Text, read: &Text, settings: &Settings) -> Finding {
    if settings.channel.transport == TransportKind::Shm {
        return BUSY_POLL.good("the log does not go through sockets (transport shm)");
    }
    let knob = settings.channel.busy_poll_us;
    if knob > 0 {
        return BUSY_POLL.good(format!("channel.busy-poll-us is {knob}"));
    }
    match (poll.as_deref(), read.as_deref()) {
        (Err(why), _) | (_, Err(why)) => BUSY_POLL.unknown(why),
        (Ok(poll), Ok(read)) => BUSY_POLL.judge(
            poll != "0" && read != "0",
            format!("busy_poll {poll}, busy_read {read}, channel.busy-poll-us 0"),
        ),
    }
}

const TUN: Check = Check {
    name: "tun",
    wanted: "/dev/net/tun may be opened",
    costs: "no tap for the guest: it can have a rootless switch only, which copies each frame through \
            another process",
    remedy: "modprobe tun; in a container pass the device in (--device /dev/net/tun)",
};

/// Opening the device alone makes no interface.
pub(super) fn tun() -> Finding {
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    match opened {
        Ok(_) => TUN.good("/dev/net/tun opens"),
        Err(error) => TUN.costs(format!("/dev/net/tun: {error}")),
    }
}

const NAMESPACES: Check = Check {
    name: "network-namespaces",
    wanted: "this user may make them",
    costs: "no demo and no benchmark over a network of their own on this host",
    remedy: "run as root, or allow unprivileged user namespaces (what was found says which setting \
             forbids them)",
};

pub(super) fn namespaces() -> Finding {
    match namespaces::probe() {
        Ok(Privilege::Held) => NAMESPACES.good("made one with bridge, veth pair and tap"),
        Ok(Privilege::UserNamespace) => NAMESPACES.good("in a user namespace of one's own"),
        Err(error) => NAMESPACES.costs(error.to_string()),
    }
}
