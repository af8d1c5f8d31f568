//! Which port of the switch a MAC address was last seen on (IEEE 802.1D, clause 7.8), bounded per
//! port: a member that invents source addresses can fill its own share and nobody else's.

use std::collections::HashMap;

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// Addresses that one port may hold at a time.
pub(super) const ADDRESSES_PER_PORT: usize = 64;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    /// To this port alone.
    To(u64),
    /// To all ports but the one it came from.
    Flood,
    /// Nowhere: its receiver sits on the port it came from.
    Nowhere,
}

/// The learned addresses. A port is named by a number that is never used again.
#[derive(Debug, Default)]
pub(super) struct Table {
    port_of: HashMap<Mac, u64>,
    held_by: HashMap<u64, usize>,
}

impl Table {
    /// Learns from a frame that arrived at `port` and says where it goes. `header` holds the
    /// destination address, then the source address.
    pub(super) fn forward(&mut self, port: u64, destination: Mac, source: Mac) -> Forward {
        self.learn(port, source);
        if is_group(destination) {
            return Forward::Flood;
        }
        match self.port_of.get(&destination) {
            None => Forward::Flood,
            Some(&to) if to == port => Forward::Nowhere,
            Some(&to) => Forward::To(to),
        }
    }

    /// Forgets a port and all addresses behind it.
    pub(super) fn forget(&mut self, port: u64) {
        if self.held_by.remove(&port).is_some() {
            self.port_of.retain(|_, held| *held != port);
        }
    }

    fn learn(&mut self, port: u64, source: Mac) {
        if is_group(source) {
            return;
        }
        let before = self.port_of.get(&source).copied();
        if before == Some(port) {
            return;
        }
        let held = self.held_by.entry(port).or_default();
        if *held >= ADDRESSES_PER_PORT {
            // The share is full of addresses that nobody can tell apart by worth: start it afresh.
            *held = 0;
            self.port_of.retain(|_, at| *at != port);
        }
        // The address moved here: that is what the gratuitous ARP of a fail-over does.
        if let Some(before) = before
            && let Some(count) = self.held_by.get_mut(&before)
        {
            *count -= 1;
        }
        *self.held_by.entry(port).or_default() += 1;
        self.port_of.insert(source, port);
    }
}

/// Broadcast and multicast addresses have the lowest bit of the first octet set (IEEE 802, 8.2.2).
fn is_group(mac: Mac) -> bool {
    mac[0] & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::{ADDRESSES_PER_PORT, Forward, Mac, Table};
    use proptest::prelude::*;

    const A: Mac = [2, 0, 0, 0, 0, 0xa];
    const B: Mac = [2, 0, 0, 0, 0, 0xb];
    const ALL: Mac = [0xff; 6];

    #[test]
    fn unknown_receivers_and_groups_are_flooded_and_known_ones_are_not() {
        let mut table = Table::default();
        assert_eq!(table.forward(1, B, A), Forward::Flood);
        assert_eq!(table.forward(2, A, B), Forward::To(1));
        assert_eq!(table.forward(1, B, A), Forward::To(2));
        assert_eq!(table.forward(1, ALL, A), Forward::Flood);
        assert_eq!(table.forward(1, A, B), Forward::Nowhere);
    }

    #[test]
    fn an_address_that_speaks_from_another_port_has_moved_there() {
        let mut table = Table::default();
        table.forward(1, ALL, A);
        table.forward(2, ALL, A);
        assert_eq!(table.forward(3, A, B), Forward::To(2));
        table.forget(2);
        assert_eq!(table.forward(3, A, B), Forward::Flood);
    }

    proptest! {
        /// The table agrees with "the last port that spoke", for members that keep to their share,
        /// whatever one that invents addresses does; and it never outgrows its bound.
        #[test]
        fn a_member_that_invents_addresses_harms_no_other(
            steps in proptest::collection::vec((0u64..4, 0u16..40), 1..400),
        ) {
            let mut table = Table::default();
            let mut model = std::collections::HashMap::new();
            for (index, (port, host)) in steps.into_iter().enumerate() {
                let [high, low] = host.to_be_bytes();
                let honest = [2, 0, 0, 0, high, low];
                table.forward(port, ALL, honest);
                model.insert(honest, port);
                let [.., a, b] = (index as u64).to_be_bytes();
                table.forward(99, ALL, [6, 0, 0, 0, a, b]);
                prop_assert!(table.port_of.len() <= 5 * ADDRESSES_PER_PORT);
                for (port, held) in &table.held_by {
                    let really = table.port_of.values().filter(|at| *at == port).count();
                    prop_assert_eq!(really, *held);
                }
            }
            for (mac, port) in model {
                prop_assert_eq!(table.forward(77, mac, ALL), Forward::To(port));
            }
        }
    }
}
