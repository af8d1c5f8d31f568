//! Runs a case on the software CPU, in ring 3, with an IDT whose every gate leads to a HLT.

use lockstep_cpu::{Bus, Cpu, CpuModel, CpuState, DescriptorTable, MsrFault, RunExit, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::{CODE, CODE_PAGES, DATA, DATA_PAGES, FILL, GS_BASE, Outcome, Registers};

const TABLES: u64 = 0x1000;
const IDT: u64 = 0x6000;
const GDT: u64 = 0x7000;
const TSS: u64 = 0x7800;
/// Gate `n` leads here, plus 16 times n.
const HANDLERS: u64 = 0x8000;
const STACK: u64 = 0xb000;
/// Where the supervisor's pages are mapped; below, only the case's are.
const HIGH: u64 = 0xffff_8000_0000_0000;
const CODE_FRAME: u64 = 0x10000;
const DATA_FRAME: u64 = 0x20000;

struct Nothing;

impl Bus for Nothing {
    fn port_read(&mut self, _at: u64, _port: u16, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn port_write(&mut self, _at: u64, _port: u16, _data: &[u8]) {}
    fn mmio_read(&mut self, _at: u64, _address: u64, data: &mut [u8]) {
        data.fill(0xff);
    }
    fn mmio_write(&mut self, _at: u64, _address: u64, _data: &[u8]) {}
    fn msr_read(&mut self, _at: u64, _index: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }
    fn msr_write(&mut self, _at: u64, _index: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn interrupt_line(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> u8 {
        unreachable!("the line is never up")
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

/// The software CPU with the case's memory.
pub struct Engine {
    memory: GuestMemoryMmap,
    cpu: Cpu,
    start: CpuState,
    /// What the last case left in the code pages.
    dirty: std::ops::Range<u64>,
}

impl Engine {
    pub fn new() -> Engine {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("guest RAM");
        let put = |at: u64, v: u64| memory.write_obj(v, GuestAddress(at)).expect("inside RAM");
        // Page tables: 0x1000 PML4; 0x2000, 0x3000, 0x5000 the case's; 0xc000, 0xd000, 0x4000 the kernel's.
        put(TABLES, 0x2007);
        put(0x2000, 0x3007);
        put(TABLES + 8 * 256, 0xc003);
        put(0xc000, 0xd003);
        put(0xd000, 0x4003);
        put(0x3000 + 8 * (CODE >> 21), 0x5007);
        assert_eq!(
            CODE >> 21,
            (DATA + 0x10000) >> 21,
            "code and data share a page table"
        );
        for i in 0..512 {
            put(0x4000 + 8 * i, i << 12 | 3);
        }
        let entry = |linear: u64| 0x5000 + 8 * (linear >> 12 & 511);
        for i in 0..CODE_PAGES {
            put(entry(CODE + 4096 * i), (CODE_FRAME + 4096 * i) | 5);
        }
        for i in 0..DATA_PAGES {
            let writable = if i == DATA_PAGES - 1 { 0 } else { 2 };
            put(
                entry(DATA + 4096 * i),
                (DATA_FRAME + 4096 * i) | 5 | writable | 1 << 63,
            );
        }
        for vector in 0..256 {
            let handler = HANDLERS + 16 * vector;
            // User code may raise #BP and #OF by instruction, as under Linux.
            let kind = if matches!(vector, 3 | 4) {
                0xee00
            } else {
                0x8e00
            };
            put(IDT + 16 * vector, handler & 0xffff | 8 << 16 | kind << 32);
            put(IDT + 16 * vector + 8, HIGH >> 32);
        }
        memory
            .write_slice(&[0xf4; 4096], GuestAddress(HANDLERS))
            .expect("inside RAM");
        for (i, d) in [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ]
        .into_iter()
        .enumerate()
        {
            put(GDT + 8 * i as u64, d);
        }
        put(TSS + 4, HIGH + STACK);
        // No I/O permission bitmap: it would start behind the limit.
        put(TSS + 0x60, 0x68 << 48);
        let mut cpu = Cpu::new(memory.clone(), CpuModel::x86_64_v1());
        memory
            .write_slice(
                &[FILL; (CODE_PAGES * 4096) as usize],
                GuestAddress(CODE_FRAME),
            )
            .expect("inside RAM");
        let start = start_state();
        cpu.set_state(&start).expect("a legal state");
        Engine {
            memory,
            cpu,
            start,
            dirty: 0..0,
        }
    }

    /// Fills the data pages.
    pub fn fill(&mut self, data: &[u8]) {
        self.memory
            .write_slice(data, GuestAddress(DATA_FRAME))
            .expect("inside RAM");
    }

    /// Reads the data pages.
    pub fn read(&self, data: &mut [u8]) {
        self.memory
            .read_slice(data, GuestAddress(DATA_FRAME))
            .expect("inside RAM");
    }

    fn write_code(&mut self, at: u64, bytes: &[u8]) {
        self.memory
            .write_slice(bytes, GuestAddress(CODE_FRAME + at))
            .expect("inside RAM");
        self.cpu.memory_written(CODE_FRAME + at, bytes.len() as u64);
    }

    /// Runs a case.
    pub fn run(&mut self, start: u64, code: &[u8], registers: &Registers) -> Outcome {
        let at = start - CODE;
        let length = (code.len() as u64).min(CODE_PAGES * 4096 - at);
        let fill = [FILL; 64];
        self.write_code(
            self.dirty.start,
            &fill[..(self.dirty.end - self.dirty.start) as usize],
        );
        self.write_code(at, &code[..length as usize]);
        self.dirty = at..at + length;
        self.start.rip = start;
        self.start.gpr = registers.gpr;
        self.start.rflags = registers.rflags;
        self.start.fxsave.copy_from_slice(&registers.fx);
        self.cpu.set_state(&self.start).expect("a legal state");
        let exit = self.cpu.run(1_000_000, &mut Nothing);
        let state = self.cpu.state();
        let mut out = Outcome {
            retired: self.cpu.retired(),
            endless: exit == RunExit::Budget,
            ..Outcome::default()
        };
        if exit != RunExit::Halted {
            out.note = format!("{exit:?}");
            return out;
        }
        out.vector = ((state.rip - 1 - HIGH - HANDLERS) / 16) as u8;
        let has_error = matches!(out.vector, 8 | 10..=14 | 17);
        let mut frame = [0; 48];
        let length = if has_error { 48 } else { 40 };
        self.memory
            .read_slice(&mut frame[..length], GuestAddress(STACK - length as u64))
            .expect("inside RAM");
        let word =
            |i: usize| u64::from_le_bytes(frame[8 * i..8 * i + 8].try_into().expect("eight bytes"));
        let first = usize::from(has_error);
        if has_error {
            out.error = word(0) as u32;
        }
        out.rip = word(first);
        out.registers.gpr = state.gpr;
        out.registers.gpr[4] = word(first + 3);
        out.registers.rflags = word(first + 2);
        out.registers.fx.copy_from_slice(&state.fxsave);
        out.cr2 = state.cr2;
        out
    }
}

fn start_state() -> CpuState {
    let segment = |selector, attributes| Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attributes,
    };
    let data = segment(0x2b, 0xc0f3);
    // As Linux starts a process: null selectors but for CS and SS.
    let null = segment(0, 0x1_c0f3);
    let mut gs = null;
    gs.base = GS_BASE;
    CpuState {
        gpr: [0; 16],
        rip: CODE,
        rflags: 0x202,
        segments: [null, segment(0x33, 0xa0fb), data, null, null, gs],
        ldtr: Segment {
            attributes: 0x1_0000,
            ..Segment::default()
        },
        tr: Segment {
            selector: 0x40,
            base: HIGH + TSS,
            limit: 0x67,
            attributes: 0x8b,
        },
        gdtr: DescriptorTable {
            base: HIGH + GDT,
            limit: 0x37,
        },
        idtr: DescriptorTable {
            base: HIGH + IDT,
            limit: 0xfff,
        },
        cr0: 0x8005_0033,
        cr2: 0,
        cr3: TABLES,
        cr4: 0x6a0,
        cr8: 0,
        efer: 0xd01,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: 0x0007_0406_0007_0406,
        apic_base: 0xfee0_0900,
        dr: [0, 0, 0, 0, 0xffff_0ff0, 0x400],
        fxsave: vec![0; 512],
        halted: false,
        interrupt_shadow: 0,
        nmi_blocked: false,
        nmi_pending: false,
        pending_debug: 0,
    }
}
