//! x87, MMX and SSE registers.

/// The registers that FXSAVE saves (SDM vol. 1, 10.5.1).
#[derive(Clone)]
pub(crate) struct Fpu {
    pub control: u16,
    pub status: u16,
    /// Abridged tags by physical register: bit set = not empty.
    pub tags: u8,
    pub opcode: u16,
    pub ip: u64,
    pub dp: u64,
    pub mxcsr: u32,
    /// By physical register, 80 bits each.
    pub st: [u128; 8],
    pub xmm: [u128; 16],
}

/// Bits of MXCSR that this CPU accepts: all, DAZ included, but not AMD's misaligned mode (bit 17).
pub(crate) const MXCSR_MASK: u32 = 0xffff;

impl Fpu {
    /// As FNINIT and a power-up leave it.
    pub(crate) fn reset() -> Fpu {
        Fpu {
            control: 0x37f,
            status: 0,
            tags: 0,
            opcode: 0,
            ip: 0,
            dp: 0,
            mxcsr: 0x1f80,
            st: [0; 8],
            xmm: [0; 16],
        }
    }

    /// TOP of the register stack.
    pub(crate) fn top(&self) -> usize {
        usize::from(self.status >> 11 & 7)
    }

    /// The 512-byte image in its 64-bit form.
    pub(crate) fn image(&self) -> [u8; 512] {
        let mut image = [0; 512];
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        image[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        image[8..16].copy_from_slice(&self.ip.to_le_bytes());
        image[16..24].copy_from_slice(&self.dp.to_le_bytes());
        image[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for i in 0..8 {
            let at = 32 + 16 * i;
            image[at..at + 10].copy_from_slice(&self.st[(self.top() + i) & 7].to_le_bytes()[..10]);
        }
        for (i, xmm) in self.xmm.iter().enumerate() {
            image[160 + 16 * i..][..16].copy_from_slice(&xmm.to_le_bytes());
        }
        image
    }

    /// Takes over an image; `None` when its MXCSR has bits that do not exist.
    pub(crate) fn from_image(image: &[u8; 512]) -> Option<Fpu> {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let quad = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| image[at + i]));
        let mut fpu = Fpu {
            control: word(0) & 0x1f7f | 0x40,
            status: word(2),
            tags: image[4],
            opcode: word(6) & 0x7ff,
            ip: quad(8),
            dp: quad(16),
            mxcsr: quad(24) as u32,
            st: [0; 8],
            xmm: [0; 16],
        };
        if fpu.mxcsr & !MXCSR_MASK != 0 {
            return None;
        }
        fpu.summarize();
        let top = fpu.top();
        for i in 0..8 {
            let at = 32 + 16 * i;
            fpu.st[(top + i) & 7] = u128::from(quad(at)) | u128::from(word(at + 8)) << 64;
        }
        for (i, xmm) in fpu.xmm.iter_mut().enumerate() {
            let at = 160 + 16 * i;
            *xmm = u128::from(quad(at)) | u128::from(quad(at + 8)) << 64;
        }
        Some(fpu)
    }
}

impl Fpu {
    /// An unmasked x87 exception waits for the next waiting instruction.
    pub(crate) fn exception_pending(&self) -> bool {
        self.status & 0x80 != 0
    }
}
