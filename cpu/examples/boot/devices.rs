//! Two 8259 interrupt controllers, an 8254 timer, a 16550 that only sends, a clock that stands still.

use lockstep_cpu::{Bus, MsrFault};

#[derive(Default)]
struct Pic {
    base: u8,
    mask: u8,
    request: u8,
    service: u8,
    line: u8,
    step: u8,
    read_service: bool,
}

impl Pic {
    /// The best request that beats what is in service.
    fn best(&self) -> Option<u8> {
        let pending = self.request & !self.mask;
        let first = pending.trailing_zeros().min(8);
        (first < self.service.trailing_zeros().min(8)).then_some(first as u8)
    }

    fn set(&mut self, irq: u8, high: bool) {
        let bit = 1 << irq;
        if high && self.line & bit == 0 {
            self.request |= bit;
        }
        self.line = if high {
            self.line | bit
        } else {
            self.line & !bit
        };
    }

    fn acknowledge(&mut self) -> Option<u8> {
        let irq = self.best()?;
        self.request &= !(1 << irq);
        self.service |= 1 << irq;
        Some(irq)
    }

    fn write(&mut self, data_port: bool, v: u8) {
        if data_port {
            match self.step {
                1 => (self.base, self.step) = (v & 0xf8, 2),
                2 => self.step = 3,
                3 => self.step = 0,
                _ => self.mask = v,
            }
        } else if v & 0x10 != 0 {
            *self = Pic {
                step: 1,
                line: self.line,
                ..Pic::default()
            };
        } else if v & 8 != 0 {
            if v & 2 != 0 {
                self.read_service = v & 1 != 0;
            }
        } else if v & 0x60 == 0x60 {
            self.service &= !(1 << (v & 7));
        } else if v & 0x20 != 0 && self.service != 0 {
            self.service &= self.service - 1;
        }
    }

    fn read(&self, data_port: bool) -> u8 {
        if data_port {
            self.mask
        } else if self.read_service {
            self.service
        } else {
            self.request
        }
    }
}

#[derive(Default, Clone, Copy)]
struct Counter {
    mode: u8,
    access: u8,
    reload: u16,
    started: u64,
    low: Option<u8>,
    latch: Option<u16>,
    high_next: bool,
    armed: bool,
}

/// Ticks of the 8254 in nanoseconds.
fn pit(ns: u64) -> u64 {
    (u128::from(ns) * 1_193_182 / 1_000_000_000) as u64
}

fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000).div_ceil(1_193_182) as u64
}

impl Counter {
    fn period(&self) -> u64 {
        if self.reload == 0 {
            0x1_0000
        } else {
            self.reload.into()
        }
    }

    fn periodic(&self) -> bool {
        matches!(self.mode & 3, 2 | 3) && self.mode != 4
    }

    fn value(&self, now: u64) -> u16 {
        let passed = pit(now) - pit(self.started).min(pit(now));
        let left = if self.periodic() {
            self.period() - passed % self.period()
        } else {
            self.period().wrapping_sub(passed)
        };
        left as u16
    }

    fn finished(&self, now: u64) -> bool {
        pit(now) - pit(self.started).min(pit(now)) >= self.period()
    }

    fn load(&mut self, v: u8, now: u64) {
        let reload = match self.access {
            1 => v.into(),
            2 => u16::from(v) << 8,
            _ => match self.low.take() {
                None => {
                    self.low = Some(v);
                    return;
                }
                Some(low) => u16::from_le_bytes([low, v]),
            },
        };
        self.reload = reload;
        self.started = now;
        self.armed = true;
    }

    fn read(&mut self, now: u64) -> u8 {
        let value = self.latch.unwrap_or_else(|| self.value(now));
        if self.access != 3 {
            self.latch = None;
            return if self.access == 2 {
                (value >> 8) as u8
            } else {
                value as u8
            };
        }
        self.high_next = !self.high_next;
        if self.high_next {
            value as u8
        } else {
            self.latch = None;
            (value >> 8) as u8
        }
    }
}

/// The board. Its time is the retired count and what was skipped while halted, in nanoseconds.
pub struct Board {
    master: Pic,
    slave: Pic,
    counters: [Counter; 3],
    port_61: u8,
    skipped: u64,
    stop: bool,
    interrupt_enable: u8,
    line_control: u8,
    scratch: [u8; 8],
    sent: bool,
    cmos: u8,
    /// Everything sent.
    pub text: Vec<u8>,
    until: Vec<u8>,
    /// Position of the OUT that completed the text awaited.
    pub said_at: Option<u64>,
}

impl Board {
    /// A board that awaits a text.
    pub fn new(until: &str) -> Board {
        Board {
            master: Pic::default(),
            slave: Pic::default(),
            counters: [Counter::default(); 3],
            port_61: 0,
            skipped: 0,
            stop: false,
            interrupt_enable: 0,
            line_control: 0,
            scratch: [0; 8],
            sent: false,
            cmos: 0,
            text: Vec::new(),
            until: until.into(),
            said_at: None,
        }
    }

    pub fn time(&self, position: u64) -> u64 {
        position + self.skipped
    }

