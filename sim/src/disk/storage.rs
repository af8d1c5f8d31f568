//! The shared disk: sectors, a volatile cache before them, and transfers that are under way.

use lockstep_vmm::ft::disk::{DiskOp, DiskRequest, DiskStatus, RequestId};
use lockstep_vmm::machine::bounce::BounceRegion;

use super::{Broken, DiskRule};
use crate::plan::Side;
use crate::rng::Rng;

/// Sectors of the disk. Few, so that requests meet.
pub const SECTORS: usize = 16;
/// Bytes of one.
pub const SECTOR: u64 = 512;

/// What a sector holds: the number of the request that wrote it, 0 at first.
pub type Sectors = [RequestId; SECTORS];

/// A request that the disk is at.
#[derive(Debug)]
struct Flight {
    side: Side,
    request: DiskRequest,
    /// Sectors not transferred yet.
    left: Vec<usize>,
    region: BounceRegion,
    fails: bool,
    /// Its process is dead: nobody is told.
    orphan: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Storage {
    /// What is read.
    pub sectors: Sectors,
    /// What is left after a loss of power, at least.
    pub stable: Sectors,
    flights: Vec<Flight>,
    /// Requests in a thousand that fail.
    pub failing: u32,
    pub flush_nothing: bool,
    /// What the primary has under way takes its time: it has been replaced.
    pub primary_lingers: bool,
}

/// The sectors of a request.
pub fn sectors_of(request: &DiskRequest) -> std::ops::Range<usize> {
    let first = (request.offset / SECTOR) as usize;
    first..first + (request.length / SECTOR) as usize
}

impl Storage {
    pub const fn new(failing: u32) -> Self {
        Self {
            sectors: [0; SECTORS],
            stable: [0; SECTORS],
            flights: Vec::new(),
            failing,
            flush_nothing: false,
            primary_lingers: false,
        }
    }

    pub fn start(&mut self, side: Side, request: DiskRequest, region: BounceRegion, rng: &mut Rng) {
        self.flights.push(Flight {
            side,
            request,
            left: sectors_of(&request).collect(),
            region,
            fails: rng.chance(self.failing),
            orphan: false,
        });
    }

    /// Whether nothing is under way.
    pub const fn is_idle(&self) -> bool {
        self.flights.is_empty()
    }

    pub fn in_flight(&self, side: Side) -> impl Iterator<Item = &DiskRequest> {
        let of_side = move |flight: &&Flight| flight.side == side;
        self.flights
            .iter()
            .filter(of_side)
            .map(|flight| &flight.request)
    }

    /// Goes on with one request, by one sector or to its end. What has ended: whose, which, how.
    pub fn progress(
        &mut self,
        rng: &mut Rng,
    ) -> Result<Option<(Side, RequestId, DiskStatus)>, Broken> {
        if self.flights.is_empty() {
            return Ok(None);
        }
        let count = self.flights.len() as u64;
        let mut index = rng.below(count) as usize;
        for _ in 0..4 {
            if self.primary_lingers && self.flights[index].side == Side::Primary {
                index = rng.below(count) as usize;
            }
        }
        if self.primary_lingers && self.flights[index].side == Side::Primary && rng.chance(800) {
            return Ok(None);
        }
        if !self.flights[index].left.is_empty() {
            self.transfer(index, rng)?;
            return Ok(None);
        }
        let flight = self.flights.swap_remove(index);
        let status = match flight.fails {
            true => DiskStatus::Failed,
            false => DiskStatus::Done,
        };
        if flight.request.op == DiskOp::Flush && !flight.fails && !self.flush_nothing {
            self.stable = self.sectors;
        }
        Ok((!flight.orphan).then_some((flight.side, flight.request.id, status)))
    }

    fn transfer(&mut self, index: usize, rng: &mut Rng) -> Result<(), Broken> {
        let flight = &mut self.flights[index];
        let which = rng.below(flight.left.len() as u64) as usize;
        let sector = flight.left.swap_remove(which);
        let request = &flight.request;
        let within = (sector - sectors_of(request).start) as u64 * SECTOR;
        // Half of what fails fails half-way.
        if flight.fails && rng.chance(500) {
            return Ok(());
        }
        match request.op {
            DiskOp::Read => {
                let data = self.sectors[sector]
                    .to_le_bytes()
                    .repeat(SECTOR as usize / 8);
                flight.region.write(request.bounce + within, &data);
            }
            DiskOp::Write { durable } => {
                let mut tag = [0; 8];
                flight.region.read(request.bounce + within, &mut tag);
                let tag = u64::from_le_bytes(tag);
                if tag != request.id {
                    let detail = format!("{request:?} would write the data of request {tag}");
                    return Err((DiskRule::Bounce, detail));
                }
                self.sectors[sector] = tag;
                if durable {
                    self.stable[sector] = tag;
                }
            }
            DiskOp::WriteZeroes { .. } | DiskOp::Discard => self.sectors[sector] = request.id,
            DiskOp::Flush => {}
        }
        Ok(())
    }

    /// Reads what `request` asks for, at once: the backup's own read.
    pub fn read_now(&self, request: &DiskRequest, region: Option<&BounceRegion>) {
        if let Some(region) = region {
            for (index, sector) in (0..).zip(sectors_of(request)) {
                let data = self.sectors[sector]
                    .to_le_bytes()
                    .repeat(SECTOR as usize / 8);
                region.write(request.bounce + index * SECTOR, &data);
            }
        }
    }

    /// The side's process is dead; what it has given to the kernel goes on.
    pub fn orphan(&mut self, side: Side) {
        for flight in &mut self.flights {
            flight.orphan |= flight.side == side;
        }
    }

    /// The last moment for what the side has under way: each sector is written now, or never.
    pub fn settle(&mut self, side: Side, rng: &mut Rng) -> Result<(), Broken> {
        for index in 0..self.flights.len() {
            while self.flights[index].side == side && !self.flights[index].left.is_empty() {
                if rng.chance(700) {
                    self.transfer(index, rng)?;
                } else {
                    self.flights[index].left.pop();
                }
            }
        }
        self.flights.retain(|flight| flight.side != side);
        Ok(())
    }

    /// Power is lost: of each sector's cached content it is open whether it has reached the medium.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for (cached, stable) in self.sectors.iter().zip(&mut self.stable) {
            if rng.chance(300) {
                *stable = *cached;
            }
        }
    }
}
