//! Random numbers with a taste for edges.

/// splitmix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    /// One of `choices`, which are not empty.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// A number that is often at an edge.
    pub fn value(&mut self) -> u64 {
        const EDGES: [u64; 15] = [
            0,
            1,
            2,
            0x7f,
            0x80,
            0xff,
            0x7fff,
            0x8000,
            0xffff,
            0x7fff_ffff,
            0x8000_0000,
            0xffff_ffff,
            i64::MAX as u64,
            i64::MIN as u64,
            u64::MAX,
        ];
        let v = match self.below(8) {
            0 => self.pick(&EDGES),
            1 => self.below(256),
            2 => 1 << self.below(64),
            3 => self.next() as i32 as i64 as u64,
            _ => self.next(),
        };
        if self.chance(4) {
            v.wrapping_sub(self.below(4))
        } else {
            v
        }
    }

    /// The fraction of a float: random, with long runs of zeros, or of ones.
    fn fraction(&mut self) -> u64 {
        match self.below(4) {
            0 => self.value() << self.below(40),
            1 => !(self.value() << self.below(40)),
            2 => 0,
            _ => self.next(),
        }
    }

    /// One double, or two singles: zeros, denormals, infinities, NaNs of both kinds and numbers, most
    /// of them near enough to each other to interact.
    pub fn float(&mut self, wide: bool) -> u64 {
        if wide {
            return self.double();
        }
        self.single() | self.single() << 32
    }

    fn double(&mut self) -> u64 {
        let exponent = match self.below(9) {
            0 => 0,
            1 => 0x7ff,
            2 => self.below(0x800),
            3 => self.below(60),
            4 => 0x7fe - self.below(60),
            _ => 0x3ff - 40 + self.below(80),
        };
        (self.next() & 1) << 63 | exponent << 52 | self.fraction() & ((1 << 52) - 1)
    }

    fn single(&mut self) -> u64 {
        let exponent = match self.below(9) {
            0 => 0,
            1 => 0xff,
            2 => self.below(0x100),
            3 => self.below(30),
            4 => 0xfe - self.below(30),
            _ => 0x7f - 30 + self.below(60),
        };
        (self.next() & 1) << 31 | exponent << 23 | self.fraction() >> 20 & 0x7f_ffff
    }

    /// An 80-bit float, sometimes in an encoding that today's processors refuse.
    pub fn extended(&mut self) -> [u8; 10] {
        let mut bytes = [0; 10];
        let exponent: u16 = match self.below(12) {
            0 => 0,
            1 => 0x7fff,
            2 => self.next() as u16 & 0x7fff,
            3 => self.below(80) as u16,
            4 => 0x7ffe - self.below(80) as u16,
            _ => (0x3fff - 70 + self.below(140)) as u16,
        };
        let mut mantissa = self.fraction();
        if exponent != 0 && !self.chance(12) {
            mantissa |= 1 << 63;
        }
        if exponent == 0 && !self.chance(12) {
            mantissa &= !(1 << 63);
        }
        bytes[..8].copy_from_slice(&mantissa.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent | (self.next() as u16 & 0x8000)).to_le_bytes());
        bytes
    }
}
