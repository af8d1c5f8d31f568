//! What the machine's tests share: small guests, frames for the bare tenant, and a recorder with its
//! replayer that are as plain as the definition of lockstep.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::arch::global_asm;

use lockstep_vmm::ft::vm::{DigestScope, Event, OutputKind, StateDigest, Vm};
use lockstep_vmm::machine::engine::{EngineKind, Position, Stop};
use lockstep_vmm::machine::memory::{GuestRam, MemoryError};
use lockstep_vmm::machine::{Machine, MachineConfig};

/// A generator whose whole state is its seed (Steele, Lea, Flood: SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

// Guests in assembly, position-independent, entered at their first byte by the 64-bit boot protocol.
global_asm!(
    ".pushsection .rodata",
    // Counts timer interrupts of 100 microseconds, prints a letter and spins in between, mixes all
    // it sees into a checksum, and powers off after 40.
    "guest_ticker_start:",
    "  mov rsp, 0x180000",
    "  mov rdi, 0x140000", // interrupt descriptors
    "  lea rax, [rip + 3f]",
    "  mov rcx, 0x20",
    "2:",
    "  mov rdx, rcx",
    "  shl rdx, 4",
    "  mov word ptr [rdi + rdx], ax",
    "  mov word ptr [rdi + rdx + 2], 0x10",
    "  mov word ptr [rdi + rdx + 4], 0x8e00",
    "  mov rbx, rax",
    "  shr rbx, 16",
    "  mov word ptr [rdi + rdx + 6], bx",
    "  mov qword ptr [rdi + rdx + 8], 0",
    "  inc rcx",
    "  cmp rcx, 0x30",
    "  jb 2b",
    "  mov word ptr [rdi - 16], 0x2ff",
    "  mov qword ptr [rdi - 14], rdi",
    "  lidt [rdi - 16]",
    "  mov al, 0x11",
    "  out 0x20, al",
    "  mov al, 0x20",
    "  out 0x21, al",
    "  mov al, 4",
    "  out 0x21, al",
    "  mov al, 1",
    "  out 0x21, al",
    "  mov al, 0xfe", // only the timer
    "  out 0x21, al",
    "  mov al, 0x34", // channel 0, mode 2
    "  out 0x43, al",
    "  mov al, 119",
    "  out 0x40, al",
    "  xor eax, eax",
    "  out 0x40, al",
    "  xor r12d, r12d", // interrupts seen
    "  xor r13d, r13d", // checksum
    "  sti",
    "4:",
    "  mov rcx, 333",
    "5:",
    "  imul r13, r13, 31",
    "  add r13, rcx",
    "  dec rcx",
    "  jnz 5b",
    "  mov eax, r12d",
    "  and al, 15",
    "  add al, 'a'",
    "  mov dx, 0x3f8",
    "  out dx, al",
    "  xor eax, eax",
    "  out 0x43, al", // latch the count, and mix it in
    "  in al, 0x40",
    "  add r13, rax",
    "  in al, 0x40",
    "  add r13, rax",
    "  mov dx, 0x608",
    "  in eax, dx",
    "  xor r13, rax",
    "  test r13b, 7",
    "  jnz 6f",
    "  hlt",
    "6:",
    "  cmp r12, 40",
    "  jb 4b",
    "  mov [0x150000], r13",
    "  mov dx, 0x604",
    "  mov ax, 0x2000",
    "  out dx, ax",
    "7: hlt",
    "  jmp 7b",
    "3:", // every interrupt
    "  push rax",
    "  inc r12",
    "  imul r13, r13, 7",
    "  mov al, 0x20",
    "  out 0x20, al",
    "  pop rax",
    "  iretq",
    "guest_ticker_end:",
    // The same by the local APIC's timer: 100 microseconds, periodic, divided by one.
    "guest_apic_ticker_start:",
    "  mov rsp, 0x180000",
    "  mov rdi, 0x140000",
    "  lea rax, [rip + 3f]",
    "  mov rdx, 0x240", // vector 0x24
    "  mov word ptr [rdi + rdx], ax",
    "  mov word ptr [rdi + rdx + 2], 0x10",
    "  mov word ptr [rdi + rdx + 4], 0x8e00",
    "  mov rbx, rax",
    "  shr rbx, 16",
    "  mov word ptr [rdi + rdx + 6], bx",
    "  mov qword ptr [rdi + rdx + 8], 0",
    "  mov word ptr [rdi - 16], 0x2ff",
    "  mov qword ptr [rdi - 14], rdi",
    "  lidt [rdi - 16]",
    "  mov eax, 0xfee00000",
    "  mov r14, rax",
    "  mov dword ptr [r14 + 0x3e0], 0xb",
    "  mov dword ptr [r14 + 0x320], 0x20024",
    "  mov dword ptr [r14 + 0x380], 100000",
    "  xor r12d, r12d", // interrupts seen
    "  xor r13d, r13d", // checksum
    "  sti",
    "4:",
    "  mov rcx, 333",
    "5:",
    "  imul r13, r13, 31",
    "  add r13, rcx",
    "  dec rcx",
    "  jnz 5b",
    "  mov eax, r12d",
    "  and al, 15",
    "  add al, 'a'",
    "  mov dx, 0x3f8",
    "  out dx, al",
    "  mov eax, [r14 + 0x390]", // the count, and what is in service
    "  add r13, rax",
    "  mov eax, [r14 + 0x110]",
    "  add r13, rax",
    "  test r13b, 7",
    "  jnz 6f",
    "  hlt",
    "6:",
    "  cmp r12, 40",
    "  jb 4b",
    "  mov [0x150000], r13",
    "  mov dx, 0x604",
    "  mov ax, 0x2000",
    "  out dx, ax",
    "7: hlt",
    "  jmp 7b",
    "3:",
    "  inc r12",
    "  imul r13, r13, 7",
    "  mov dword ptr [r14 + 0xb0], 0",
    "  iretq",
    "guest_apic_ticker_end:",
    // Says something without a newline, and halts for ever.
    "guest_halt_disabled_start:",
    "  mov dx, 0x3f8",
    "  mov al, '!'",
    "  out dx, al",
    "  cli",
    "  hlt",
    "guest_halt_disabled_end:",
    // An undefined instruction with no descriptor table to handle it.
    "guest_triple_fault_start:",
    "  in al, 0x61",
    "  ud2",
    "guest_triple_fault_end:",
    // A load from where nothing is.
    "guest_nothing_start:",
    "  mov rax, 0xe0001000",
    "  mov ebx, [rax]",
    "8: jmp 8b",
    "guest_nothing_end:",
    // Ports: IN of every width from a port that nobody owns, and a reset at the end.
    "guest_ports_start:",
    "  xor eax, eax",
    "  mov dx, 0x1234",
    "  in eax, dx",
    "  mov [0x150000], eax",
    "  xor eax, eax",
    "  in ax, dx",
    "  mov [0x150004], eax",
    "  xor eax, eax",
    "  in al, dx",
    "  mov [0x150008], eax",
    "  lea rsi, [rip + 9f]",
    "  mov ecx, 6",
    "  mov dx, 0x3f8",
    "  rep outsb",
    "  mov rdi, 0x150010",
    "  mov ecx, 5",
    "  mov dx, 0x70",
    "  rep insb",
    "  mov al, 0xfe",
    "  out 0x64, al",
    "10: hlt",
    "  jmp 10b",
    "9: .ascii \"ports\\n\"",
    "guest_ports_end:",
    // One instruction that reads a device's register and writes it (the choice of which half of the
    // features to show), and one that only reads.
    "guest_read_modify_write_start:",
    "  mov rax, 0xd0000014",
    "  mov ecx, 3",
    "11:",
    "  add dword ptr [rax], 1",
    "  mov ebx, [rax - 4]",
    "  mov [0x150000 + rcx * 4], ebx",
    "  dec ecx",
    "  jnz 11b",
    "  mov al, 6",
    "  mov dx, 0xcf9",
    "  out dx, al",
    "12: hlt",
    "  jmp 12b",
    "guest_read_modify_write_end:",
    ".popsection",
);