    pub fn resume(&mut self) {
        self.stop = false;
    }

    /// Instructions to the next timer interrupt.
    pub fn next_event(&self, position: u64) -> Option<u64> {
        let c = &self.counters[0];
        c.armed
            .then(|| (c.started + ns(c.period())).saturating_sub(self.time(position)))
    }

    /// Raises the timer's line if it is due.
    pub fn tick(&mut self, position: u64) {
        let now = self.time(position);
        let c = &mut self.counters[0];
        if c.armed && now >= c.started + ns(c.period()) {
            if c.periodic() {
                c.started += ns(c.period());
            } else {
                c.armed = false;
            }
            self.master.set(0, false);
            self.master.set(0, true);
        }
    }

    /// Moves time to the next event while the guest sleeps. False: there is none.
    pub fn skip(&mut self, position: u64) -> bool {
        match self.next_event(position) {
            Some(by) => {
                self.skipped += by.max(1);
                true
            }
            None => false,
        }
    }

    fn serial_line(&mut self) {
        let high = self.interrupt_enable & 2 != 0 && self.sent;
        self.master.set(4, high);
    }

    fn serial_write(&mut self, register: u16, v: u8) {
        let latch = self.line_control & 0x80 != 0;
        match register {
            0 if !latch => {
                self.text.push(v);
                self.sent = true;
                self.master.set(4, false);
            }
            1 if !latch => {
                self.interrupt_enable = v & 15;
                if v & 2 != 0 {
                    self.sent = true;
                }
            }
            3 => self.line_control = v,
            _ => self.scratch[usize::from(register)] = v,
        }
        self.serial_line();
    }

    fn serial_read(&mut self, register: u16) -> u8 {
        let latch = self.line_control & 0x80 != 0;
        match register {
            0 if !latch => 0,
            1 if !latch => self.interrupt_enable,
            2 => {
                let pending = self.interrupt_enable & 2 != 0 && self.sent;
                self.sent = false;
                self.serial_line();
                if pending { 0xc2 } else { 0xc1 }
            }
            3 => self.line_control,
            5 => 0x60,
            6 => 0xb0,
            r => self.scratch[usize::from(r)],
        }
    }

    fn clock_read(&self) -> u8 {
        // 2026-01-01 00:00:00, binary, 24 hours.
        match self.cmos & 0x7f {
            0x06 => 5,
            0x07 | 0x08 => 1,
            0x09 => 26,
            0x0a => 0x26,
            0x0b => 0x06,
            0x0d => 0x80,
            0x32 => 20,
            _ => 0,
        }
    }
}

impl Bus for Board {
    fn port_read(&mut self, at: u64, port: u16, data: &mut [u8]) {
        let now = self.time(at);
        data.fill(0xff);
        data[0] = match port {
            0x20 | 0x21 => self.master.read(port & 1 != 0),
            0xa0 | 0xa1 => self.slave.read(port & 1 != 0),
            0x40..=0x42 => self.counters[usize::from(port - 0x40)].read(now),
            0x61 => {
                self.port_61 & 0xf
                    | u8::from(self.counters[2].finished(now)) << 5
                    | (pit(now) as u8 & 1) << 4
            }
            0x71 => self.clock_read(),
            0x3f8..=0x3ff => self.serial_read(port - 0x3f8),
            _ => 0xff,
        };
    }

    fn port_write(&mut self, at: u64, port: u16, data: &[u8]) {
        let now = self.time(at);
        let v = data[0];
        match port {
            0x20 | 0x21 => self.master.write(port & 1 != 0, v),
            0xa0 | 0xa1 => self.slave.write(port & 1 != 0, v),
            0x40..=0x42 => {
                self.counters[usize::from(port - 0x40)].load(v, now);
                // The next timer interrupt moved: the budget must follow.
                self.stop = port == 0x40;
            }
            0x43 if v >> 6 != 3 => {
                let c = &mut self.counters[usize::from(v >> 6)];
                if v & 0x30 == 0 {
                    c.latch = Some(c.value(now));
                } else {
                    *c = Counter {
                        mode: v >> 1 & 7,
                        access: v >> 4 & 3,
                        started: now,
                        ..Counter::default()
                    };
                }
            }
            0x61 => {
                if v & 1 != 0 && self.port_61 & 1 == 0 {
                    self.counters[2].started = now;
                }
                self.port_61 = v;
            }
            0x70 => self.cmos = v,
            0x3f8..=0x3ff => {
                self.serial_write(port - 0x3f8, v);
                if self.said_at.is_none() && self.text.ends_with(&self.until) {
                    self.said_at = Some(at);
                    self.stop = true;
                }
            }
            _ => {}
        }
    }

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
        self.slave.best().is_some() || self.master.best().is_some()
    }

    fn acknowledge_interrupt(&mut self) -> u8 {
        if self.slave.best().is_some() {
            self.master.service |= 4;
            let irq = self.slave.acknowledge().expect("just seen");
            return self.slave.base + irq;
        }
        let irq = self.master.acknowledge().unwrap_or(7);
        self.master.base + irq
    }

    fn stop_requested(&self) -> bool {
        self.stop
    }
}
