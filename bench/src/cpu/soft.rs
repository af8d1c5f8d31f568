//! The machine on the software CPU, in this thread.

use std::time::{Duration, Instant};

use lockstep_vmm::ft::vm::{Event, OutputKind, Vm};
use lockstep_vmm::machine::engine::Stop;
use lockstep_vmm::machine::{Machine, MachineError};
use rustix::time::{ClockId, clock_gettime};

use super::console::{Console, Mark};
use super::guest::Guest;
use super::{Contender, CpuBenchError, Lap, OURS};

/// Instructions between two looks at the clock.
const SLICE: u64 = 100_000_000;

/// See the module.
pub struct Soft;

/// Processor time of this thread.
fn processor() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}

impl Contender for Soft {
    fn name(&self) -> &'static str {
        OURS
    }

    fn run(&mut self, guest: &Guest, patience: Duration) -> Result<Lap, CpuBenchError> {
        let failed = |source| CpuBenchError::Machine {
            guest: guest.name.clone(),
            source,
        };
        let started = Instant::now();
        let mut begun = (started, processor(), 0);
        let mut machine =
            Machine::with_initrd(&guest.machine(), &guest.kernel, guest.initrd.as_deref())
                .map_err(failed)?;
        let mut console = Console::new(guest);
        loop {
            let stop = machine.run(machine.position() + SLICE).map_err(failed)?;
            while let Some(output) = machine.next_output() {
                if output.kind == OutputKind::Console {
                    console.say(&output.bytes);
                }
                machine.recycle(output);
            }
            while let Some(mark) = console.mark() {
                let (now, used, position) = (Instant::now(), processor(), machine.position());
                if mark == Mark::End {
                    return Ok(Lap {
                        wall: now - begun.0,
                        processor: used - begun.1,
                        instructions: Some(position - begun.2),
                    });
                }
                begun = (now, used, position);
            }
            if started.elapsed() > patience {
                return Err(CpuBenchError::TooLong {
                    guest: guest.name.clone(),
                    contender: OURS,
                    mark: console.awaited().to_owned(),
                    patience,
                    words: console.last_words(),
                });
            }
            if !go_on(&mut machine, stop).map_err(failed)? {
                return Err(CpuBenchError::Ended {
                    guest: guest.name.clone(),
                    contender: OURS,
                    mark: console.awaited().to_owned(),
                    words: console.last_words(),
                });
            }
        }
    }
}

/// Gives the machine what it waits for: entropy (which need not be any here), or the time of its next
/// timer. False: it waits for ever.
fn go_on(machine: &mut Machine, stop: Stop) -> Result<bool, MachineError> {
    let wanted = machine.entropy_wanted();
    if wanted > 0 {
        machine.apply(machine.clock(), Event::Entropy(&vec![0x5a; wanted]))?;
        return Ok(true);
    }
    if stop != Stop::Halted {
        return Ok(true);
    }
    match machine.next_timer() {
        Some(due) => machine.apply(due.max(machine.clock()), Event::Clock)?,
        None => return Ok(false),
    }
    Ok(true)
}
