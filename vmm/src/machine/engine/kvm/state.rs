//! [`CpuState`] from and to KVM's register structures.

use std::io;

use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW, KVM_X86_SHADOW_INT_MOV_SS,
    KVM_X86_SHADOW_INT_STI, Msrs, kvm_debugregs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment,
    kvm_sregs, kvm_vcpu_events, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use lockstep_cpu::{CpuState, DescriptorTable, Segment};

use crate::machine::engine::{EngineError, EngineKind};

/// Vector of #DB.
const VECTOR_DB: u8 = 1;
/// Vector of #UD.
const VECTOR_UD: u8 = 6;
/// Size of the FXSAVE image.
const FXSAVE_BYTES: usize = 512;
/// Parts of the FXSAVE image (SDM vol. 1, 10.5.1) that differ between makers of CPUs for one and the
/// same guest: FOP, FIP and FDP (only AMD leaves them out while no exception is pending), and the
/// bytes above XMM15, which belong to nobody.
const FXSAVE_POINTERS: std::ops::Range<usize> = 6..24;
const FXSAVE_UNUSED: std::ops::Range<usize> = 416..512;
/// MXCSR_MASK, and its value for the CPU model (no misaligned mode).
const FXSAVE_MXCSR_MASK: std::ops::Range<usize> = 28..32;
const MXCSR_MASK: u32 = 0xffff;
/// XSTATE_BV in the XSAVE header (SDM vol. 1, 13.4.2), in 32-bit words: x87 and SSE follow.
const XSTATE_BV: usize = FXSAVE_BYTES / 4;
const XSTATE_X87_SSE: u32 = 3;

/// The MSRs that a [`CpuState`] holds, in the order of [`msr_fields`].
const MSRS: [u32; 9] = [
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0102, // KERNEL_GS_BASE
    0x174,       // SYSENTER_CS
    0x175,       // SYSENTER_ESP
    0x176,       // SYSENTER_EIP
    0x277,       // PAT
];

fn msr_fields(state: &mut CpuState) -> [&mut u64; MSRS.len()] {
    [
        &mut state.star,
        &mut state.lstar,
        &mut state.cstar,
        &mut state.sfmask,
        &mut state.kernel_gs_base,
        &mut state.sysenter_cs,
        &mut state.sysenter_esp,
        &mut state.sysenter_eip,
        &mut state.pat,
    ]
}

fn host(call: &'static str) -> impl Fn(kvm_ioctls::Error) -> EngineError {
    move |error| EngineError::Host {
        call,
        source: error.into(),
    }
}

