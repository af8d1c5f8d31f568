//! Tells the switches where a MAC address lives now (paper 2.3, 3.1).
//!
//! A machine that goes live has the MAC of the one that died, on another port of the network. A frame
//! from that MAC makes every switch on the way learn the new port. What the monitor does not know is
//! the guest's IP address, so the frame is a RARP "reverse request" (RFC 903), which asks nothing of
//! anybody and carries only the MAC; hypervisors use it for the same purpose. Where the address is
//! known, a gratuitous ARP (RFC 5227 section 3) also refreshes the neighbours' caches.

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Shortest Ethernet frame without FCS (IEEE 802.3 3.2.7); what is shorter is padded with zeros.
pub const FRAME_BYTES: usize = 60;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_RARP: u16 = 0x8035;
const OPERATION_ARP_REQUEST: u16 = 1;
const OPERATION_REVERSE_REQUEST: u16 = 3;

/// The RARP frame that announces `mac`.
#[must_use]
pub fn rarp(mac: Mac) -> [u8; FRAME_BYTES] {
    // Sender and target are the same, their protocol addresses unknown (RFC 903 section 2).
    frame(
        ETHERTYPE_RARP,
        OPERATION_REVERSE_REQUEST,
        mac,
        [0; 4],
        mac,
        [0; 4],
    )
}

/// The gratuitous ARP request that announces that `ip` is at `mac`.
#[must_use]
pub fn gratuitous_arp(mac: Mac, ip: [u8; 4]) -> [u8; FRAME_BYTES] {
    frame(ETHERTYPE_ARP, OPERATION_ARP_REQUEST, mac, ip, [0; 6], ip)
}

/// RFC 826's layout, for Ethernet and IPv4, broadcast.
fn frame(
    ethertype: u16,
    operation: u16,
    sender: Mac,
    sender_ip: [u8; 4],
    target: Mac,
    target_ip: [u8; 4],
) -> [u8; FRAME_BYTES] {
    const HARDWARE_ETHERNET: u16 = 1;
    const PROTOCOL_IPV4: u16 = 0x0800;
    let mut frame = [0; FRAME_BYTES];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        at += bytes.len();
    };
    put(&[0xff; 6]);
    put(&sender);
    put(&ethertype.to_be_bytes());
    put(&HARDWARE_ETHERNET.to_be_bytes());
    put(&PROTOCOL_IPV4.to_be_bytes());
    put(&[6, 4]);
    put(&operation.to_be_bytes());
    put(&sender);
    put(&sender_ip);
    put(&target);
    put(&target_ip);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [0x52, 0x54, 0, 1, 2, 3];

    #[test]
    fn a_reverse_request_names_the_mac_and_no_address() {
        let frame = rarp(MAC);
        assert_eq!(frame[..6], [0xff; 6], "to everybody");
        assert_eq!(frame[6..12], MAC, "from the MAC that switches are to learn");
        assert_eq!(frame[12..14], [0x80, 0x35]);
        assert_eq!(frame[14..22], [0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [0; 4]);
        assert_eq!(frame[32..38], MAC);
        assert_eq!(frame[38..], [0; 22]);
    }

    #[test]
    fn a_gratuitous_arp_asks_for_its_own_address() {
        let frame = gratuitous_arp(MAC, [10, 0, 0, 2]);
        assert_eq!(frame[12..14], [8, 6]);
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..28], MAC);
        assert_eq!(frame[28..32], [10, 0, 0, 2]);
        assert_eq!(frame[32..38], [0; 6]);
        assert_eq!(frame[38..42], [10, 0, 0, 2]);
    }
}
