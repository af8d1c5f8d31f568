//! The output rule (paper 2.2): an output leaves only once the backup has acknowledged the entry
//! that records it.
//!
//! Only the output waits; the machine runs on. What may leave is decided by the role
//! ([`crate::ft::primary::Primary::release_limit`]): up to the acknowledged entry while the backup
//! is there, nothing while arbitration is open, everything once the primary goes on alone.

use std::collections::VecDeque;

use super::log::Sequence;
use super::vm::Output;

/// Most outputs that a primary holds at a time, and so most that a backup keeps.
pub const MAX_HELD_OUTPUTS: usize = 4096;

/// Most bytes of outputs that a primary holds at a time.
pub const MAX_HELD_BYTES: usize = 8 << 20;

/// How far outputs may be released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReleaseLimit {
    /// None: who goes on is being decided, or was decided against us.
    Nothing,
    /// Those whose entry is this one or an earlier one.
    UpTo(Sequence),
    /// All: there is no backup to wait for.
    Everything,
}

impl ReleaseLimit {
    /// Whether an output recorded by the entry `sequence` may leave.
    #[must_use]
    pub fn allows(self, sequence: Sequence) -> bool {
        match self {
            Self::Nothing => false,
            Self::UpTo(acknowledged) => sequence <= acknowledged,
            Self::Everything => true,
        }
    }
}

/// Where a recorder puts the outputs that it has written an entry for: the gate itself, or a queue
/// to the thread that holds it.
pub trait OutputSink {
    /// Whether an output of `bytes` bytes can be held now. If not, the recorder writes no entry for
    /// it and the vCPU waits.
    fn has_room(&self, bytes: usize) -> bool;
    /// Holds `output` until `sequence` is acknowledged. Called in the order of the entries, after
    /// [`OutputSink::has_room`] said yes.
    fn hold(&mut self, sequence: Sequence, output: Output);
    /// Whether `output` will wait for the acknowledgement of its entry. What does not (a write to a disk
    /// of this side's own) asks for none, and makes no haste to send its entry.
    fn awaits(&self, _output: &Output) -> bool {
        true
    }
    /// Takes a read from a disk ([`super::vm::OutputKind::DiskRead`]), which is not held and has no
    /// entry. Called in the order in which the machine said it, between those that are held.
    fn pass(&mut self, output: Output);
    /// Entry of the last output that has left, with none before it held any more; it rides in every mark,
    /// and in heartbeats.
    fn released(&self) -> Sequence;
}

/// Outputs that wait for their entry's acknowledgement, oldest first.
#[derive(Debug)]
pub struct OutputGate {
    held: VecDeque<(Sequence, Output)>,
    bytes: usize,
    most: usize,
    released: Sequence,
    count: u64,
}

impl OutputGate {
    /// An empty gate. Allocates for [`MAX_HELD_OUTPUTS`] here and never again.
    #[must_use]
    pub fn new() -> Self {
        let held = VecDeque::with_capacity(MAX_HELD_OUTPUTS);
        Self {
            held,
            bytes: 0,
            most: 0,
            released: Sequence::NONE,
            count: 0,
        }
    }

    /// The oldest output, if `limit` lets it go. It stays the oldest until it has been sent and
    /// [`OutputGate::sent`] is called, so that a primary that dies in between has not counted as
    /// released what never left.
    #[must_use]
    pub fn next(&self, limit: ReleaseLimit) -> Option<&Output> {
        match self.held.front() {
            Some((sequence, output)) if limit.allows(*sequence) => Some(output),
            _ => None,
        }
    }

    /// The output that [`OutputGate::next`] showed has left. Returns it, for
    /// [`crate::ft::vm::Vm::recycle`]; `None` if nothing was held.
    pub fn sent(&mut self) -> Option<Output> {
        let (sequence, output) = self.held.pop_front()?;
        self.bytes -= output.bytes.len();
        self.released = sequence;
        self.count += 1;
        Some(output)
    }

    /// Takes an output out of a gate that will release nothing any more (the machine halts or is
    /// torn down). It does not count as released.
    pub fn discard(&mut self) -> Option<Output> {
        let (_, output) = self.held.pop_front()?;
        self.bytes -= output.bytes.len();
        Some(output)
    }

    /// How many outputs wait.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// How many bytes wait.
    #[must_use]
    pub const fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// How many outputs have left through this gate.
    #[must_use]
    pub const fn released_count(&self) -> u64 {
        self.count
    }

    /// The most outputs that ever waited at a time.
    #[must_use]
    pub const fn most_held(&self) -> usize {
        self.most
    }

    /// Entry of the last output that is out, where there are others than this gate's, of which that of
    /// `elsewhere` is the last (requests to disks). With one before that still held here it is the last of
    /// this gate's: the backup drops what it keeps of outputs up to there.
    #[must_use]
    pub fn released_with(&self, elsewhere: Sequence) -> Sequence {
        match self.waits_for() {
            Some(oldest) if oldest <= elsewhere => self.released,
            _ => self.released.max(elsewhere),
        }
    }

