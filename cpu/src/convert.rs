//! Between [`Core`] and the architectural state that every engine shares.

use crate::core::{CR0_PE, CR0_PG, CR4_PAE, Core, EFER_LMA, EFER_LME};
use crate::fpu::Fpu;
use crate::state::{CpuState, StateError};

/// DR6 bits of debug traps: B0..B3 and BS.
const PENDING_DEBUG: u64 = 0x400f;

impl Core {
    pub(crate) fn export(&self) -> CpuState {
        CpuState {
            gpr: std::array::from_fn(|i| self.regs[i]),
            rip: self.rip(),
            rflags: self.rflags(),
            segments: self.segments,
            ldtr: self.ldtr,
            tr: self.tr,
            gdtr: self.gdtr,
            idtr: self.idtr,
            cr0: self.cr0,
            cr2: self.cr2,
            cr3: self.cr3,
            cr4: self.cr4,
            cr8: self.cr8,
            efer: self.efer,
            star: self.star,
            lstar: self.lstar,
            cstar: self.cstar,
            sfmask: self.sfmask,
            kernel_gs_base: self.kernel_gs_base,
            sysenter_cs: self.sysenter_cs,
            sysenter_esp: self.sysenter_esp,
            sysenter_eip: self.sysenter_eip,
            pat: self.pat,
            apic_base: self.apic_base,
            dr: [
                self.dr[0], self.dr[1], self.dr[2], self.dr[3], self.dr6, self.dr7,
            ],
            fxsave: self.fpu.image().to_vec(),
            halted: self.halted,
            interrupt_shadow: self.shadow,
            nmi_blocked: self.nmi_blocked,
            nmi_pending: self.nmi_pending,
            pending_debug: self.debug_trap,
        }
    }

    pub(crate) fn import(&mut self, s: &CpuState) -> Result<(), StateError> {
        let image: &[u8; 512] = s
            .fxsave
            .as_slice()
            .try_into()
            .map_err(|_| StateError::FxsaveLength(s.fxsave.len()))?;
        let fpu = Fpu::from_image(image).ok_or(StateError::Mxcsr(u32::from_le_bytes([
            image[24], image[25], image[26], image[27],
        ])))?;
        let paging = s.cr0 & CR0_PG != 0;
        let long = s.efer & EFER_LMA != 0;
        if s.cr0 & CR0_PE == 0
            || paging != long
            || (long && (s.efer & EFER_LME == 0 || s.cr4 & CR4_PAE == 0))
        {
            return Err(StateError::Mode {
                cr0: s.cr0,
                cr4: s.cr4,
                efer: s.efer,
            });
        }
        self.regs[..16].copy_from_slice(&s.gpr);
        self.set_rip(s.rip);
        self.segments = s.segments;
        self.cpl = (s.segments[2].attributes >> 5 & 3) as u8;
        self.ldtr = s.ldtr;
        self.tr = s.tr;
        self.gdtr = s.gdtr;
        self.idtr = s.idtr;
        self.cr0 = s.cr0;
        self.cr2 = s.cr2;
        self.cr3 = s.cr3;
        self.cr4 = s.cr4;
        self.cr8 = s.cr8;
        self.efer = s.efer;
        self.star = s.star;
        self.lstar = s.lstar;
        self.cstar = s.cstar;
        self.sfmask = s.sfmask;
        self.kernel_gs_base = s.kernel_gs_base;
        self.sysenter_cs = s.sysenter_cs;
        self.sysenter_esp = s.sysenter_esp;
        self.sysenter_eip = s.sysenter_eip;
        self.pat = s.pat;
        self.apic_base = s.apic_base;
        self.dr.copy_from_slice(&s.dr[..4]);
        self.dr6 = s.dr[4];
        self.dr7 = s.dr[5];
        self.fpu = fpu;
        self.halted = s.halted;
        self.shadow = s.interrupt_shadow & 3;
        self.nmi_blocked = s.nmi_blocked;
        self.nmi_pending = s.nmi_pending;
        self.debug_trap = s.pending_debug & PENDING_DEBUG;
        self.deliveries = 0;
        self.set_rflags(s.rflags);
        self.tlb.flush();
        self.mode_changed();
        Ok(())
    }
}
