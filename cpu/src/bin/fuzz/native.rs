//! Runs a case on the host's own CPU.
//!
//! A routine loads every register from the case and jumps to its first instruction. Whatever ends the
//! case (the INT3 behind it, or a fault) is a signal, whose handler takes the registers out of the
//! interrupted context and sends it back behind the jump. One signal a case: no process of its own, no
//! system call. The case's pages are mapped twice, so that they are filled through one mapping while
//! the case sees them through the other, with its own rights.

use std::arch::{asm, naked_asm};
use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::ptr;

use crate::{CODE, CODE_PAGES, DATA, DATA_PAGES, Outcome, Registers};

const SIGNALS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];
/// Order of `gregs` for RAX RCX RDX RBX RSP RBP RSI RDI R8..R15.
const GPRS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// The C library's rounding and masks, as a Rust program expects them.
const DEFAULT_CONTROL: u16 = 0x37f;
const DEFAULT_MXCSR: u32 = 0x1f80;

#[repr(C, align(64))]
struct Shared {
    /// FXRSTOR's, so at an offset and an address that are multiples of 16.
    fx: [u8; 512],
    gpr: [u64; 16],
    rflags: u64,
    /// Where `enter` goes on, and its stack.
    resume: u64,
    stack: u64,
    running: bool,
    outcome: Outcome,
}

struct Cell(UnsafeCell<Option<Box<Shared>>>);

// SAFETY: one thread only uses it: `Native` is made once (`new` panics otherwise) and is not Send.
unsafe impl Sync for Cell {}

static SHARED: Cell = Cell(UnsafeCell::new(None));

/// Where the case starts: jumped to when no register is free to hold it.
static mut TARGET: u64 = 0;

/// The host's CPU with the case's memory mapped.
pub struct Native {
    code: *mut u8,
    data: *mut u8,
    /// What the last case left in the code pages.
    dirty: std::ops::Range<usize>,
}

/// Runs what `shared` holds. Comes back by way of the handler.
///
/// # Safety
/// The handlers are set, `TARGET` is the address of mapped code whose every way out is a signal, and
/// that code touches no memory of this program.
unsafe fn enter(shared: *mut Shared) {
    // SAFETY: the registers that a Rust function must keep are pushed or declared as clobbered; the
    // handler brings back the stack pointer, default control words and flags.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "lea rax, [rip + 2f]",
            "mov [rdi + {resume}], rax",
            "mov [rdi + {stack}], rsp",
            "fxrstor64 [rdi + {fx}]",
            "push qword ptr [rdi + {rflags}]",
            "popfq",
            "mov rax, [rdi + {gpr}]",
            "mov rcx, [rdi + {gpr} + 8]",
            "mov rdx, [rdi + {gpr} + 16]",
            "mov rbx, [rdi + {gpr} + 24]",
            "mov rsp, [rdi + {gpr} + 32]",
            "mov rbp, [rdi + {gpr} + 40]",
            "mov rsi, [rdi + {gpr} + 48]",
            "mov r8, [rdi + {gpr} + 64]",
            "mov r9, [rdi + {gpr} + 72]",
            "mov r10, [rdi + {gpr} + 80]",
            "mov r11, [rdi + {gpr} + 88]",
            "mov r12, [rdi + {gpr} + 96]",
            "mov r13, [rdi + {gpr} + 104]",
            "mov r14, [rdi + {gpr} + 112]",
            "mov r15, [rdi + {gpr} + 120]",
            "mov rdi, [rdi + {gpr} + 56]",
            "jmp qword ptr [rip + {target}]",
            "2:",
            "pop rbp",
            "pop rbx",
            fx = const offset_of!(Shared, fx),
            gpr = const offset_of!(Shared, gpr),
            rflags = const offset_of!(Shared, rflags),
            resume = const offset_of!(Shared, resume),
            stack = const offset_of!(Shared, stack),
            target = sym TARGET,
            inout("rdi") shared => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
            clobber_abi("sysv64"),
        );
    }
}

/// The kernel leaves the case's AC flag set; the handler is not written for that.
#[unsafe(naked)]
unsafe extern "C" fn entry(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    naked_asm!(
        "pushfq",
        "and dword ptr [rsp], {without_ac}",
        "popfq",
        "jmp {handler}",
        without_ac = const !(1 << 18),
        handler = sym handler,
    )
}

