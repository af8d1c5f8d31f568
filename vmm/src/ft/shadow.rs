//! The shadow receive ring: the frames that a backup has seen on the network and not yet in the log.
//!
//! A frame that reached the dead primary, and not the log, is lost with it; its sender finds out by a
//! timer, and TCP's shortest is 200 ms. A backup on the same network has seen that frame too. It
//! remembers what comes by, forgets what the log turns out to contain, and at go-live feeds the rest
//! to the machine, as if it had just arrived.
//!
//! Frames are told apart by content, and counted: two equal ones need two entries. A frame may come
//! before its entry or after it. What stays unmatched for [`WINDOW_NS`] is forgotten: a frame that
//! the primary never took, or one that this side never saw.
//!
//! The network has to bring the frames here: on a bridge, by not learning where the guest's address
//! is (see the README). Where it does not, this ring stays empty and a failover is paid for by the
//! senders' timers.

use std::collections::VecDeque;

use xxhash_rust::xxh3::xxh3_64;

/// How long an unmatched frame or entry is remembered, nanoseconds. Longer than any failover that
/// connections survive; a frame that old was given up by its sender, or sent again.
pub const WINDOW_NS: u64 = 1_000_000_000;

/// Bytes of an Ethernet header's addresses: destination, then source.
const ADDRESSES: usize = 12;

#[derive(Debug)]
struct Seen {
    at: u64,
    digest: u64,
    frame: Vec<u8>,
}

/// Frames seen and not logged; see the module's page.
#[derive(Debug)]
pub struct ShadowRing {
    mac: [u8; 6],
    capacity: usize,
    now: u64,
    seen: VecDeque<Seen>,
    /// Digests of logged frames that were not seen yet, and when their entries were replayed.
    logged: VecDeque<(u64, u64)>,
    /// Buffers to be used again, so that remembering allocates nothing once it is under way.
    spare: Vec<Vec<u8>>,
}

impl ShadowRing {
    /// Remembers up to `capacity` frames for the machine with the address `mac`, from `now` on; 0
    /// remembers none.
    #[must_use]
    pub fn new(mac: [u8; 6], capacity: usize, now: u64) -> Self {
        Self {
            mac,
            capacity,
            now,
            seen: VecDeque::with_capacity(capacity),
            logged: VecDeque::with_capacity(capacity),
            spare: Vec::with_capacity(capacity),
        }
    }

    /// How many frames it holds at most.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// It is `now`, which never goes back; what comes next comes now. Forgets what is too old.
    pub fn tick(&mut self, now: u64) {
        self.now = now;
        let moment = now.saturating_sub(WINDOW_NS);
        while self.seen.front().is_some_and(|seen| seen.at < moment) {
            self.forget_oldest();
        }
        while self.logged.front().is_some_and(|(at, _)| *at < moment) {
            self.logged.pop_front();
        }
    }

    /// A frame came by. Those that are not for the machine, or come from it, are not kept.
    /// The oldest makes room for the newest.
    pub fn see(&mut self, frame: &[u8]) {
        if self.capacity == 0 || !self.is_for_us(frame) {
            return;
        }
        let digest = xxh3_64(frame);
        if let Some(index) = self.logged.iter().position(|(_, logged)| *logged == digest) {
            self.logged.remove(index);
            return;
        }
        if self.seen.len() == self.capacity {
            self.forget_oldest();
        }
        let mut kept = self.spare.pop().unwrap_or_default();
        kept.clear();
        kept.extend_from_slice(frame);
        self.seen.push_back(Seen {
            at: self.now,
            digest,
            frame: kept,
        });
    }

    /// The log contains this frame; its entry was replayed.
    pub fn log_has(&mut self, frame: &[u8]) {
        if self.capacity == 0 || !self.is_for_us(frame) {
            return;
        }
        let digest = xxh3_64(frame);
        if let Some(index) = self.seen.iter().position(|seen| seen.digest == digest) {
            if let Some(seen) = self.seen.remove(index) {
                self.spare.push(seen.frame);
            }
            return;
        }
        if self.logged.len() == self.capacity {
            self.logged.pop_front();
        }
        self.logged.push_back((self.now, digest));
    }

    /// The machine goes live: what it has yet to receive, oldest first.
    pub fn go_live(&mut self) -> VecDeque<Vec<u8>> {
        self.logged.clear();
        self.seen.drain(..).map(|seen| seen.frame).collect()
    }