/// Reads the whole architectural state. No exit may be in flight.
///
/// # Errors
/// The host refused a call, or the guest is in the middle of an event's delivery.
pub fn export(vcpu: &VcpuFd, halted: bool) -> Result<CpuState, EngineError> {
    let regs = vcpu.get_regs().map_err(host("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    let debug = vcpu.get_debug_regs().map_err(host("KVM_GET_DEBUGREGS"))?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(host("KVM_GET_VCPU_EVENTS"))?;
    let xsave = vcpu.get_xsave().map_err(host("KVM_GET_XSAVE"))?;
    if events.exception.injected != 0 || events.exception.pending != 0 {
        return Err(EngineError::InFlight("an exception is being delivered"));
    }
    if events.interrupt.injected != 0 || events.nmi.injected != 0 {
        return Err(EngineError::InFlight("an interrupt is being delivered"));
    }
    let [es, cs, ss, ds, fs, gs] =
        [sregs.es, sregs.cs, sregs.ss, sregs.ds, sregs.fs, sregs.gs].map(segment);
    let mut state = CpuState {
        gpr: [
            regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi,
            regs.r8, regs.r9, regs.r10, regs.r11, regs.r12, regs.r13, regs.r14, regs.r15,
        ],
        rip: regs.rip,
        rflags: regs.rflags,
        segments: [es, cs, ss, ds, fs, gs],
        ldtr: segment(sregs.ldt),
        tr: segment(sregs.tr),
        gdtr: table(sregs.gdt),
        idtr: table(sregs.idt),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        star: 0,
        lstar: 0,
        cstar: 0,
        sfmask: 0,
        kernel_gs_base: 0,
        sysenter_cs: 0,
        sysenter_esp: 0,
        sysenter_eip: 0,
        pat: 0,
        apic_base: sregs.apic_base,
        dr: [
            debug.db[0],
            debug.db[1],
            debug.db[2],
            debug.db[3],
            debug.dr6,
            debug.dr7,
        ],
        fxsave: fxsave_image(&xsave),
        halted,
        interrupt_shadow: shadow_from_kvm(events.interrupt.shadow),
        nmi_blocked: events.nmi.masked != 0,
        nmi_pending: events.nmi.pending != 0,
        pending_debug: 0,
    };
    export_msrs(vcpu, &mut state)?;
    Ok(state)
}

/// Takes back the #UD that KVM queues beside an emulation failure.
///
/// # Errors
/// The host refused a call.
pub fn withdraw_undefined(vcpu: &VcpuFd) -> Result<(), EngineError> {
    let mut events = vcpu
        .get_vcpu_events()
        .map_err(host("KVM_GET_VCPU_EVENTS"))?;
    let exception = &mut events.exception;
    if exception.nr != VECTOR_UD || (exception.injected == 0 && exception.pending == 0) {
        return Ok(());
    }
    (exception.injected, exception.pending) = (0, 0);
    vcpu.set_vcpu_events(&events)
        .map_err(host("KVM_SET_VCPU_EVENTS"))
}

fn export_msrs(vcpu: &VcpuFd, state: &mut CpuState) -> Result<(), EngineError> {
    let mut msrs = msr_list(MSRS.map(|index| (index, 0)));
    let read = vcpu.get_msrs(&mut msrs).map_err(host("KVM_GET_MSRS"))?;
    refuse_short("KVM_GET_MSRS", read)?;
    for (field, entry) in msr_fields(state).into_iter().zip(msrs.as_slice()) {
        *field = entry.data;
    }
    Ok(())
}

/// Replaces the whole architectural state. No exit may be in flight. CR8 is to be put into the
/// shared page as well: KVM_RUN takes it from there.
///
/// # Errors
/// The host refused a call, or the state is not one that KVM can hold.
pub fn import(vcpu: &VcpuFd, state: &CpuState) -> Result<(), EngineError> {
    if state.fxsave.len() != FXSAVE_BYTES {
        return Err(EngineError::State {
            engine: EngineKind::Kvm,
            reason: format!(
                "its FXSAVE image has {} bytes, expected {FXSAVE_BYTES}",
                state.fxsave.len()
            ),
        });
    }
    let gpr = &state.gpr;
    let regs = kvm_regs {
        rax: gpr[0],
        rcx: gpr[1],
        rdx: gpr[2],
        rbx: gpr[3],
        rsp: gpr[4],
        rbp: gpr[5],
        rsi: gpr[6],
        rdi: gpr[7],
        r8: gpr[8],
        r9: gpr[9],
        r10: gpr[10],
        r11: gpr[11],
        r12: gpr[12],
        r13: gpr[13],
        r14: gpr[14],
        r15: gpr[15],
        rip: state.rip,
        rflags: state.rflags,
    };
    let [es, cs, ss, ds, fs, gs] = state.segments.map(kvm_segment_of);
    let sregs = kvm_sregs {
        cs,
        ds,
        es,
        fs,
        gs,
        ss,
        tr: kvm_segment_of(state.tr),
        ldt: kvm_segment_of(state.ldtr),
        gdt: kvm_table_of(state.gdtr),
        idt: kvm_table_of(state.idtr),
        cr0: state.cr0,
        cr2: state.cr2,
        cr3: state.cr3,
        cr4: state.cr4,
        cr8: state.cr8,
        efer: state.efer,
        apic_base: state.apic_base,
        interrupt_bitmap: [0; 4],
    };
    vcpu.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(host("KVM_SET_REGS"))?;
    let mut copy = state.clone();
    let mut values = MSRS.map(|index| (index, 0));
    for (value, field) in values.iter_mut().zip(msr_fields(&mut copy)) {
        value.1 = *field;
    }
    let written = vcpu
        .set_msrs(&msr_list(values))
        .map_err(host("KVM_SET_MSRS"))?;
    refuse_short("KVM_SET_MSRS", written)?;
    // SAFETY: `kvm_xsave` is 4096 bytes, and KVM reads more only if features beyond them were
    // enabled by arch_prctl, which this process does not do.
    unsafe { vcpu.set_xsave(&xsave_of(&state.fxsave)) }.map_err(host("KVM_SET_XSAVE"))?;
    let [db0, db1, db2, db3, dr6, dr7] = state.dr;
    let dr6 = dr6 | state.pending_debug;
    let debug = kvm_debugregs {
        db: [db0, db1, db2, db3],
        dr6,
        dr7,
        ..Default::default()
    };
    vcpu.set_debug_regs(&debug)
        .map_err(host("KVM_SET_DEBUGREGS"))?;
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING,
        ..Default::default()
    };
    if state.pending_debug != 0 {
        // A trap that is due: KVM delivers it at the next entry. DR6 it takes as it finds it.
        events.exception.injected = 1;
        events.exception.nr = VECTOR_DB;
    }
    events.nmi.pending = u8::from(state.nmi_pending);
    events.interrupt.shadow = shadow_to_kvm(state.interrupt_shadow);
    events.nmi.masked = u8::from(state.nmi_blocked);
    vcpu.set_vcpu_events(&events)
        .map_err(host("KVM_SET_VCPU_EVENTS"))
}

fn msr_list(values: [(u32, u64); MSRS.len()]) -> Msrs {
    let entries = values.map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    Msrs::from_entries(&entries).expect("nine entries are fewer than the 256 that KVM takes")
}

/// KVM stops at the first MSR that it does not have.
fn refuse_short(call: &'static str, done: usize) -> Result<(), EngineError> {
    match MSRS.get(done) {
        None => Ok(()),
        Some(index) => Err(EngineError::Host {
            call,
            source: io::Error::other(format!("KVM does not have MSR {index:#x}")),
        }),
    }
}

fn segment(segment: kvm_segment) -> Segment {
    let attributes = u32::from(segment.type_)
        | u32::from(segment.s) << 4
        | u32::from(segment.dpl) << 5
        | u32::from(segment.present) << 7
        | u32::from(segment.avl) << 12
        | u32::from(segment.l) << 13
        | u32::from(segment.db) << 14
        | u32::from(segment.g) << 15
        | u32::from(segment.unusable) << 16;
    Segment {
        selector: segment.selector,
        base: segment.base,
        limit: segment.limit,
        attributes,
    }
}

fn kvm_segment_of(segment: Segment) -> kvm_segment {
    let bits = |shift: u32, width: u32| (segment.attributes >> shift & ((1 << width) - 1)) as u8;
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: bits(0, 4),
        s: bits(4, 1),
        dpl: bits(5, 2),
        present: bits(7, 1),
        avl: bits(12, 1),
        l: bits(13, 1),
        db: bits(14, 1),
        g: bits(15, 1),
        unusable: bits(16, 1),
        padding: 0,
    }
}

