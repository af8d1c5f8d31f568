//! Runs a case on the host's own CPU.
//!
//! The case is entered and left through signals: the handler of the first replaces the interrupted
//! context by the case's, and the kernel's return from it loads every register at once; whatever ends
//! the case (the INT3 behind it, or a fault) is a signal whose handler takes the registers out and puts
//! the original context back.

use std::cell::UnsafeCell;
use std::ptr;

use crate::{CODE, DATA, DATA_PAGES, Outcome, Registers};

const SIGNALS: [i32; 6] = [
    libc::SIGUSR1,
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

struct Shared {
    running: bool,
    input: Registers,
    outcome: Outcome,
    saved: [i64; 23],
    saved_fx: [u8; 512],
}

struct Cell(UnsafeCell<Option<Box<Shared>>>);

// SAFETY: one thread only uses it: `Native` is made once (`new` panics otherwise) and is not Send.
unsafe impl Sync for Cell {}

static SHARED: Cell = Cell(UnsafeCell::new(None));

/// The host's CPU with the case's memory mapped.
pub struct Native {
    /// Not Send.
    _only: std::marker::PhantomData<*mut ()>,
}

unsafe extern "C" fn handler(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid context; `SHARED` was filled before the handlers were set, and
    // the code that the signal interrupted holds no reference into it (`run` drops its own before).
    let (context, shared) = unsafe {
        (
            &mut *context.cast::<libc::ucontext_t>(),
            (*SHARED.0.get()).as_mut(),
        )
    };
    let Some(shared) = shared else { return };
    let gregs = &mut context.uc_mcontext.gregs;
    // SAFETY: on x86-64 the kernel always gives the FXSAVE image of 512 bytes there.
    let fx = unsafe { &mut *context.uc_mcontext.fpregs.cast::<[u8; 512]>() };
    if signal == libc::SIGUSR1 {
        shared.saved.copy_from_slice(gregs);
        shared.saved_fx = *fx;
        for (i, register) in GPRS.into_iter().enumerate() {
            gregs[register as usize] = shared.input.gpr[i] as i64;
        }
        gregs[libc::REG_RIP as usize] = CODE as i64;
        gregs[libc::REG_EFL as usize] = shared.input.rflags as i64;
        // The last 96 bytes are the kernel's own (extended state).
        fx[..416].copy_from_slice(&shared.input.fx[..416]);
        shared.running = true;
        return;
    }
    if !shared.running {
        // A fault of the program itself.
        // SAFETY: both are always allowed.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
        return;
    }
    shared.running = false;
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
    gregs.copy_from_slice(&shared.saved);
    fx[..416].copy_from_slice(&shared.saved_fx[..416]);
}

/// Maps pages at an address that must be free.
fn map(at: u64, pages: u64, protection: i32) {
    // SAFETY: a new anonymous mapping which replaces nothing.
    let got = unsafe {
        libc::mmap(
            at as *mut _,
            (pages * 4096) as usize,
            protection,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(got as u64, at, "the address {at:#x} is taken");
}

fn protect(at: u64, protection: i32) {
    // SAFETY: one of the pages mapped by `map`, to which no reference exists.
    let done = unsafe { libc::mprotect(at as *mut _, 4096, protection) };
    assert_eq!(done, 0, "mprotect of {at:#x}");
}

impl Native {
    /// Takes over the process's signals and maps the case's pages. Once per process.
    pub fn new() -> Native {
        // SAFETY: single-threaded set-up, before any handler can run.
        unsafe {
            assert!((*SHARED.0.get()).is_none(), "one per process");
            *SHARED.0.get() = Some(Box::new(Shared {
                running: false,
                input: Registers::default(),
                outcome: Outcome::default(),
                saved: [0; 23],
                saved_fx: [0; 512],
            }));
            let stack = libc::stack_t {
                ss_sp: libc::malloc(1 << 16),
                ss_flags: 0,
                ss_size: 1 << 16,
            };
            assert!(!stack.ss_sp.is_null());
            assert_eq!(libc::sigaltstack(&stack, ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
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
        map(
            CODE,
            2,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(DATA, DATA_PAGES, libc::PROT_READ | libc::PROT_WRITE);
        Native {
            _only: std::marker::PhantomData,
        }
    }

    /// Runs a case; `memory` is what the data pages hold before and after.
    pub fn run(&mut self, code: &[u8], registers: &Registers, memory: &mut [u8]) -> Outcome {
        let read_only = DATA + (DATA_PAGES - 1) * 4096;
        protect(read_only, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the pages were mapped by `new` and are as long as the slices; nobody else uses them.
        unsafe {
            let page = CODE as *mut u8;
            page.write_bytes(0xcc, 8192);
            page.copy_from_nonoverlapping(code.as_ptr(), code.len());
            (DATA as *mut u8).copy_from_nonoverlapping(memory.as_ptr(), memory.len());
        }
        protect(read_only, libc::PROT_READ);
        // SAFETY: the handlers run only inside `raise`, when this reference is gone.
        unsafe {
            let shared = (*SHARED.0.get()).as_mut().expect("set by new");
            shared.input = registers.clone();
            shared.outcome = Outcome::default();
        }
        // SAFETY: the handler is set.
        unsafe { libc::raise(libc::SIGUSR1) };
        // SAFETY: as above; the pages are readable.
        unsafe {
            (DATA as *const u8).copy_to_nonoverlapping(memory.as_mut_ptr(), memory.len());
            (*SHARED.0.get())
                .as_ref()
                .expect("set by new")
                .outcome
                .clone()
        }
    }
}
