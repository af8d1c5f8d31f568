//! Delivery through the IDT in long mode (SDM vol. 3A 6.14).

use crate::core::{
    CodeSize, Core, Exception, Leave, Raised, VECTOR_DB, VECTOR_DE, VECTOR_DF, VECTOR_GP,
    VECTOR_NP, VECTOR_PF, VECTOR_SS, VECTOR_TS, canonical,
};
use crate::cpu::RunExit;
use crate::flags::{IF, NT, RF, TF};
use crate::op::{CS, SS};
use crate::segments::code_segment;
use crate::state::Segment;

/// What is being delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// An exception of fault or abort class, or an external interrupt: error codes carry EXT.
    Hardware,
    /// INT n, INT3: the gate's DPL counts.
    Software,
}

/// #DF's table of classes (SDM vol. 3A, table 6-5).
fn contributory(vector: u8) -> bool {
    matches!(vector, VECTOR_DE | VECTOR_TS..=VECTOR_GP)
}

impl Core {
    /// Delivers a fault; RIP is that of the faulting instruction.
    pub(crate) fn exception(&mut self, exception: Exception) -> Result<(), RunExit> {
        // The image of a fault has RF set, so that the restarted instruction is not trapped again. Not so
        // that of general detect, the one #DB to come this way: the manual exempts instruction breakpoints
        // only (SDM vol. 3B 17.3.1.1), but Intel's and AMD's processors push RF as it is for any #DB
        // (measured for Linux, commit 5623f751bd9c). It is clear, since the instruction has begun.
        let (rip, rf) = match exception.vector {
            VECTOR_DB => (self.rip(), self.system_flags & RF),
            _ => (self.rip(), RF),
        };
        self.deliver_or_double(exception, rf, rip)
    }

    /// Delivers the fault of an instruction breakpoint, whose image has RF as it is: its handler sets it
    /// (SDM vol. 3B 17.3.1.1).
    pub(crate) fn breakpoint_fault(&mut self) -> Result<(), RunExit> {
        let (rip, rf) = (self.rip(), self.system_flags & RF);
        let exception = Exception {
            vector: VECTOR_DB,
            error: None,
            address: 0,
        };
        self.deliver_or_double(exception, rf, rip)
    }

    /// Delivers a trap: RIP is behind the instruction.
    pub(crate) fn trap(&mut self, vector: u8) -> Result<(), RunExit> {
        // Set between two iterations of a repetition under a breakpoint.
        let (rip, rf) = (self.rip(), self.system_flags & RF);
        self.deliver_or_double(
            Exception {
                vector,
                error: None,
                address: 0,
            },
            rf,
            rip,
        )
    }

    /// Delivers an external interrupt or NMI at this boundary.
    pub(crate) fn interrupt(&mut self, vector: u8) -> Result<(), RunExit> {
        // Set between two iterations of a repetition under a breakpoint.
        let (rip, rf) = (self.rip(), self.system_flags & RF);
        self.deliver_or_double(
            Exception {
                vector,
                error: None,
                address: 0,
            },
            rf,
            rip,
        )
    }

    /// INT n and INT3: to be returned from the handler as is; `next` is the address behind.
    pub(crate) fn software_interrupt(&mut self, vector: u8, next: u64) -> Result<(), Raised> {
        self.deliver(vector, None, Source::Software, 0, next)
    }

    /// INT1, in the same way.
    pub(crate) fn privileged_interrupt(&mut self, vector: u8, next: u64) -> Result<(), Raised> {
        self.deliver(vector, None, Source::Hardware, 0, next)
    }

    fn deliver_or_double(&mut self, first: Exception, rf: u64, rip: u64) -> Result<(), RunExit> {
        let mut current = first;
        loop {
            if current.vector == VECTOR_PF && current.error.is_some() {
                self.cr2 = current.address;
            }
            let alone = std::mem::replace(&mut self.alone, true);
            let result = self.deliver(current.vector, current.error, Source::Hardware, rf, rip);
            self.alone = alone;
            if result.is_ok() {
                return Ok(());
            }
            let second = match self.leave {
                Leave::Exception(second) => second,
                Leave::Unsupported(what) => return Err(RunExit::Unsupported { rip, what }),
                Leave::Alone => unreachable!("delivery runs alone"),
            };
            if current.vector == VECTOR_DF {
                return Err(RunExit::TripleFault {
                    rip,
                    vector: first.vector,
                });
            }
            let double = if current.vector == VECTOR_PF {
                second.vector == VECTOR_PF || contributory(second.vector)
            } else {
                contributory(current.vector) && contributory(second.vector)
            };
            current = if double {
                if second.vector == VECTOR_PF {
                    self.cr2 = second.address;
                }
                Exception {
                    vector: VECTOR_DF,
                    error: Some(0),
                    address: 0,
                }
            } else {
                second
            };
        }
    }

