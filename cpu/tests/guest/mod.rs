//! Small guests: assembled by gcc, run from 1 MiB on, ring 0, identity-mapped, with a bus that
//! records what it is asked.
#![allow(dead_code)] // each test binary uses its own part

use std::path::PathBuf;
use std::process::Command;

use lockstep_cpu::{Bus, Cpu, CpuModel, CpuState, DescriptorTable, MsrFault, RunExit, Segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where guests are loaded and start.
pub const ENTRY: u64 = 0x10_0000;
/// RAM of a guest.
pub const RAM: u64 = 16 << 20;
/// Page tables, GDT and the first stack lie below 1 MiB.
const PAGE_TABLES: u64 = 0x1000;
/// The GDT of the start state: null, code 64 (8), data (0x10), code 32 (0x18), user data (0x20),
/// user code 64 (0x28), user code 32 (0x30), TSS (0x38).
pub const GDT: u64 = 0x8000;
pub const TSS: u64 = 0x9000;
pub const STACK: u64 = 0x8_0000;

/// Records accesses; interrupts and stops are at the test's command.
#[derive(Default)]
pub struct TestBus {
    /// (position, port, value, size) of each OUT.
    pub out: Vec<(u64, u16, u32, usize)>,
    /// (position, address, bytes) of each MMIO write.
    pub mmio: Vec<(u64, u64, Vec<u8>)>,
    /// Bytes written to port 0xe9.
    pub text: Vec<u8>,
    /// The vector that the interrupt controller offers.
    pub pending: Option<u8>,
    /// An OUT to port 0xf4 raises this vector.
    pub raise_on_f4: Option<u8>,
    /// An OUT to port 0xf5 asks to stop.
    pub stop: bool,
}

impl Bus for TestBus {
    fn port_read(&mut self, at: u64, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        if port == 0x80 {
            data.copy_from_slice(&at.to_le_bytes()[..data.len()]);
        }
    }
    fn port_write(&mut self, at: u64, port: u16, data: &[u8]) {
        let mut value = [0; 4];
        value[..data.len()].copy_from_slice(data);
        self.out
            .push((at, port, u32::from_le_bytes(value), data.len()));
        match port {
            0xe9 => self.text.push(data[0]),
            0xf4 => self.pending = self.raise_on_f4,
            0xf5 => self.stop = true,
            _ => {}
        }
    }
    fn mmio_read(&mut self, at: u64, address: u64, data: &mut [u8]) {
        data.copy_from_slice(&(at << 32 | address & 0xffff_ffff).to_le_bytes()[..data.len()]);
    }
    fn mmio_write(&mut self, at: u64, address: u64, data: &[u8]) {
        self.mmio.push((at, address, data.to_vec()));
    }
    fn msr_read(&mut self, _at: u64, _index: u32) -> Result<u64, MsrFault> {
        Err(MsrFault)
    }
    fn msr_write(&mut self, _at: u64, _index: u32, _value: u64) -> Result<(), MsrFault> {
        Err(MsrFault)
    }
    fn interrupt_line(&self) -> bool {
        self.pending.is_some()
    }
    fn acknowledge_interrupt(&mut self) -> u8 {
        self.pending
            .take()
            .expect("acknowledged only while the line is up")
    }
    fn stop_requested(&self) -> bool {
        self.stop
    }
}

/// A CPU with its memory.
pub struct Guest {
    pub memory: GuestMemoryMmap,
    pub cpu: Cpu,
    pub bus: TestBus,
}

fn segment(selector: u16, attributes: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        attributes,
    }
}

