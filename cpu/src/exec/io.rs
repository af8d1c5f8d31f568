//! IN and OUT, and who may (SDM vol. 1 ch. 19).

use crate::core::{Core, Raised};
use crate::exec::int::Int;
use crate::flags::IOPL;
use crate::op::{At, Flow, ok};

impl Core {
    /// #GP(0) unless IOPL or the TSS's bitmap allows `size` ports from `port`.
    pub(crate) fn port_allowed(&mut self, port: u16, size: u16) -> Result<(), Raised> {
        if u64::from(self.cpl) <= (self.system_flags & IOPL) >> 12 {
            return Ok(());
        }
        let limit = u64::from(self.tr.limit);
        if limit < 0x67 {
            return Err(self.gp());
        }
        let map: u16 = self.load_system(self.tr.base.wrapping_add(0x66))?;
        let byte = u64::from(map) + u64::from(port / 8);
        if byte + 1 > limit {
            return Err(self.gp());
        }
        let bits: u16 = self.load_system(self.tr.base.wrapping_add(byte))?;
        let mask = ((1u16 << size) - 1) << (port % 8);
        if bits & mask != 0 {
            Err(self.gp())
        } else {
            Ok(())
        }
    }

    pub(crate) fn port_in<S: Int>(&mut self, port: u16) -> S {
        let at = self.position();
        let mut data = [0; 8];
        self.bus().port_read(at, port, &mut data[..S::BYTES]);
        S::of(u64::from_le_bytes(data))
    }

    pub(crate) fn port_out<S: Int>(&mut self, port: u16, value: S) {
        let at = self.position();
        self.bus()
            .port_write(at, port, &value.u().to_le_bytes()[..S::BYTES]);
    }
}

/// IN; the port is in DX when `op.aux` is 1, else in `imm`.
pub(crate) fn port_in<S: Int>(c: &mut Core, op: At) -> Flow {
    let port = if op.aux != 0 {
        c.regs[2] as u16
    } else {
        op.imm as u16
    };
    ok!(c, op, c.port_allowed(port, S::BYTES as u16));
    let v = c.port_in::<S>(port);
    c.set_reg(0, v);
    op.sync(c)
}

/// OUT, as [`port_in`].
pub(crate) fn port_out<S: Int>(c: &mut Core, op: At) -> Flow {
    let port = if op.aux != 0 {
        c.regs[2] as u16
    } else {
        op.imm as u16
    };
    ok!(c, op, c.port_allowed(port, S::BYTES as u16));
    c.port_out(port, c.reg::<S>(0));
    op.sync(c)
}