    /// The entry for which the oldest output waits.
    #[must_use]
    pub fn waits_for(&self) -> Option<Sequence> {
        self.held.front().map(|(sequence, _)| *sequence)
    }
}

impl Default for OutputGate {
    fn default() -> Self {
        Self::new()
    }
}

impl OutputSink for OutputGate {
    fn has_room(&self, bytes: usize) -> bool {
        // A single output above the byte limit must still pass, alone.
        self.held.is_empty()
            || (self.held.len() < MAX_HELD_OUTPUTS && self.bytes + bytes <= MAX_HELD_BYTES)
    }

    fn hold(&mut self, sequence: Sequence, output: Output) {
        debug_assert!(
            self.held.back().is_none_or(|(last, _)| *last < sequence),
            "output of entry {sequence} held after that of {:?}",
            self.held.back().map(|(last, _)| *last),
        );
        self.bytes += output.bytes.len();
        self.held.push_back((sequence, output));
        self.most = self.most.max(self.held.len());
    }

    /// A gate by itself serves machines without disks.
    fn pass(&mut self, output: Output) {
        debug_assert!(false, "{:?} came to a gate without a disk", output.kind);
    }

    fn released(&self) -> Sequence {
        self.released
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ft::vm::OutputKind;

    fn frame(tag: u64) -> Output {
        Output {
            kind: OutputKind::Frame,
            bytes: tag.to_le_bytes().to_vec(),
        }
    }

    fn tag(output: &Output) -> u64 {
        u64::from_le_bytes(output.bytes[..].try_into().unwrap())
    }

    #[test]
    fn output_rule_holds_the_frame_until_acknowledged() {
        let mut gate = OutputGate::new();
        gate.hold(Sequence(7), frame(1));
        for acked in 0..7 {
            assert_eq!(gate.next(ReleaseLimit::UpTo(Sequence(acked))), None);
        }
        assert_eq!(gate.next(ReleaseLimit::UpTo(Sequence(7))), Some(&frame(1)));
        assert_eq!(gate.released(), Sequence::NONE, "shown is not sent");
        assert_eq!(gate.sent(), Some(frame(1)));
        assert_eq!(gate.released(), Sequence(7));
        assert_eq!(gate.released_count(), 1);
    }

    #[test]
    fn nothing_leaves_while_arbitration_is_open() {
        let mut gate = OutputGate::new();
        gate.hold(Sequence(1), frame(1));
        assert_eq!(gate.next(ReleaseLimit::Nothing), None);
        assert_eq!(gate.next(ReleaseLimit::Everything), Some(&frame(1)));
    }

    #[test]
    fn the_gate_fills_up_instead_of_growing() {
        let mut gate = OutputGate::new();
        let before = gate.held.capacity();
        let mut sequence = Sequence::NONE;
        while gate.has_room(8) {
            sequence = sequence.next();
            gate.hold(sequence, frame(sequence.0));
        }
        assert_eq!(gate.held(), MAX_HELD_OUTPUTS);
        assert_eq!(gate.held.capacity(), before);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Hold { skipped: u64 },
        Acknowledge { more: u64 },
        Release,
        Discard,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0u64..3).prop_map(|skipped| Step::Hold { skipped }),
            3 => (0u64..4).prop_map(|more| Step::Acknowledge { more }),
            4 => Just(Step::Release),
            1 => Just(Step::Discard),
        ];
        proptest::collection::vec(step, 0..200)
    }

    proptest! {
        /// Against the plainest model: a list of (entry, tag), and a number that was acknowledged.
        #[test]
        fn the_gate_is_a_queue_cut_at_the_acknowledged_entry(steps in steps()) {
            let mut gate = OutputGate::new();
            let mut model: Vec<(u64, u64)> = Vec::new();
            let (mut entry, mut acked, mut released) = (0, 0, (0, 0));
            for step in steps {
                match step {
                    Step::Hold { skipped } => {
                        entry += 1 + skipped;
                        gate.hold(Sequence(entry), frame(entry * 10));
                        model.push((entry, entry * 10));
                    }
                    Step::Acknowledge { more } => acked = (acked + more).min(entry),
                    Step::Release => {
                        let limit = ReleaseLimit::UpTo(Sequence(acked));
                        while let Some(output) = gate.next(limit) {
                            let (waited_for, expected) = model.remove(0);
                            prop_assert!(waited_for <= acked, "released before its ack");
                            prop_assert_eq!(tag(output), expected);
                            prop_assert_eq!(gate.sent().map(|output| tag(&output)), Some(expected));
                            released = (waited_for, released.1 + 1);
                        }
                        prop_assert!(model.first().is_none_or(|(entry, _)| *entry > acked));
                    }
                    Step::Discard => {
                        let expected = (!model.is_empty()).then(|| model.remove(0).1);
                        prop_assert_eq!(gate.discard().map(|output| tag(&output)), expected);
                    }
                }
                prop_assert_eq!(gate.held(), model.len());
                prop_assert_eq!(gate.held_bytes(), model.len() * 8);
                prop_assert_eq!((gate.released().0, gate.released_count()), released);
                prop_assert_eq!(gate.waits_for().map(|s| s.0), model.first().map(|(s, _)| *s));
            }
        }
    }
}