/// Ring 0, 64-bit, interrupts off, at [`ENTRY`].
pub fn start_state() -> CpuState {
    let data = segment(0x10, 0xc093);
    let mut fxsave = vec![0; 512];
    fxsave[..2].copy_from_slice(&0x37f_u16.to_le_bytes());
    fxsave[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
    CpuState {
        gpr: std::array::from_fn(|i| if i == 4 { STACK } else { 0 }),
        rip: ENTRY,
        rflags: 2,
        segments: [data, segment(8, 0xa09b), data, data, data, data],
        ldtr: Segment {
            selector: 0,
            base: 0,
            limit: 0,
            attributes: 0x1_0000,
        },
        tr: Segment {
            selector: 0x38,
            base: TSS,
            limit: 0x67,
            attributes: 0x8b,
        },
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0x4f,
        },
        idtr: DescriptorTable { base: 0, limit: 0 },
        cr0: 0x8001_0033,
        cr2: 0,
        cr3: PAGE_TABLES,
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
        fxsave,
        halted: false,
        interrupt_shadow: 0,
        nmi_blocked: false,
        nmi_pending: false,
        pending_debug: 0,
    }
}

impl Guest {
    /// Loads machine code.
    pub fn new(code: &[u8]) -> Guest {
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM as usize)]).expect("guest RAM");
        let put = |at: u64, value: u64| {
            memory
                .write_obj(value, GuestAddress(at))
                .expect("inside RAM")
        };
        // One PML4, one PDPT, four page directories of 2-MiB pages: the first 4 GiB, user-accessible.
        put(PAGE_TABLES, 0x2007);
        for i in 0..4 {
            put(0x2000 + 8 * i, 0x3007 + 0x1000 * i);
        }
        for i in 0..2048 {
            put(0x3000 + 8 * i, i << 21 | 0x87);
        }
        let descriptors = [
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0x00cf_9b00_0000_ffff,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            0x00cf_fb00_0000_ffff,
            0x0000_8b00_0000_0067 | TSS << 16,
            0,
        ];
        for (i, d) in descriptors.into_iter().enumerate() {
            put(GDT + 8 * i as u64, d);
        }
        memory
            .write_slice(code, GuestAddress(ENTRY))
            .expect("code fits");
        let mut cpu = Cpu::new(memory.clone(), CpuModel::x86_64_v1());
        cpu.set_state(&start_state()).expect("a legal state");
        Guest {
            memory,
            cpu,
            bus: TestBus::default(),
        }
    }

    /// Loads a guest in assembly, which starts at its first byte.
    pub fn assembly(source: &str) -> Guest {
        Guest::new(&compile(source, "S", &[]))
    }

    /// Loads a guest in C; `_start` is its first function.
    pub fn c(source: &str) -> Guest {
        Guest::new(&compile(
            source,
            "c",
            &[
                "-O2",
                "-ffreestanding",
                "-mgeneral-regs-only",
                "-mno-red-zone",
                "-fno-stack-protector",
                "-fcf-protection=none",
                "-fno-toplevel-reorder",
            ],
        ))
    }

    pub fn run(&mut self, budget: u64) -> RunExit {
        self.cpu.run(budget, &mut self.bus)
    }

    /// Runs to HLT; fails the test when anything else comes first.
    pub fn run_to_halt(&mut self) {
        let exit = self.run(200_000_000);
        assert_eq!(exit, RunExit::Halted, "at RIP {:#x}", self.cpu.state().rip);
    }

    pub fn read_u64(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).expect("inside RAM")
    }

    pub fn write_u64(&self, at: u64, value: u64) {
        self.memory
            .write_obj(value, GuestAddress(at))
            .expect("inside RAM");
    }

    /// Values of all OUTs to a port.
    pub fn outs(&self, port: u16) -> Vec<u32> {
        self.bus
            .out
            .iter()
            .filter(|o| o.1 == port)
            .map(|o| o.2)
            .collect()
    }
}

/// Compiles to a flat binary linked at [`ENTRY`].
pub fn compile(source: &str, extension: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempdir();
    let (input, output) = (
        directory.join(format!("guest.{extension}")),
        directory.join("guest.bin"),
    );
    std::fs::write(&input, source).expect("a writable temporary directory");
    let gcc = Command::new("gcc")
        .args([
            "-nostdlib",
            "-static",
            "-no-pie",
            "-fno-pic",
            "-Wl,--oformat=binary,--build-id=none,-Ttext=0x100000,-e0x100000",
            "-o",
        ])
        .arg(&output)
        .args(flags)
        .arg(&input)
        .output()
        .expect("gcc is installed");
    assert!(
        gcc.status.success(),
        "gcc: {}",
        String::from_utf8_lossy(&gcc.stderr)
    );
    let code = std::fs::read(&output).expect("gcc wrote its output");
    std::fs::remove_dir_all(directory).expect("our own directory");
    code
}

