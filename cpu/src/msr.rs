//! Model-specific registers (SDM vol. 4; AMD APM vol. 2, appendix A).

use crate::core::{CR0_PG, Core, EFER_LMA, EFER_LME, EFER_NXE, EFER_SCE, Raised, canonical};
use crate::op::{FS, GS};

/// Registers that AMD's family 15 has and its kernel code reads, and one of Intel's; they read as zero and writes are
/// dropped: SYSCFG, HWCR, the northbridge and errata registers, the microcode patch loader.
const ZERO_MSRS: [u32; 11] = [
    0x17,        // platform identity
    0x3b,        // IA32_TSC_ADJUST: the TSC is the machine's clock, see IA32_TIME_STAMP_COUNTER
    0x8b,        // microcode revision
    0xc001_0010, // SYSCFG
    0xc001_0015, // HWCR
    0xc001_001f, // NB_CFG
    0xc001_0020, // microcode loader
    0xc001_0055, // interrupt pending message
    0xc001_1022, // data cache configuration
    0xc001_1023, // bus unit configuration
    0xc001_1029, // decode configuration
];

impl Core {
    pub(crate) fn read_msr(&mut self, index: u32) -> Result<u64, Raised> {
        Ok(match index {
            0x10 => self.tsc(self.position()),
            0x1b => self.apic_base,
            0x174 => self.sysenter_cs,
            0x175 => self.sysenter_esp,
            0x176 => self.sysenter_eip,
            0x277 => self.pat,
            0xc000_0080 => self.efer,
            0xc000_0081 => self.star,
            0xc000_0082 => self.lstar,
            0xc000_0083 => self.cstar,
            0xc000_0084 => self.sfmask,
            0xc000_0100 => self.segments[usize::from(FS)].base,
            0xc000_0101 => self.segments[usize::from(GS)].base,
            0xc000_0102 => self.kernel_gs_base,
            _ if ZERO_MSRS.contains(&index) => 0,
            _ => {
                let at = self.position();
                return self.bus().msr_read(at, index).map_err(|_| self.gp());
            }
        })
    }

    pub(crate) fn write_msr(&mut self, index: u32, value: u64) -> Result<(), Raised> {
        match index {
            // The TSC is the machine's clock: a write is accepted and changes nothing.
            0x10 => {}
            0x1b => {
                // The machine's local APIC is on, and where it is: CPUID says so, and goes on saying so.
                if value != self.apic_base {
                    return Err(self.gp());
                }
            }
            0x174 => self.sysenter_cs = value,
            0x175 => self.sysenter_esp = self.canonical_or_gp(value)?,
            0x176 => self.sysenter_eip = self.canonical_or_gp(value)?,
            0x277 => {
                // Each byte is a memory type that exists: 0, 1, 4, 5, 6 or 7.
                if value
                    .to_le_bytes()
                    .iter()
                    .any(|&t| !matches!(t, 0 | 1 | 4..=7))
                {
                    return Err(self.gp());
                }
                self.pat = value;
            }
            0xc000_0080 => {
                if value & !(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE) != 0 {
                    return Err(self.gp());
                }
                if (value ^ self.efer) & EFER_LME != 0 && self.cr0 & CR0_PG != 0 {
                    return Err(self.gp());
                }
                self.efer = value & !EFER_LMA | self.efer & EFER_LMA;
                self.tlb.flush();
            }
            0xc000_0081 => self.star = value,
            0xc000_0082 => self.lstar = self.canonical_or_gp(value)?,
            0xc000_0083 => self.cstar = self.canonical_or_gp(value)?,
            0xc000_0084 => self.sfmask = value & 0xffff_ffff,
            0xc000_0100 => {
                self.segments[usize::from(FS)].base = self.canonical_or_gp(value)?;
                self.seg_base[usize::from(FS)] = value;
            }
            0xc000_0101 => {
                self.segments[usize::from(GS)].base = self.canonical_or_gp(value)?;
                self.seg_base[usize::from(GS)] = value;
            }
            0xc000_0102 => self.kernel_gs_base = self.canonical_or_gp(value)?,
            _ if ZERO_MSRS.contains(&index) => {}
            _ => {
                let at = self.position();
                return self
                    .bus()
                    .msr_write(at, index, value)
                    .map_err(|_| self.gp());
            }
        }
        Ok(())
    }

    fn canonical_or_gp(&mut self, value: u64) -> Result<u64, Raised> {
        if canonical(value) {
            Ok(value)
        } else {
            Err(self.gp())
        }
    }
}
