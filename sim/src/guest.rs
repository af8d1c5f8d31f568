//! The model machine: a small server that answers requests, computes for a while over each, keeps
//! time with a timer, and halts when it has nothing to do.
//!
//! Like a real one it is a function of its initial state and of the events applied to it. What it
//! does not model is a processor: one position is one turn of the server's loop.

use std::collections::VecDeque;
use std::convert::Infallible;

use lockstep_vmm::ft::vm::{
    DigestScope, Event, Output, OutputKind, Position, StateDigest, Stop, VirtualTime, Vm,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::rng::mix;
use crate::wire::{CLIENTS, KEYS, Operation, Request, Response};

/// Requests that wait inside the machine; like a network card's receive ring it drops what is more.
const QUEUE: usize = 4;

/// Bytes of memory that computing scribbles on.
const SCRATCH: usize = 256;

/// What kind of machine it is.
#[derive(Debug, Clone, Copy)]
pub struct GuestSpec {
    /// Nanoseconds of virtual time that a position takes; 0 as on an engine whose positions are
    /// exits.
    pub rate: u64,
    /// Positions spent on a request, at most.
    pub work: u64,
    /// Nanoseconds between two timer interrupts.
    pub tick: u64,
    /// Initial contents.
    pub seed: u64,
}

/// The last request of a client that was answered, so that a repeated one is not executed again.
#[derive(Debug, Clone, Copy, Default)]
struct Answered {
    id: u32,
    value: u64,
}

/// The machine.
#[derive(Debug)]
pub struct Guest {
    spec: GuestSpec,
    position: Position,
    clock: VirtualTime,
    register: u64,
    timer: VirtualTime,
    ticks: u64,
    halted: bool,
    off: bool,
    queue: VecDeque<Request>,
    current: Option<(Request, u64)>,
    table: [u64; KEYS],
    answered: [Answered; CLIENTS],
    scratch: Vec<u8>,
    said: VecDeque<Output>,
    spare: Vec<Vec<u8>>,
    /// The host interrupts the next run after this many positions, in the middle of one.
    pub kick_after: Option<u64>,
    between: bool,
}

impl Guest {
    /// A machine that has just been switched on.
    #[must_use]
    pub fn new(spec: GuestSpec) -> Self {
        Self {
            spec,
            position: 0,
            clock: 0,
            register: mix(spec.seed),
            timer: spec.tick,
            ticks: 0,
            halted: false,
            off: false,
            queue: VecDeque::with_capacity(QUEUE),
            current: None,
            table: [0; KEYS],
            answered: [Answered::default(); CLIENTS],
            scratch: vec![0; SCRATCH],
            said: VecDeque::new(),
            spare: Vec::new(),
            kick_after: None,
            between: false,
        }
    }

    /// The value under `key`: for the check at a run's end.
    #[must_use]
    pub const fn value(&self, key: usize) -> u64 {
        self.table[key]
    }

    /// Whether it waits for an interrupt.
    #[must_use]
    pub const fn halted(&self) -> bool {
        self.halted
    }

    /// Digest of everything: registers, devices, clock, position and memory.
    #[must_use]
    pub fn whole(&self) -> u64 {
        mix(self.registers() ^ self.position) ^ xxh3_64(&self.scratch)
    }

    fn registers(&self) -> u64 {
        let flags =
            u64::from(self.halted) | u64::from(self.off) << 1 | (self.queue.len() as u64) << 8;
        let mut digest = self.register;
        let mut add = |value: u64| digest = mix(digest.rotate_left(5) ^ value);
        [self.clock, self.timer, self.ticks, flags]
            .into_iter()
            .for_each(&mut add);
        self.table.into_iter().for_each(&mut add);
        for answered in self.answered {
            add(u64::from(answered.id));
            add(answered.value);
        }
        for request in self
            .queue
            .iter()
            .chain(self.current.as_ref().map(|(request, _)| request))
        {
            add(u64::from_le_bytes(request.encode()));
        }
        add(self.current.as_ref().map_or(0, |(_, work)| *work));
        digest
    }

    fn say(&mut self, kind: OutputKind, bytes: &[u8]) {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.extend_from_slice(bytes);
        self.said.push_back(Output {
            kind,
            bytes: buffer,
        });
    }

    /// One turn of the server's loop.
    fn turn(&mut self) {
        self.position += 1;
        self.clock += self.spec.rate;
        match &mut self.current {
            Some((_, work)) if *work > 0 => {
                *work -= 1;
                self.register = mix(self.register ^ self.position);
                if self.register.is_multiple_of(8) {
                    // The guest reads its clock.
                    self.register ^= self.clock;
                }
                let at = self.register as usize % SCRATCH;
                self.scratch[at] ^= (self.register >> 56) as u8;
            }
            Some(_) => {
                if let Some((request, _)) = self.current.take() {
                    self.serve(request);
                }
            }
            None => match self.queue.pop_front() {
                Some(request) => self.current = Some((request, self.register % self.spec.work)),
                None => self.halted = true,
            },
        }
        self.look_at_timer();
    }

    fn serve(&mut self, request: Request) {
        let (client, key) = (usize::from(request.client), usize::from(request.key));
        let answered = &mut self.answered[client];
        if request.id < answered.id {
            // A duplicate of something that this client has long got an answer to.
            return;
        }
        if request.id > answered.id {
            if request.operation == Operation::Add {
                self.table[key] += 1;
            }
            *answered = Answered {
                id: request.id,
                value: self.table[key],
            };
        }
        let Answered { id, value } = *answered;
        let response = Response {
            client: request.client,
            id,
            value,
        };
        self.say(OutputKind::Frame, &response.encode());
    }

    fn look_at_timer(&mut self) {
        if self.timer <= self.clock && !self.off {
            self.ticks += 1;
            self.timer = self.clock + self.spec.tick;
            self.register = mix(self.register ^ self.ticks);
            self.halted = false;
            if self.ticks.is_multiple_of(8) {
                self.say(OutputKind::Console, &self.ticks.to_le_bytes());
            }
        }
    }
}

impl Vm for Guest {
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
        (!self.off).then_some(self.timer)
    }

    fn run(&mut self, until: Position) -> Result<Stop, Infallible> {
        while self.position < until {
            if self.halted {
                return Ok(Stop::Halted);
            }
            match &mut self.kick_after {
                Some(0) => {
                    self.kick_after = None;
                    self.between = true;
                    return Ok(Stop::Kicked);
                }
                Some(left) => *left -= 1,
                None => {}
            }
            self.between = false;
            self.turn();
            if !self.said.is_empty() {
                return Ok(Stop::Boundary);
            }
        }
        Ok(if self.halted {
            Stop::Halted
        } else {
            Stop::Position
        })
    }

    fn apply(&mut self, clock: VirtualTime, event: Event<'_>) -> Result<(), Infallible> {
        assert!(!self.between, "an event was applied between two positions");
        assert!(clock >= self.clock, "the clock was moved back");
        self.clock = clock;
        self.look_at_timer();
        match event {
            _ if self.off => {}
            Event::Frame(bytes) => {
                match Request::decode(bytes) {
                    Some(request) if self.queue.len() < QUEUE => self.queue.push_back(request),
                    Some(_) => {}
                    None => self.register = mix(self.register ^ xxh3_64(bytes)),
                }
                self.halted = false;
            }
            Event::Console(bytes) | Event::Entropy(bytes) => {
                self.register = mix(self.register ^ xxh3_64(bytes));
                self.halted = false;
            }
            Event::PowerButton => {
                self.say(OutputKind::PowerOff, &[]);
                self.off = true;
                self.halted = true;
            }
            // It has no disk.
            Event::Clock | Event::Disk(_) => {}
        }
        Ok(())
    }

    fn next_output(&mut self) -> Option<Output> {
        self.said.pop_front()
    }

    fn recycle(&mut self, output: Output) {
        self.spare.push(output.bytes);
    }

    fn digest(&mut self, scope: DigestScope) -> Result<StateDigest, Infallible> {
        let memory = match scope {
            DigestScope::Full => xxh3_64(&self.scratch),
            DigestScope::Stripe { index, bytes } => {
                let bytes = (bytes as usize).clamp(1, SCRATCH);
                let stripe = (index % SCRATCH.div_ceil(bytes) as u64) as usize * bytes;
                xxh3_64(&self.scratch[stripe..(stripe + bytes).min(SCRATCH)])
            }
        };
        Ok(StateDigest {
            state: self.registers(),
            memory,
        })
    }
}
