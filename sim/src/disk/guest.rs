//! The model machine: it makes requests of one disk, and knows what an orderly disk would hold.

use std::collections::VecDeque;
use std::convert::Infallible;

use lockstep_vmm::ft::disk::{DiskDone, DiskOp, DiskRequest, DiskStatus, RequestId};
use lockstep_vmm::ft::vm::{
    DigestScope, Event, Output, OutputKind, Position, StateDigest, Stop, VirtualTime, Vm,
};
use lockstep_vmm::machine::bounce::{BOUNCE_ALIGN, BounceAllocator, BounceRegion};
use xxhash_rust::xxh3::xxh3_64;

use super::plan::DiskPlan;
use super::storage::{SECTOR, SECTORS, Sectors, sectors_of};
use crate::rng::mix;

/// Most sectors of a request.
const LENGTH: u64 = 4;

/// A request that the world has not answered.
#[derive(Debug, Clone, Copy)]
struct Outstanding {
    request: DiskRequest,
    /// Of a flush: what had been completed when it was asked for. Of a durable write: itself.
    promises: Sectors,
}

/// See the module.
#[derive(Debug)]
pub struct DiskGuest {
    position: Position,
    clock: VirtualTime,
    register: u64,
    quota: u64,
    limit: usize,
    region: BounceRegion,
    buffers: BounceAllocator,
    outstanding: Vec<Outstanding>,
    last: RequestId,
    flushed: bool,
    done: bool,
    halted: bool,
    said: VecDeque<(OutputKind, Vec<u8>)>,
    /// The last completed write of each sector.
    completed: Sectors,
    /// What each sector may hold: the last completed write, and those that failed since.
    allowed: Vec<Vec<RequestId>>,
    /// Reads up to this one were issued again: a write that came behind them may have been under way.
    pub lenient: RequestId,
    /// A read that brought what it could not bring.
    pub wrong: Option<String>,
}

impl DiskGuest {
    pub fn new(plan: &DiskPlan) -> Self {
        let bytes = plan.bounce_pages * BOUNCE_ALIGN;
        Self {
            position: 0,
            clock: 0,
            register: plan.program,
            quota: plan.requests,
            limit: plan.outstanding,
            region: BounceRegion::new(bytes).expect("a few pages"),
            buffers: BounceAllocator::new(bytes),
            outstanding: Vec::new(),
            last: 0,
            flushed: false,
            done: false,
            halted: false,
            said: VecDeque::new(),
            completed: [0; SECTORS],
            allowed: vec![vec![0]; SECTORS],
            lenient: 0,
            wrong: None,
        }
    }

    /// Whether it has done all that it wanted to.
    pub const fn done(&self) -> bool {
        self.done
    }

    /// Number of the last request made.
    pub const fn last(&self) -> RequestId {
        self.last
    }

    /// What `sector` may hold, once nothing is under way.
    pub fn allowed(&self, sector: usize) -> &[RequestId] {
        &self.allowed[sector]
    }

