//! A driver that keeps no rule.

use super::driver::*;
use lockstep_vmm::ft::disk::{DiskOp, DiskStatus};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Move {
    Offer(u16, u32, u64, u32),
    Kick(usize),
    End(prop::sample::Index, u8),
    Register(u64, u32),
    Memory(u64, Vec<u8>),
    Reset,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let kind = prop::sample::select(vec![
        IN,
        OUT,
        FLUSH_REQUEST,
        GET_ID,
        DISCARD,
        WRITE_ZEROES,
        9,
    ]);
    let length = prop_oneof![Just(512u32), Just(4096), Just(0x4000), 0u32..200_000];
    let one = prop_oneof![
        6 => (0u16..42, kind, 0u64..2060, length).prop_map(|(a, b, c, d)| Move::Offer(a, b, c, d)),
        6 => (0usize..3).prop_map(Move::Kick),
        6 => (any::<prop::sample::Index>(), 0u8..3).prop_map(|(which, status)| Move::End(which, status)),
        1 => (0u64..0x140, any::<u32>()).prop_map(|(offset, value)| Move::Register(offset, value)),
        1 => (0u64..0x1000, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, bytes)| Move::Memory(at, bytes)),
        1 => Just(Move::Reset),
    ];
    prop::collection::vec(one, 1..80)
}

impl Bench {
    fn make(&mut self, one: &Move) {
        match one {
            Move::Offer(slot, kind, sector, length) => {
                self.offer(0, 0, *slot, *kind, *sector, *length);
            }
            Move::Kick(queue) => self.kick(0, *queue),
            Move::End(which, status) => {
                let outstanding: Vec<_> = self.disks.outstanding().collect();
                if outstanding.is_empty() {
                    return;
                }
                let request = outstanding[which.index(outstanding.len())];
                let status = [
                    DiskStatus::Done,
                    DiskStatus::Failed,
                    DiskStatus::Unsupported,
                ][usize::from(*status)];
                let length = match (request.op, status) {
                    (DiskOp::Read, DiskStatus::Done) => request.length,
                    _ => 0,
                };
                let data = vec![request.id as u8; length as usize];
                self.done(request.id, status, &data).unwrap();
            }
            Move::Register(offset, value) => self.write(0, *offset, *value),
            Move::Memory(at, bytes) => self.ram.write(RINGS + at, bytes).unwrap(),
            Move::Reset => {
                self.write(0, STATUS, 0);
                self.drive(0, 2, FLUSH | CONFIG_WCE);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// Whatever is in memory and written to registers: no panic, no unbounded work, nothing asked for
    /// outside the disk, buffers that never overlap. Two devices that are treated alike are alike; and
    /// once all requests have ended, the state saves and restores.
    #[test]
    fn a_hostile_driver_harms_only_itself_and_two_devices_stay_alike(moves in moves()) {
        let mut bench = Bench::live(vec![spec("a")]);
        let mut twin = Bench::live(vec![spec("a")]);
        for one in &moves {
            bench.make(one);
            twin.make(one);
            let said = bench.said();
            prop_assert_eq!(&said, &twin.said());
            for request in said {
                prop_assert!(request.offset + request.length <= DISK_BYTES);
            }
            prop_assert_eq!(bench.digest(), twin.digest());
            let mut held: Vec<_> = bench.disks.outstanding()
                .filter(|r| matches!(r.op, DiskOp::Read | DiskOp::Write { .. }))
                .map(|r| (r.bounce, r.bounce + r.length))
                .collect();
            held.sort_unstable();
            prop_assert!(held.windows(2).all(|pair| pair[0].1 <= pair[1].0), "{:?}", held);
        }
        loop {
            let first = bench.disks.outstanding().next();
            let Some(first) = first else { break };
            prop_assert!(bench.disks.save().is_none());
            let length = if first.op == DiskOp::Read { first.length } else { 0 };
            bench.done(first.id, DiskStatus::Done, &vec![0; length as usize]).unwrap();
            bench.said();
        }
        let state = bench.disks.save().expect("nothing is outstanding");
        let mut other = Bench::live(vec![spec("a")]);
        if other.disks.restore(&state, bench.ram.accessor()).is_ok() {
            prop_assert_eq!(other.disks.save(), Some(state));
            prop_assert_eq!(other.digest(), bench.digest());
        }
    }
}
