//! A machine for the tests of this module: its program is a hash of its own state, so that every
//! run takes other turns and any difference between two of them spreads.

use std::collections::VecDeque;
use std::convert::Infallible;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::reader::{Checked, EntryReader};
use lockstep_logchan::writer::EntryWriter;
use lockstep_ringbuf::{Ring, RingOptions};
use xxhash_rust::xxh3::xxh3_64;

use super::disk::{DiskOp, DiskRequest, DiskStatus};
use super::vm::{
    DigestScope, Event, Output, OutputKind, Position, StateDigest, Stop, VirtualTime, Vm,
};

use crate::machine::bounce::BounceRegion;

/// One draw from `state`: SplitMix64's output function.
pub fn mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dice {
    pub position: Position,
    pub clock: VirtualTime,
    /// Nanoseconds that one position takes.
    pub rate: u64,
    pub state: u64,
    pub memory: Vec<u8>,
    timer: Option<VirtualTime>,
    pub halted: bool,
    said: VecDeque<(OutputKind, Vec<u8>)>,
    /// [`Vm::run`] is interrupted before the step from this position is complete.
    pub kick_at: Option<Position>,
    between: bool,
    pub recycled: usize,
}

impl Dice {
    pub fn new(seed: u64, rate: u64) -> Self {
        Self {
            position: 0,
            clock: 0,
            rate,
            state: mix(seed),
            memory: vec![0; 1024],
            timer: None,
            halted: false,
            said: VecDeque::new(),
            kick_at: None,
            between: false,
            recycled: 0,
        }
    }

    /// What both machines must agree on.
    pub fn summary(&self) -> (Position, VirtualTime, u64, u64, bool) {
        let memory = xxh3_64(&self.memory);
        (self.position, self.clock, self.state, memory, self.halted)
    }

    fn say(&mut self, kind: OutputKind, length: usize) {
        let byte = self.state as u8;
        self.said.push_back((kind, vec![byte; length]));
    }

    fn step(&mut self) {
        self.position += 1;
        self.clock += self.rate;
        self.state = mix(self.state ^ self.position);
        let draw = self.state >> 8;
        match self.state % 64 {
            0 => self.say(OutputKind::Frame, 14 + (draw % 100) as usize),
            1 => self.say(OutputKind::Console, 1 + (draw % 10) as usize),
            2 => {
                self.say(OutputKind::Frame, 60);
                self.say(OutputKind::Frame, 61);
            }
            3 => self.halted = true,
            4 | 5 => self.timer = Some(self.clock + draw % 5_000),
            6 | 7 => self.state ^= self.clock,
            _ => {
                let at = (draw % self.memory.len() as u64) as usize;
                self.memory[at] ^= (draw >> 32) as u8;
            }
        }
        self.look_at_timer();
    }

    fn look_at_timer(&mut self) {
        if self.timer.is_some_and(|timer| timer <= self.clock) {
            self.timer = None;
            self.halted = false;
            self.state = mix(self.state ^ 0x7155);
        }
    }
}

impl Vm for Dice {
    type Error = Infallible;

    fn position(&self) -> Position {
        self.position
    }

    fn at_position(&self) -> bool {
        !self.between
    }

    fn clock(&self) -> VirtualTime {
        self.clock
    }

    fn next_timer(&self) -> Option<VirtualTime> {
        self.timer
    }

    fn run(&mut self, until: Position) -> Result<Stop, Infallible> {
        while self.position < until {
            if self.halted {
                return Ok(Stop::Halted);
            }
            if self.kick_at.take_if(|at| *at == self.position).is_some() {
                self.between = true;
                return Ok(Stop::Kicked);
            }
            self.between = false;
            self.step();
            if !self.said.is_empty() {
                return Ok(Stop::Boundary);
            }
        }
        Ok(Stop::Position)
    }

    fn apply(&mut self, clock: VirtualTime, event: Event<'_>) -> Result<(), Infallible> {
        assert!(self.at_position());
        assert!(clock >= self.clock);
        self.clock = clock;
        self.look_at_timer();
        let bytes = match event {
            Event::Clock => return Ok(()),
            Event::Frame(bytes) | Event::Console(bytes) | Event::Entropy(bytes) => bytes,
            Event::Disk(_) => panic!("this machine has no disk"),
            Event::PowerButton => {
                self.say(OutputKind::PowerOff, 0);
                &[]
            }
        };
        self.state = mix(self.state ^ xxh3_64(bytes) ^ self.clock);
        self.halted = false;
        Ok(())
    }