    /// Reads the guarantee that an output of this machine gives: these writes, or later ones, are there.
    pub fn promise(output: &Output) -> Option<Sectors> {
        if output.kind != OutputKind::Frame {
            return None;
        }
        let mut sectors = [0; SECTORS];
        for (sector, bytes) in sectors.iter_mut().zip(output.bytes.chunks_exact(8)) {
            *sector = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(sectors)
    }

    fn step(&mut self) {
        self.position += 1;
        self.register = mix(self.register ^ self.position);
        let draw = self.register;
        let idle = self.outstanding.is_empty();
        if self.last < self.quota {
            if self.outstanding.len() < self.limit && draw % 8 < 5 && self.ask(draw >> 8) {
                return;
            }
            // Full, or out of the mood for a while.
            self.halted = !idle && (self.outstanding.len() >= self.limit || draw % 8 == 7);
        } else if !idle {
            self.halted = true;
        } else if self.flushed {
            self.done = true;
            self.halted = true;
        } else {
            self.make(DiskOp::Flush, 0, 0);
        }
    }

    fn ask(&mut self, draw: u64) -> bool {
        let op = match draw % 16 {
            0..=5 => DiskOp::Write { durable: false },
            6 | 7 => DiskOp::Write { durable: true },
            8..=11 => DiskOp::Read,
            12 => DiskOp::WriteZeroes { unmap: false },
            _ => DiskOp::Flush,
        };
        let length = 1 + (draw >> 8) % LENGTH;
        let start = (draw >> 16) % (SECTORS as u64 - length + 1);
        self.make(op, start, length)
    }

    fn make(&mut self, op: DiskOp, start: u64, length: u64) -> bool {
        let length = if op == DiskOp::Flush {
            0
        } else {
            length * SECTOR
        };
        let bounce = match op {
            DiskOp::Read | DiskOp::Write { .. } => match self.buffers.allocate(length) {
                Some(bounce) => bounce,
                None => return false,
            },
            _ => 0,
        };
        self.last += 1;
        let mut request = DiskRequest {
            id: self.last,
            disk: 0,
            op,
            offset: if op == DiskOp::Flush {
                0
            } else {
                start * SECTOR
            },
            length,
            bounce,
            digest: 0,
        };
        let mut promises = [0; SECTORS];
        match op {
            DiskOp::Write { durable } => {
                let data = self.last.to_le_bytes().repeat(length as usize / 8);
                request.digest = xxh3_64(&data);
                self.region.write(bounce, &data);
                if durable {
                    promises[sectors_of(&request)].fill(self.last);
                }
            }
            DiskOp::Flush => promises = self.completed,
            _ => {}
        }
        let mut bytes = Vec::new();
        request.write_to(&mut bytes);
        let kind = match op.is_held() {
            true => OutputKind::Disk,
            false => OutputKind::DiskRead,
        };
        self.said.push_back((kind, bytes));
        self.outstanding.push(Outstanding { request, promises });
        true
    }

    fn ended(&mut self, done: &DiskDone<'_>) {
        let index = self
            .outstanding
            .iter()
            .position(|one| one.request.id == done.id);
        let index = index.expect("an outstanding request");
        let Outstanding { request, promises } = self.outstanding.remove(index);
        if let DiskOp::Read | DiskOp::Write { .. } = request.op {
            self.buffers.free(request.bounce, request.length);
        }
        let well = done.status == DiskStatus::Done;
        let sectors = sectors_of(&request);
        match request.op {
            DiskOp::Read if well => {
                for (sector, data) in sectors.zip(done.data.chunks(SECTOR as usize)) {
                    self.check_read(&request, sector, data);
                }
            }
            DiskOp::Write { .. } | DiskOp::WriteZeroes { .. } | DiskOp::Discard => {
                for sector in sectors {
                    if well {
                        self.completed[sector] = request.id;
                        self.allowed[sector].clear();
                    }
                    self.allowed[sector].push(request.id);
                }
            }
            DiskOp::Flush if well => self.flushed = self.last >= self.quota,
            DiskOp::Flush | DiskOp::Read => {}
        }
        if well && promises != [0; SECTORS] {
            let bytes = promises.iter().flat_map(|id| id.to_le_bytes()).collect();
            self.said.push_back((OutputKind::Frame, bytes));
        }
        self.register = mix(self.register ^ xxh3_64(done.data) ^ done.id << 8 ^ done.status as u64);
    }

    fn check_read(&mut self, request: &DiskRequest, sector: usize, data: &[u8]) {
        let found = data[..8].try_into().map_or(0, u64::from_le_bytes);
        let whole = data.chunks(8).all(|part| part == found.to_le_bytes());
        let under_way = request.id <= self.lenient
            && self
                .outstanding
                .iter()
                .any(|other| other.request.id == found && other.request.conflicts(request));
        if !whole || !(self.allowed[sector].contains(&found) || under_way) {
            let allowed = &self.allowed[sector];
            self.wrong = Some(format!(
                "{request:?} found request {found} in sector {sector}, expected one of {allowed:?}"
            ));
        }
    }
}

impl Vm for DiskGuest {
    type Error = Infallible;

    fn position(&self) -> Position {
        self.position
    }

    fn at_position(&self) -> bool {
        true
    }

    fn clock(&self) -> VirtualTime {
        self.clock
    }

    fn next_timer(&self) -> Option<VirtualTime> {
        None
    }

    fn disk_requests(&self) -> Vec<DiskRequest> {
        self.outstanding.iter().map(|one| one.request).collect()
    }

    fn bounce(&self) -> Option<&BounceRegion> {
        Some(&self.region)
    }

    fn run(&mut self, until: Position) -> Result<Stop, Infallible> {
        while self.position < until {
            if self.halted {
                return Ok(Stop::Halted);
            }
            self.step();
            if !self.said.is_empty() {
                return Ok(Stop::Boundary);
            }
        }
        Ok(Stop::Position)
    }

    fn apply(&mut self, clock: VirtualTime, event: Event<'_>) -> Result<(), Infallible> {
        self.clock = clock;
        if let Event::Disk(done) = event {
            self.ended(&done);
            self.halted = false;
        }
        Ok(())
    }

    fn next_output(&mut self) -> Option<Output> {
        let (kind, bytes) = self.said.pop_front()?;
        Some(Output { kind, bytes })
    }

    fn recycle(&mut self, _: Output) {}

    fn digest(&mut self, _: DigestScope) -> Result<StateDigest, Infallible> {
        let mut state = self.register ^ mix(self.clock) ^ mix(self.last);
        for one in &self.outstanding {
            state = mix(state ^ one.request.id ^ one.request.bounce << 20);
        }
        for id in self.completed {
            state = mix(state ^ id);
        }
        let memory = 0;
        Ok(StateDigest { state, memory })
    }
}