/// The bytes between two labels of the assembly above.
fn code_between(start: *const u8, end: *const u8) -> &'static [u8] {
    // SAFETY: `guest!` alone calls this, with two labels of the block of assembly above, in this
    // order, in one section of this program's read-only data, which lives as long as the program.
    unsafe { std::slice::from_raw_parts(start, end.offset_from(start) as usize) }
}

macro_rules! guest {
    ($name:ident, $start:ident, $end:ident) => {
        /// The guest as an ELF image.
        pub fn $name() -> Vec<u8> {
            unsafe extern "C" {
                static $start: u8;
                static $end: u8;
            }
            let (start, end) = (&raw const $start, &raw const $end);
            elf(code_between(start, end))
        }
    };
}

guest!(ticker, guest_ticker_start, guest_ticker_end);
guest!(apic_ticker, guest_apic_ticker_start, guest_apic_ticker_end);
guest!(
    halt_disabled,
    guest_halt_disabled_start,
    guest_halt_disabled_end
);
guest!(
    triple_fault,
    guest_triple_fault_start,
    guest_triple_fault_end
);
guest!(access_to_nothing, guest_nothing_start, guest_nothing_end);
guest!(
    read_modify_write,
    guest_read_modify_write_start,
    guest_read_modify_write_end
);
guest!(ports, guest_ports_start, guest_ports_end);