unsafe extern "C" fn handler(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context; `SHARED` was filled before the handlers were set, and
    // `enter`, which the signal interrupted, holds no reference into it.
    let (context, shared) = unsafe {
        (
            &mut *context.cast::<libc::ucontext_t>(),
            (*SHARED.0.get()).as_mut(),
        )
    };
    let Some(shared) = shared.filter(|s| s.running) else {
        // A fault of the program itself: let it end as it would have.
        // SAFETY: always allowed.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    };
    shared.running = false;
    let gregs = &mut context.uc_mcontext.gregs;
    // SAFETY: on x86-64 the kernel always gives the FXSAVE image of 512 bytes there.
    let fx = unsafe { &mut *context.uc_mcontext.fpregs.cast::<[u8; 512]>() };
    let out = &mut shared.outcome;
    for (i, register) in GPRS.into_iter().enumerate() {
        out.registers.gpr[i] = gregs[register as usize] as u64;
    }
    out.registers.rflags = gregs[libc::REG_EFL as usize] as u64;
    out.registers.fx = *fx;
    out.rip = gregs[libc::REG_RIP as usize] as u64;
    out.vector = gregs[libc::REG_TRAPNO as usize] as u8;
    out.error = gregs[libc::REG_ERR as usize] as u32;
    out.cr2 = gregs[libc::REG_CR2 as usize] as u64;
    gregs[libc::REG_RIP as usize] = shared.resume as i64;
    gregs[libc::REG_RSP as usize] = shared.stack as i64;
    gregs[libc::REG_EFL as usize] = 0x202;
    // Control, status, tags; then MXCSR.
    fx[..6].fill(0);
    fx[..2].copy_from_slice(&DEFAULT_CONTROL.to_le_bytes());
    fx[24..28].copy_from_slice(&DEFAULT_MXCSR.to_le_bytes());
}

/// Maps `pages` of `file` from page `from` on, at `at` (which must be free) or, if 0, anywhere.
fn map(file: i32, from: u64, at: u64, pages: u64, protection: i32) -> *mut u8 {
    let fixed = if at == 0 {
        0
    } else {
        libc::MAP_FIXED_NOREPLACE
    };
    // SAFETY: a new mapping which replaces nothing.
    let got = unsafe {
        libc::mmap(
            at as *mut _,
            (pages * 4096) as usize,
            protection,
            libc::MAP_SHARED | libc::MAP_POPULATE | fixed,
            file,
            (from * 4096) as i64,
        )
    };
    assert_ne!(got, libc::MAP_FAILED, "mmap of {pages} pages at {at:#x}");
    assert!(at == 0 || got as u64 == at, "the address {at:#x} is taken");
    got.cast()
}

impl Native {
    /// Takes over the process's signals and maps the case's pages. Once per process.
    pub fn new() -> Native {
        // SAFETY: single-threaded set-up, before any handler can run.
        unsafe {
            assert!((*SHARED.0.get()).is_none(), "one per process");
            *SHARED.0.get() = Some(Box::new(Shared {
                fx: [0; 512],
                gpr: [0; 16],
                rflags: 0,
                resume: 0,
                stack: 0,
                running: false,
                outcome: Outcome::default(),
            }));
            let stack = libc::stack_t {
                ss_sp: libc::malloc(1 << 16),
                ss_flags: 0,
                ss_size: 1 << 16,
            };
            assert!(!stack.ss_sp.is_null());
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = entry as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            for signal in SIGNALS {
                libc::sigaddset(&mut action.sa_mask, signal);
            }
            for signal in SIGNALS {
                assert_eq!(libc::sigaction(signal, &action, ptr::null_mut()), 0);
            }
            // GS's base, which the C library does not use here.
            const ARCH_SET_GS: i32 = 0x1001;
            assert_eq!(
                libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, crate::GS_BASE),
                0
            );
        }
        let pages = CODE_PAGES + DATA_PAGES;
        // SAFETY: creates a file of its own.
        let file = unsafe { libc::memfd_create(c"cases".as_ptr(), libc::MFD_CLOEXEC) };
        assert!(file >= 0, "memfd_create");
        // SAFETY: sizes that file.
        assert_eq!(unsafe { libc::ftruncate(file, pages as i64 * 4096) }, 0);
        let (read, write, execute) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        map(file, 0, CODE, CODE_PAGES, read | execute);
        map(file, CODE_PAGES, DATA, DATA_PAGES - 1, read | write);
        let last = DATA_PAGES - 1;
        map(file, CODE_PAGES + last, DATA + 4096 * last, 1, read);
        let code = map(file, 0, 0, CODE_PAGES, read | write);
        let data = map(file, CODE_PAGES, 0, DATA_PAGES, read | write);
        // SAFETY: just mapped, of that size.
        unsafe { code.write_bytes(crate::FILL, (CODE_PAGES * 4096) as usize) };
        Native {
            code,
            data,
            dirty: 0..0,
        }
    }

    /// The data pages, to be filled before [`Native::run`] and read after it.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: mapped for as long as the process lives; no case runs while the slice does.
        unsafe { std::slice::from_raw_parts_mut(self.data, (DATA_PAGES * 4096) as usize) }
    }

    /// Runs a case.
    pub fn run(&mut self, start: u64, code: &[u8], registers: &Registers) -> Outcome {
        // SAFETY: `dirty` and the new range lie inside the code pages (`code` is cut at their end).
        unsafe {
            self.code
                .add(self.dirty.start)
                .write_bytes(crate::FILL, self.dirty.len());
            let at = (start - CODE) as usize;
            let length = code.len().min((CODE_PAGES * 4096) as usize - at);
            self.code
                .add(at)
                .copy_from_nonoverlapping(code.as_ptr(), length);
            self.dirty = at..at + length;
        }
        let shared: *mut Shared;
        // SAFETY: the reference ends before the case runs; no handler runs before.
        unsafe {
            let s = (*SHARED.0.get()).as_mut().expect("set by new");
            s.fx = registers.fx;
            s.gpr = registers.gpr;
            s.rflags = registers.rflags;
            s.outcome = Outcome::default();
            s.running = true;
            shared = &raw mut **s;
            TARGET = start;
        }
        // SAFETY: the code pages hold the case and INT3s. That it touches nothing of the program's is
        // likely, not certain: a random 64-bit pointer that happens to hit a mapping of this process
        // would change it, and end the run.
        unsafe { enter(shared) };
        // SAFETY: as above, after the case.
        unsafe {
            (*SHARED.0.get())
                .as_ref()
                .expect("set by new")
                .outcome
                .clone()
        }
    }
}