    fn is_for_us(&self, frame: &[u8]) -> bool {
        let Some((destination, source)) = frame.get(..ADDRESSES).map(|both| both.split_at(6))
        else {
            return false;
        };
        // Group addresses have the lowest bit of the first octet set (IEEE 802, 8.2.2).
        (destination == self.mac || destination[0] & 1 == 1) && source != self.mac
    }

    fn forget_oldest(&mut self) {
        if let Some(seen) = self.seen.pop_front() {
            self.spare.push(seen.frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GUEST: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const CLIENT: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn frame(to: [u8; 6], from: [u8; 6], body: u8) -> Vec<u8> {
        [&to[..], &from, &[8, 0, body]].concat()
    }

    fn to_guest(body: u8) -> Vec<u8> {
        frame(GUEST, CLIENT, body)
    }

    #[test]
    fn only_frames_for_the_machine_and_not_from_it_are_kept() {
        let mut ring = ShadowRing::new(GUEST, 8, 0);
        ring.see(&to_guest(1));
        ring.see(&frame([0xff; 6], CLIENT, 2));
        ring.see(&frame(CLIENT, GUEST, 3));
        ring.see(&frame([0xff; 6], GUEST, 4));
        ring.see(&frame(CLIENT, [2, 0, 0, 0, 0, 9], 5));
        ring.see(&[1, 2, 3]);
        assert_eq!(ring.go_live(), [to_guest(1), frame([0xff; 6], CLIENT, 2)]);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut ring = ShadowRing::new(GUEST, 8, 0);
        ring.see(&to_guest(1));
        ring.tick(WINDOW_NS);
        ring.see(&to_guest(2));
        ring.tick(WINDOW_NS + 1);
        assert_eq!(ring.go_live(), [to_guest(2)]);
        // An entry whose frame never came by does not swallow an equal frame much later.
        ring.log_has(&to_guest(3));
        ring.tick(2 * WINDOW_NS + 2);
        ring.see(&to_guest(3));
        assert_eq!(ring.go_live(), [to_guest(3)]);
    }

    #[test]
    fn what_is_logged_before_the_first_tick_is_known_after_it() {
        let mut ring = ShadowRing::new(GUEST, 8, 10 * WINDOW_NS);
        ring.log_has(&to_guest(1));
        ring.tick(10 * WINDOW_NS + 1);
        ring.see(&to_guest(1));
        assert!(ring.go_live().is_empty());
    }

    #[test]
    fn a_ring_of_no_frames_remembers_none() {
        let mut ring = ShadowRing::new(GUEST, 0, 0);
        ring.see(&to_guest(1));
        ring.log_has(&to_guest(1));
        assert!(ring.go_live().is_empty());
    }

    proptest! {
        /// Every frame for the machine is either logged or fed at go-live, exactly once, in order,
        /// however far the log and the network run ahead of each other, and equal frames included.
        #[test]
        fn each_frame_reaches_the_machine_once(
            bodies in proptest::collection::vec(0u8..5, 0..60),
            logged in 0usize..60,
            steps in proptest::collection::vec(any::<bool>(), 0..200),
        ) {
            let logged = logged.min(bodies.len());
            let mut ring = ShadowRing::new(GUEST, 64, 0);
            let (mut seen, mut replayed) = (0, 0);
            for network in steps {
                if network && seen < bodies.len() {
                    ring.see(&to_guest(bodies[seen]));
                    seen += 1;
                } else if !network && replayed < logged {
                    ring.log_has(&to_guest(bodies[replayed]));
                    replayed += 1;
                }
            }
            // A backup goes live when it has replayed the whole log and read its port empty.
            for body in &bodies[replayed..logged] {
                ring.log_has(&to_guest(*body));
            }
            for body in &bodies[seen..] {
                ring.see(&to_guest(*body));
            }
            let mut fed: Vec<u8> = ring.go_live().iter().map(|frame| frame[14]).collect();
            let mut expected = bodies[logged..].to_vec();
            // Which of several equal frames were logged makes no difference to the machine.
            fed.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(fed, expected);
        }

        /// The ring never holds more than it may, whatever comes by.
        #[test]
        fn a_flood_takes_no_more_memory_than_was_granted(bodies in proptest::collection::vec(any::<(u8, bool)>(), 0..300)) {
            let mut ring = ShadowRing::new(GUEST, 16, 0);
            for (body, network) in bodies {
                if network {
                    ring.see(&to_guest(body));
                } else {
                    ring.log_has(&to_guest(body));
                }
                prop_assert!(ring.seen.len() <= 16 && ring.logged.len() <= 16);
                prop_assert!(ring.seen.len() + ring.spare.len() <= 16);
            }
        }
    }
}