/// An ELF64 image of one segment at 1 MiB, entered at its start.
pub fn elf(code: &[u8]) -> Vec<u8> {
    const START: u64 = 1 << 20;
    const OFFSET: u64 = 120;
    let mut image = Vec::new();
    image.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    for half in [2u16, 62] {
        image.extend_from_slice(&half.to_le_bytes());
    }
    image.extend_from_slice(&1u32.to_le_bytes());
    for word in [START, 64, 0] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        image.extend_from_slice(&half.to_le_bytes());
    }
    image.extend_from_slice(&1u32.to_le_bytes());
    image.extend_from_slice(&7u32.to_le_bytes());
    for word in [
        OFFSET,
        START,
        START,
        code.len() as u64,
        code.len() as u64,
        1,
    ] {
        image.extend_from_slice(&word.to_le_bytes());
    }
    image.extend_from_slice(code);
    image
}

/// A small machine without a network interface.
pub fn plain(engine: EngineKind) -> MachineConfig {
    MachineConfig {
        engine,
        memory_bytes: 4 << 20,
        nic: false,
        ..MachineConfig::default()
    }
}

/// A machine for the bare tenant at 10.0.0.2.
pub fn tenant(engine: EngineKind) -> MachineConfig {
    MachineConfig {
        engine,
        memory_bytes: 8 << 20,
        command_line: "ip=10.0.0.2/24".into(),
        ..MachineConfig::default()
    }
}

/// A UDP datagram to the tenant's key-value service, in an Ethernet frame.
pub fn request(config: &MachineConfig, id: u16, text: &str) -> Vec<u8> {
    let mut payload = Vec::new();
    for half in [id, 0, 1, 0] {
        payload.extend_from_slice(&half.to_be_bytes());
    }
    payload.extend_from_slice(text.as_bytes());
    udp(config, lockstep_guest::KV_PORT, &payload)
}

/// A UDP datagram to the tenant's `port`, in an Ethernet frame.
pub fn udp(config: &MachineConfig, port: u16, payload: &[u8]) -> Vec<u8> {
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::*;
    let (from, to) = (Ipv4Address::new(10, 0, 0, 1), Ipv4Address::new(10, 0, 0, 2));
    let udp = UdpRepr {
        src_port: 40_000,
        dst_port: port,
    };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: to,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let ethernet = EthernetRepr {
        src_addr: EthernetAddress([2, 0, 0, 0, 0, 9]),
        dst_addr: EthernetAddress(config.mac),
        ethertype: EthernetProtocol::Ipv4,
    };
    let checksums = ChecksumCapabilities::default();
    let mut frame = vec![0; 14 + ip.buffer_len() + ip.payload_len];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut frame));
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut frame[14..]), &checksums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut frame[14 + ip.buffer_len()..]),
        &from.into(),
        &to.into(),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &checksums,
    );
    frame
}

