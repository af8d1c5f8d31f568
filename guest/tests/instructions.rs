//! Which instructions the tenant is made of. An engine that cannot repeat one, or lacks it, could not
//! keep the tenant in lockstep; a compiler's flag could bring one in unseen.

use iced_x86::{Code, CpuidFeature, Decoder, DecoderOptions, Mnemonic};

fn u16_at(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..][..2].try_into().unwrap()))
}

fn u64_at(bytes: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(bytes[at..][..8].try_into().unwrap())).unwrap()
}

/// The bytes of the executable segment, and their address.
fn text(elf: &[u8]) -> (&[u8], u64) {
    const PT_LOAD: u8 = 1;
    const PF_X: u8 = 1;
    assert_eq!(&elf[..5], b"\x7fELF\x02", "ELF64");
    let (table, size, count) = (u64_at(elf, 32), u16_at(elf, 54), u16_at(elf, 56));
    let header = (0..count)
        .map(|n| &elf[table + n * size..][..size])
        .find(|header| header[0] == PT_LOAD && header[4] & PF_X != 0)
        .expect("an executable segment");
    let (offset, address, length) = (u64_at(header, 8), u64_at(header, 16), u64_at(header, 32));
    (&elf[offset..][..length], address as u64)
}

/// Entry for 32-bit loaders, the only part that is not 64-bit code; found by its ELF note.
fn pvh_entry(elf: &[u8]) -> u64 {
    let name = elf
        .windows(4)
        .position(|window| window == b"Xen\0")
        .expect("a PVH note");
    u64_at(elf, name + 4) as u64
}

#[test]
fn every_instruction_is_one_that_every_engine_repeats() {
    use CpuidFeature::{
        CMOV, INTEL186, INTEL286, INTEL386, INTEL486, INTEL8086, MULTIBYTENOP, X64,
    };
    let basic = [
        INTEL8086,
        INTEL186,
        INTEL286,
        INTEL386,
        INTEL486,
        X64,
        CMOV,
        MULTIBYTENOP,
    ];
    // Basic, and yet not repeated everywhere: what KVM's instruction emulator lacks in 64-bit mode.
    let lacking = [
        Mnemonic::Int3,
        Mnemonic::Int,
        Mnemonic::Iret,
        Mnemonic::Iretd,
        Mnemonic::Iretq,
    ];
    let elf = lockstep_guest::bare_tenant();
    let (bytes, address) = text(elf);
    let pvh = pvh_entry(elf);
    let mut seen = 0;
    let mut decoder = Decoder::with_ip(64, bytes, address, DecoderOptions::NONE);
    while decoder.can_decode() {
        let instruction = decoder.decode();
        if instruction.ip() == pvh {
            // 32-bit code up to the far jump into 64-bit code.
            let rest = &bytes[usize::try_from(pvh - address).unwrap()..];
            let mut entry = Decoder::with_ip(32, rest, pvh, DecoderOptions::NONE);
            while entry.decode().code() != Code::Jmp_ptr1632 {}
            decoder
                .set_position(usize::try_from(entry.ip() - address).unwrap())
                .unwrap();
            decoder.set_ip(entry.ip());
            continue;
        }
        assert!(
            !instruction.is_invalid(),
            "no instruction at {:#x}",
            instruction.ip()
        );
        // TZCNT is how gcc spells BSF for operands that are not zero: there they agree.
        let repeated = instruction.mnemonic() == Mnemonic::Tzcnt
            || instruction
                .cpuid_features()
                .iter()
                .all(|feature| basic.contains(feature))
                && !lacking.contains(&instruction.mnemonic());
        assert!(
            repeated,
            "at {:#x}: {:?} ({:?})",
            instruction.ip(),
            instruction.code(),
            instruction.cpuid_features(),
        );
        seen += 1;
    }
    assert!(seen > 1000, "only {seen} instructions were looked at");
}