    fn deliver(
        &mut self,
        vector: u8,
        error: Option<u32>,
        source: Source,
        rf: u64,
        rip: u64,
    ) -> Result<(), Raised> {
        if !self.long_mode() {
            self.leave = Leave::Unsupported("an interrupt or exception outside long mode");
            return Err(Raised);
        }
        let ext = u32::from(source == Source::Hardware);
        let gate_error = u32::from(vector) << 3 | 2 | ext;
        let place = u64::from(vector) * 16;
        if place + 15 > u64::from(self.idtr.limit) {
            return Err(self.raise_code(VECTOR_GP, gate_error));
        }
        let low: u64 = self.load_system(self.idtr.base.wrapping_add(place))?;
        let high: u64 = self.load_system(self.idtr.base.wrapping_add(place + 8))?;
        let kind = low >> 40 & 0x1f;
        let interrupt_gate = match kind {
            0xe => true,
            0xf => false,
            _ => return Err(self.raise_code(VECTOR_GP, gate_error)),
        };
        if source == Source::Software && ((low >> 45 & 3) as u8) < self.cpl {
            return Err(self.raise_code(VECTOR_GP, gate_error));
        }
        if low >> 47 & 1 == 0 {
            return Err(self.raise_code(VECTOR_NP, gate_error));
        }
        let offset = (low & 0xffff) | (low >> 32 & 0xffff_0000) | high << 32;
        let selector = (low >> 16) as u16;
        if selector & !3 == 0 {
            return Err(self.raise_code(VECTOR_GP, ext));
        }
        let selector_error = u32::from(selector & !3) | ext;
        let descriptor = self.descriptor(selector, ext)?;
        if !descriptor.is_code() || descriptor.dpl() > self.cpl {
            return Err(self.raise_code(VECTOR_GP, selector_error));
        }
        if !descriptor.present() {
            return Err(self.raise_code(VECTOR_NP, selector_error));
        }
        if !descriptor.long() || descriptor.big() {
            return Err(self.raise_code(VECTOR_GP, selector_error));
        }
        let cpl = if descriptor.conforming() {
            self.cpl
        } else {
            descriptor.dpl()
        };
        let ist = low >> 32 & 7;
        let stack = if ist != 0 {
            self.tss_stack(0x24 + 8 * (ist - 1), ext)?
        } else if cpl < self.cpl {
            self.tss_stack(4 + 8 * u64::from(cpl), ext)?
        } else {
            self.regs[4]
        };
        if !canonical(offset) {
            return Err(self.raise_code(VECTOR_GP, ext));
        }
        let frame = [
            u64::from(error.unwrap_or(0)),
            rip,
            u64::from(self.segments[usize::from(CS)].selector),
            self.rflags() & !RF | rf,
            self.regs[4],
            u64::from(self.segments[usize::from(SS)].selector),
        ];
        let frame = &frame[usize::from(error.is_none())..];
        let top = (stack & !15).wrapping_sub(8 * frame.len() as u64);
        self.push_frame(top, frame, cpl, ext)?;

        self.regs[4] = top;
        if cpl != self.cpl {
            // SDM vol. 3A 6.14.2: SS becomes a null selector with the new privilege.
            self.segments[usize::from(SS)] = null_stack(cpl);
        }
        self.cpl = cpl;
        self.segments[usize::from(CS)] = code_segment(selector & !3 | u16::from(cpl), descriptor);
        self.mark_accessed(selector, descriptor)?;
        self.set_rip(offset);
        self.system_flags &= !(TF | NT | RF);
        if interrupt_gate {
            self.system_flags &= !IF;
        }
        self.shadow = 0;
        self.mode_changed();
        Ok(())
    }

    /// Writes the frame with the rights of the new privilege, whole or (on a fault) partly.
    fn push_frame(&mut self, top: u64, frame: &[u64], cpl: u8, ext: u32) -> Result<(), Raised> {
        for (i, value) in frame.iter().enumerate().rev() {
            let at = top.wrapping_add(8 * i as u64);
            if !canonical(at) {
                return Err(self.raise_code(VECTOR_SS, ext));
            }
            self.write_linear(at, &value.to_le_bytes(), cpl == 3)?;
        }
        Ok(())
    }

    /// A stack pointer out of the TSS.
    fn tss_stack(&mut self, offset: u64, ext: u32) -> Result<u64, Raised> {
        if offset + 7 > u64::from(self.tr.limit) {
            let error = u32::from(self.tr.selector & !3) | ext;
            return Err(self.raise_code(VECTOR_TS, error));
        }
        let stack: u64 = self.load_system(self.tr.base.wrapping_add(offset))?;
        if !canonical(stack) {
            return Err(self.raise_code(VECTOR_SS, ext));
        }
        Ok(stack)
    }

    /// The code size says where a far return or IRET lands.
    pub(crate) fn in_64_bit_code(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }
}

/// The null SS that a change of privilege loads in long mode.
pub(crate) fn null_stack(cpl: u8) -> Segment {
    Segment {
        selector: u16::from(cpl),
        base: 0,
        limit: 0xffff_ffff,
        attributes: 0x1_0000 | u32::from(cpl) << 5 | 0xc013,
    }
}