    fn next_output(&mut self) -> Option<Output> {
        let (kind, bytes) = self.said.pop_front()?;
        Some(Output { kind, bytes })
    }

    fn recycle(&mut self, _: Output) {
        self.recycled += 1;
    }

    fn digest(&mut self, scope: DigestScope) -> Result<StateDigest, Infallible> {
        let memory = match scope {
            DigestScope::Full => xxh3_64(&self.memory),
            DigestScope::Stripe { index, bytes } => {
                let stripes = self.memory.len().div_ceil(bytes as usize) as u64;
                let stripe = (index % stripes) as usize;
                xxh3_64(
                    self.memory
                        .chunks(bytes as usize)
                        .nth(stripe)
                        .unwrap_or(&[]),
                )
            }
        };
        let state = mix(self.state ^ self.clock) ^ mix(u64::from(self.halted));
        Ok(StateDigest { state, memory })
    }
}

/// A machine that asks of its disk what the test tells it to, and forgets nothing.
#[derive(Debug)]
pub struct Asking {
    region: BounceRegion,
    outstanding: Vec<DiskRequest>,
    said: VecDeque<(OutputKind, Vec<u8>)>,
    /// What came of requests: number, status, data.
    pub ended: Vec<(u64, DiskStatus, Vec<u8>)>,
}

impl Asking {
    pub fn new() -> Self {
        Self {
            region: BounceRegion::new(1 << 16).unwrap(),
            outstanding: Vec::new(),
            said: VecDeque::new(),
            ended: Vec::new(),
        }
    }

    /// Asks for 512 bytes at the start of the disk; request `id` has page `id` of the bounce memory.
    pub fn ask(&mut self, id: u64, op: DiskOp) {
        let request = DiskRequest {
            id,
            disk: 0,
            op,
            offset: 0,
            length: 512,
            bounce: id * 4096,
            digest: 0,
        };
        let mut bytes = Vec::new();
        request.write_to(&mut bytes);
        let kind = match op.is_held() {
            true => OutputKind::Disk,
            false => OutputKind::DiskRead,
        };
        self.said.push_back((kind, bytes));
        self.outstanding.push(request);
    }

    /// Says something that is no request.
    pub fn speak(&mut self) {
        self.said.push_back((OutputKind::Console, vec![1]));
    }
}

impl Vm for Asking {
    type Error = Infallible;
    fn position(&self) -> Position {
        0
    }
    fn at_position(&self) -> bool {
        true
    }
    fn clock(&self) -> VirtualTime {
        0
    }
    fn next_timer(&self) -> Option<VirtualTime> {
        None
    }
    fn disk_requests(&self) -> Vec<DiskRequest> {
        self.outstanding.clone()
    }
    fn bounce(&self) -> Option<&BounceRegion> {
        Some(&self.region)
    }
    fn run(&mut self, _: Position) -> Result<Stop, Infallible> {
        Ok(Stop::Halted)
    }
    fn apply(&mut self, _: VirtualTime, event: Event<'_>) -> Result<(), Infallible> {
        if let Event::Disk(done) = event {
            self.outstanding.retain(|request| request.id != done.id);
            self.ended.push((done.id, done.status, done.data.to_vec()));
        }
        Ok(())
    }
    fn next_output(&mut self) -> Option<Output> {
        let (kind, bytes) = self.said.pop_front()?;
        Some(Output { kind, bytes })
    }
    fn recycle(&mut self, _: Output) {}
    fn digest(&mut self, _: DigestScope) -> Result<StateDigest, Infallible> {
        let (state, memory) = (self.ended.len() as u64, 0);
        Ok(StateDigest { state, memory })
    }
}

/// Both ends of a log ring of `capacity` bytes in this process.
pub fn log(capacity: usize) -> (EntryWriter, EntryReader) {
    let ring = Ring::create(capacity, RingOptions::default()).unwrap();
    let writer = EntryWriter::new(ring.producer().unwrap(), Sequence::NONE);
    let consumer = ring.consumer().unwrap();
    let reader = EntryReader::new(consumer, Sequence::NONE, Checked::ByReader);
    (writer, reader)
}