fn table(table: kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

fn kvm_table_of(table: DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

/// KVM numbers the two shadows the other way round.
fn shadow_from_kvm(shadow: u8) -> u8 {
    let shadow = u32::from(shadow);
    u8::from(shadow & KVM_X86_SHADOW_INT_STI != 0)
        | u8::from(shadow & KVM_X86_SHADOW_INT_MOV_SS != 0) << 1
}

fn shadow_to_kvm(shadow: u8) -> u8 {
    let sti = if shadow & 1 != 0 {
        KVM_X86_SHADOW_INT_STI
    } else {
        0
    };
    let mov_ss = if shadow & 2 != 0 {
        KVM_X86_SHADOW_INT_MOV_SS
    } else {
        0
    };
    (sti | mov_ss) as u8
}

fn fxsave_image(xsave: &kvm_xsave) -> Vec<u8> {
    let mut image: Vec<u8> = xsave.region[..FXSAVE_BYTES / 4]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    image[FXSAVE_POINTERS].fill(0);
    image[FXSAVE_MXCSR_MASK].copy_from_slice(&MXCSR_MASK.to_le_bytes());
    image[FXSAVE_UNUSED].fill(0);
    image
}

fn xsave_of(fxsave: &[u8]) -> kvm_xsave {
    let mut xsave = kvm_xsave::default();
    for (word, bytes) in xsave.region.iter_mut().zip(fxsave.chunks_exact(4)) {
        *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    xsave.region[XSTATE_BV] = XSTATE_X87_SSE;
    xsave
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_survive_the_way_to_kvm_and_back() {
        for attributes in [0xa09b, 0xc093, 0x008b, 0x1_0000, 0x1_f0ff] {
            let given = Segment {
                selector: 0x10,
                base: 0x1234_5678_9abc,
                limit: 0xffff_ffff,
                attributes,
            };
            assert_eq!(segment(kvm_segment_of(given)), given);
        }
    }

    #[test]
    fn shadows_survive_the_way_to_kvm_and_back() {
        for shadow in 0..4 {
            assert_eq!(shadow_from_kvm(shadow_to_kvm(shadow)), shadow);
        }
        assert_eq!(shadow_from_kvm(KVM_X86_SHADOW_INT_STI as u8), 1);
    }

    #[test]
    fn what_cpu_makers_disagree_on_is_not_exported() {
        let mut xsave = kvm_xsave::default();
        xsave.region[..FXSAVE_BYTES / 4].fill(0xffff_ffff);
        let image = fxsave_image(&xsave);
        assert_eq!(image.len(), FXSAVE_BYTES);
        assert_eq!(image[0..6], [0xff; 6], "control, status and tag words");
        assert_eq!(image[6..24], [0; 18]);
        assert_eq!(image[24..28], [0xff; 4], "MXCSR");
        assert_eq!(image[28..32], [0xff, 0xff, 0, 0]);
        assert_eq!(image[32..416], [0xff; 384]);
        assert_eq!(image[416..], [0; 96]);
    }
}