/// The payload of a datagram that the tenant sent, without its memcached header.
pub fn answer(frame: &[u8]) -> String {
    String::from_utf8_lossy(frame.get(14 + 20 + 8 + 8..).unwrap_or(&[])).into_owned()
}

/// Copies the memory of `machine` into the RAM of a machine that is being restored.
pub fn copy_memory(machine: &Machine, ram: &GuestRam) -> Result<(), MemoryError> {
    let (mut offset, mut result) = (0, Ok(()));
    machine
        .ram()
        .for_each_chunk(0, machine.ram().bytes(), |chunk| {
            if result.is_ok() {
                result = ram.write(offset, chunk);
            }
            offset += chunk.len() as u64;
        });
    result
}

/// What happened at a position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moment {
    Said(OutputKind, Vec<u8>),
    Frame(Vec<u8>),
    Console(Vec<u8>),
    Entropy(Vec<u8>),
    Clock,
    Digest(StateDigest),
}

/// An entry of the plainest log: position, clock, what.
pub type Entry = (Position, u64, Moment);

/// Takes what `machine` said into `log`.
pub fn take_outputs(machine: &mut Machine, log: &mut Vec<Entry>) {
    while let Some(output) = machine.next_output() {
        let moment = Moment::Said(output.kind, output.bytes.clone());
        log.push((machine.position(), machine.clock(), moment));
        machine.recycle(output);
    }
}

/// Applies an event and logs it.
pub fn apply(machine: &mut Machine, log: &mut Vec<Entry>, clock: u64, moment: Moment) {
    log.push((machine.position(), clock, moment.clone()));
    let event = match &moment {
        Moment::Frame(frame) => Event::Frame(frame),
        Moment::Console(bytes) => Event::Console(bytes),
        Moment::Entropy(bytes) => Event::Entropy(bytes),
        Moment::Clock => Event::Clock,
        Moment::Said(..) | Moment::Digest(_) => panic!("{moment:?} is no event"),
    };
    machine.apply(clock, event).unwrap();
}

/// Executes `log` on `machine`, each run cut into pieces of random length (if `random` is given), and
/// checks that it says the same at the same positions, and has the same digests.
pub fn replay(machine: &mut Machine, log: &[Entry], mut random: Option<Random>) {
    let mut said = Vec::new();
    for (index, entry) in log.iter().enumerate() {
        let (position, clock, moment) = entry;
        while machine.position() < *position
            || said.is_empty() && matches!(moment, Moment::Said(..))
        {
            let until = match &mut random {
                Some(random) => {
                    let most = (*position - machine.position()).max(1);
                    let piece = random.below(most) + 1;
                    machine.position() + piece.min(1 + random.below(20_000))
                }
                None => *position,
            };
            let until = until.min(*position);
            let before = machine.position();
            let stop = machine.run(until).unwrap();
            take_outputs(machine, &mut said);
            assert!(
                machine.position() > before || !said.is_empty() || stop == Stop::Kicked,
                "entry {index}: {stop:?} at {before}, {entry:?} still to come"
            );
            if stop == Stop::Halted && machine.position() < *position {
                panic!(
                    "entry {index}: halted at {}, expected {entry:?}",
                    machine.position()
                );
            }
        }
        assert_eq!(machine.position(), *position, "entry {index}: {entry:?}");
        match moment {
            Moment::Said(..) => {
                assert!(
                    !said.is_empty(),
                    "entry {index}: nothing was said, expected {entry:?}"
                );
                let found = said.remove(0);
                assert_eq!(&found, entry, "entry {index}");
            }
            Moment::Digest(expected) => {
                let found = machine.digest(DigestScope::Full).unwrap();
                assert_eq!(found, *expected, "entry {index}: digest at {position}");
            }
            event => apply(machine, &mut Vec::new(), *clock, event.clone()),
        }
    }
    assert!(said.is_empty(), "said beyond the log: {said:?}");
}
