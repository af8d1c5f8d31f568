//! The table of opcodes against what the CPU does with every encoding that its decoder knows.

mod guest;

use std::collections::BTreeMap;

use guest::{ENTRY, Guest, start_state};
use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use lockstep_cpu::opcodes::{OPCODES, Support, support};
use lockstep_cpu::{CpuState, RunExit};
use vm_memory::{Bytes, GuestAddress};

/// As the CPU decodes.
const OPTIONS: u32 =
    DecoderOptions::NO_MPFX_0FBC | DecoderOptions::NO_MPFX_0FBD | DecoderOptions::NO_LAHF_SAHF_64;
const VECTOR_UD: u8 = 6;

/// One encoding of every instruction (in iced's sense: mnemonic with operand types) that decodes with
/// `bits`: all prefixes, maps and opcodes of the legacy, VEX, EVEX and XOP encodings, with a ModRM byte of
/// every register field and every place.
fn encodings(bits: u32) -> BTreeMap<usize, (Instruction, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut buffer = [0; 15];
    let mut enter = |head: &[u8], modrm: u8| {
        buffer[..head.len()].copy_from_slice(head);
        buffer[head.len()] = modrm;
        buffer[head.len() + 1..].fill(0);
        let ins = Decoder::new(bits, &buffer, OPTIONS).decode();
        if !ins.is_invalid() {
            found
                .entry(ins.code() as usize)
                .or_insert_with(|| (ins, buffer[..ins.len()].to_vec()));
        }
    };
    let places: Vec<u8> = (0..64).step_by(8).chain(0xc0..=0xff).collect();
    let maps: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
    for prefix in [&[][..], &[0x66], &[0xf2], &[0xf3], &[0x67], &[0x66, 0x67]] {
        for wide in [&[][..], &[0x48]] {
            for (map, opcode) in maps.iter().flat_map(|m| (0..=255).map(move |o| (m, o))) {
                let head = [prefix, wide, map, &[opcode]].concat();
                places.iter().for_each(|&modrm| enter(&head, modrm));
            }
        }
    }
    let short: Vec<u8> = (0..64).step_by(8).chain((0xc0..=0xff).step_by(8)).collect();
    // VEX with three bytes and XOP: map; W, vvvv (none), L, pp.
    for (escape, maps) in [(0xc4, 1..=3), (0x8f, 8..=10)] {
        for (map, control, opcode) in maps.flat_map(|m| {
            [0x78, 0x7c, 0xf8, 0xfc]
                .into_iter()
                .flat_map(move |c| (0..4).map(move |p| (m, c | p)))
                .flat_map(|(m, c)| (0..=255).map(move |o| (m, c, o)))
        }) {
            let head = [escape, 0xe0 | map, control, opcode];
            short.iter().for_each(|&modrm| enter(&head, modrm));
        }
    }
    // EVEX: map; W, vvvv, pp; L'L, a mask of k1 or none.
    for map in 1..=6 {
        for (w, pp) in [0x7c, 0xfc]
            .into_iter()
            .flat_map(|w| (0..4).map(move |p| (w, p)))
        {
            for control in [0x08, 0x28, 0x48, 0x09, 0x29, 0x49, 0x18] {
                for opcode in 0..=255 {
                    let head = [0x62, 0xf0 | map, w | pp, control, opcode];
                    short.iter().for_each(|&modrm| enter(&head, modrm));
                }
            }
        }
    }
    found
}

/// Executes an encoding alone, in ring 0, without an IDT: the vector that it raised, if it did.
fn raised(guest: &mut Guest, state: &CpuState, bytes: &[u8]) -> Option<u8> {
    guest
        .memory
        .write_slice(bytes, GuestAddress(ENTRY))
        .expect("inside RAM");
    guest.cpu.memory_written(ENTRY, bytes.len() as u64);
    guest.cpu.set_state(state).expect("a legal state");
    match guest.run(1) {
        RunExit::TripleFault { vector, .. } => Some(vector),
        _ => None,
    }
}

/// In 32-bit code of a long-mode kernel.
fn compatibility_state() -> CpuState {
    let mut state = start_state();
    state.segments[1].selector = 0x18;
    state.segments[1].attributes = 0xc09b;
    state
}

#[test]
fn what_is_listed_is_executed_and_what_is_not_is_undefined() {
    let mut guest = Guest::new(&[0xf4]);
    let mut executed: Vec<Mnemonic> = Vec::new();
    let mut absent = 0;
    for (bits, state) in [(64, start_state()), (32, compatibility_state())] {
        for (ins, bytes) in encodings(bits).into_values() {
            let got = raised(&mut guest, &state, &bytes);
            if support(ins.mnemonic()) == Support::Absent {
                absent += 1;
                assert_eq!(
                    got,
                    Some(VECTOR_UD),
                    "{:?}, which is not in the model: {bytes:02x?}",
                    ins.code()
                );
            } else if got != Some(VECTOR_UD) {
                executed.push(ins.mnemonic());
            }
        }
    }
    let missing: Vec<Mnemonic> = OPCODES
        .iter()
        .map(|&(m, _)| m)
        .filter(|m| !executed.contains(m))
        .collect();
    assert!(missing.is_empty(), "listed, but #UD: {missing:?}");
    assert!(
        absent > 3000,
        "only {absent} forms of absent instructions were tried"
    );
}

#[test]
fn forms_of_later_extensions_are_undefined_though_their_mnemonic_is_listed() {
    let mut guest = Guest::new(&[0xf4]);
    let state = start_state();
    // SSE4.1's PEXTRW to memory; MOV from CR1; LOCK where it has no place; CMPXCHG16B.
    for bytes in [
        &[0x66, 0x0f, 0x3a, 0x15, 0x00, 0x00][..],
        &[0x0f, 0x20, 0xc8],
        &[0xf0, 0x90],
        &[0xf0, 0x01, 0xc0],
        &[0x48, 0x0f, 0xc7, 0x08],
    ] {
        assert_eq!(
            raised(&mut guest, &state, bytes),
            Some(VECTOR_UD),
            "{bytes:02x?}"
        );
    }
    // But F3 0F BC is BSF, F3 0F B8 (POPCNT) nothing.
    assert_eq!(raised(&mut guest, &state, &[0xf3, 0x0f, 0xbc, 0xc1]), None);
    assert_eq!(
        raised(&mut guest, &state, &[0xf3, 0x0f, 0xb8, 0xc1]),
        Some(VECTOR_UD)
    );
}
