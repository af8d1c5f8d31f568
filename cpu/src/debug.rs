//! Debug registers and single step (SDM vol. 3B ch. 17).

use crate::core::{CodeSize, Core, SHADOW_SS, VECTOR_DB};
use crate::cpu::RunExit;
use crate::flags::{RF, TF};

/// DR6: single step.
const BS: u64 = 1 << 14;
/// DR7 enable bits of the four breakpoints.
const ENABLED: u64 = 0xff;

impl Core {
    /// Whether instructions must be executed one at a time, with a look before and after each.
    #[inline(always)]
    pub(crate) fn stepping(&self) -> bool {
        (self.system_flags & TF) | (self.dr7 & ENABLED) != 0
    }

    /// Breakpoint `i`: its kind (0 execute, 1 write, 3 access), first address and length, if enabled.
    fn breakpoint(&self, i: usize) -> Option<(u64, u64, u64)> {
        if self.dr7 >> (2 * i) & 3 == 0 {
            return None;
        }
        let kind = self.dr7 >> (16 + 4 * i) & 3;
        let length = [1, 2, 8, 4][(self.dr7 >> (18 + 4 * i) & 3) as usize];
        Some((kind, self.dr[i] & !(length - 1), length))
    }

    /// Whether an enabled data breakpoint lies in the page of `linear`.
    pub(crate) fn watched(&self, linear: u64) -> bool {
        self.dr7 & ENABLED != 0
            && (0..4).any(|i| {
                self.breakpoint(i)
                    .is_some_and(|(kind, first, _)| kind != 0 && (first ^ linear) & !0xfff == 0)
            })
    }

    /// Notes which data breakpoints an access hits.
    pub(crate) fn watch(&mut self, linear: u64, length: usize, write: bool) {
        if self.dr7 & ENABLED == 0 {
            return;
        }
        for i in 0..4 {
            if let Some((kind, first, size)) = self.breakpoint(i) {
                let wanted = kind == 3 || (kind == 1 && write);
                if wanted
                    && linear < first.wrapping_add(size)
                    && first < linear.wrapping_add(length as u64)
                {
                    self.debug_trap |= 1 << i;
                }
            }
        }
    }

    /// Executes one instruction under TF or breakpoints.
    pub(crate) fn step_traced(&mut self) -> Result<(), RunExit> {
        let rip = if self.code_size == CodeSize::Bits64 {
            self.rip()
        } else {
            self.rip().wrapping_add(self.segments[1].base) & 0xffff_ffff
        };
        // The instruction behind MOV SS or POP SS has no breakpoint.
        let shadow = std::mem::take(&mut self.shadow);
        if self.system_flags & RF == 0 && shadow & SHADOW_SS == 0 {
            let mut hits = 0;
            for i in 0..4 {
                if self
                    .breakpoint(i)
                    .is_some_and(|(kind, first, _)| kind == 0 && first == rip)
                {
                    hits |= 1 << i;
                }
            }
            if hits != 0 {
                self.dr6 = self.dr6 & !0xf | hits;
                return self.breakpoint_fault();
            }
        }
        let traced = self.system_flags & TF != 0;
        self.system_flags &= !RF;
        (self.untraced, self.unfinished) = (false, false);
        let retired = self.step()?;
        if self.unfinished {
            self.system_flags |= RF;
        }
        if retired && traced && !self.untraced {
            self.debug_trap |= BS;
        }
        Ok(())
    }

    /// Delivers the traps of the instruction that just retired.
    pub(crate) fn deliver_debug_trap(&mut self) -> Result<(), RunExit> {
        self.dr6 = self.dr6 & !0xf | self.debug_trap;
        self.debug_trap = 0;
        self.trap(VECTOR_DB)
    }
}