fn tempdir() -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Relaxed: only uniqueness matters.
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("lockstep-cpu-{}-{n}", std::process::id()));
    std::fs::create_dir_all(&path).expect("a writable temporary directory");
    path
}

/// The environment variable that names the directory in which assembled guests of `system/` are kept: written
/// where gcc is, read where it is not (in a machine made for its KVM).
const ASSEMBLED: &str = "LOCKSTEP_SYSTEM_GUESTS";

/// A guest of `system/`: image and expectations, for every engine.
pub struct SystemGuest {
    pub name: String,
    pub image: Vec<u8>,
    /// What it writes to port 0x10.
    pub expected: Vec<u32>,
    /// On which silicon it may end otherwise, and why: lines `# unlike NAME: REASON`.
    pub unlike: Vec<(String, String)>,
}

impl SystemGuest {
    /// Where the sources are: in the tree, or beside the assembled guests.
    fn directory() -> PathBuf {
        // From this crate's tests, or from those of a sibling that includes this file.
        let tree = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../cpu/tests/system");
        match std::env::var_os(ASSEMBLED) {
            Some(assembled) if !tree.exists() => assembled.into(),
            _ => tree,
        }
    }

    /// Why [`read`](Self::read) could not work here: no gcc, and nothing assembled elsewhere.
    pub fn missing() -> Option<String> {
        let gcc = Command::new("gcc").arg("--version").output();
        if gcc.is_ok() || std::env::var_os(ASSEMBLED).is_some() {
            return None;
        }
        Some(format!(
            "gcc, which assembles the guests, is not installed, and {ASSEMBLED} names no directory with guests \
             that were assembled elsewhere"
        ))
    }

    /// Names of all of them, in order.
    pub fn names() -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(Self::directory())
            .expect("the guests are part of the source")
            .map(|entry| entry.expect("a readable directory").path())
            .filter(|path| path.extension().is_some_and(|e| e == "S"))
            .map(|path| path.file_stem().expect("a name").to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    /// Reads and assembles one.
    pub fn read(name: &str) -> SystemGuest {
        let read = |file: &str| {
            let path = Self::directory().join(file);
            std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let source = read(&format!("{name}.S"));
        let expected = source
            .lines()
            .find_map(|line| line.strip_prefix("# expect: "))
            .expect("a guest says what it writes")
            .split_whitespace()
            .map(|word| u32::from_str_radix(word, 16).expect("hexadecimal"))
            .collect();
        let unlike = source
            .lines()
            .filter_map(|line| line.strip_prefix("# unlike ")?.split_once(": "))
            .map(|(silicon, reason)| (silicon.to_owned(), reason.to_owned()))
            .collect();
        SystemGuest {
            name: name.to_owned(),
            image: Self::image(name, &source),
            expected,
            unlike,
        }
    }

    fn image(name: &str, source: &str) -> Vec<u8> {
        let kept = std::env::var_os(ASSEMBLED).map(PathBuf::from);
        let prelude = Self::directory().join("prelude.inc");
        let Ok(prelude) = std::fs::read_to_string(prelude) else {
            let directory = kept.expect("the sources are there, or the variable is set");
            let path = directory.join(format!("{name}.bin"));
            return std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        };
        let image = compile(&format!("{prelude}\n{source}"), "S", &[]);
        if let Some(directory) = kept {
            std::fs::create_dir_all(&directory).expect("a writable directory");
            std::fs::write(directory.join(format!("{name}.bin")), &image).expect("writable");
            std::fs::write(directory.join(format!("{name}.S")), source).expect("writable");
        }
        image
    }
}
