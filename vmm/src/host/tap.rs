//! A tap interface: the kernel's end is an ordinary network interface of the host, ours a
//! descriptor that reads and writes Ethernet frames (Linux, `Documentation/networking/tuntap.rst`).
//!
//! No virtio-net header is asked for, so the kernel completes checksums and cuts large segments in
//! software before a frame gets here; `tests::frames_reach_the_tap_with_complete_checksums` (in
//! [`super::namespaces`]) proves it with the offloads of a veth on the way.

use super::port::{MAX_FRAME, MIN_FRAME, NetworkPort, PortCounters};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The device that makes taps.
const DEVICE: &str = "/dev/net/tun";

/// Why a tap could not be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is not one that an interface can have.
    #[error(
        "`{name}` is no interface name: expected 1 to 15 characters without `/`, `%`, `:` and blanks"
    )]
    BadName {
        /// The name given.
        name: String,
    },
    /// The tun driver or its device node is not there.
    #[error(
        "{DEVICE} is missing: load the driver with `modprobe tun`; in a container, pass the device in \
         (for example `--device {DEVICE}`)"
    )]
    NoDevice,
    /// The device node is there and this user may not open it.
    #[error("{DEVICE} may not be opened by this user: `chmod 0666 {DEVICE}`, or run as root")]
    DeviceRefused,
    /// Neither the interface's owner nor entitled to make interfaces.
    #[error(
        "not permitted to make or attach to tap `{name}`: needs CAP_NET_ADMIN, or an interface that \
         belongs to this user (`ip tuntap add {name} mode tap user $USER`)"
    )]
    NotPermitted {
        /// The interface.
        name: String,
    },
    /// Another process has it.
    #[error("tap `{name}` is in use by another process: end that one, or name another interface")]
    Busy {
        /// The interface.
        name: String,
    },
    /// An interface of this name exists and is something else.
    #[error(
        "interface `{name}` exists and is not a single-queue tap: name another, or remove it with \
         `ip link del {name}`"
    )]
    NotATap {
        /// The interface.
        name: String,
    },
    /// The interface is down and may not be set up by this user.
    #[error("tap `{name}` is down and could not be set up ({source}): `ip link set {name} up`")]
    Down {
        /// The interface.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// A step failed in a way of which nothing better can be said.
    #[error("tap `{name}`: {step}: {source}")]
    Failed {
        /// The interface.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// An open tap interface, non-blocking, without packet information and without virtio-net headers.
#[derive(Debug)]
pub struct Tap {
    device: OwnedFd,
    name: String,
    counters: PortCounters,
}

impl Tap {
    /// Attaches to the tap `name` of this thread's network namespace, or makes it, and sets it up.
    ///
    /// An interface made here vanishes when the last descriptor of it is closed, unless
    /// [`Tap::persist`] is called.
    ///
    /// # Errors
    /// See [`TapError`]; each says what to do.
    pub fn open(name: &str) -> Result<Self, TapError> {
        let failed = |step, errno: Errno| TapError::Failed {
            name: name.to_owned(),
            step,
            source: errno.into(),
        };
        let mut request = InterfaceRequest::new(name)?;
        let device = rustix::fs::open(
            DEVICE,
            OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| match errno {
            Errno::NOENT | Errno::NODEV | Errno::NXIO => TapError::NoDevice,
            Errno::ACCESS | Errno::PERM => TapError::DeviceRefused,
            other => failed("opening /dev/net/tun", other),
        })?;
        request
            .set_flags(&device, libc::TUNSETIFF, libc::IFF_TAP | libc::IFF_NO_PI)
            .map_err(|errno| match errno {
                Errno::PERM | Errno::ACCESS => TapError::NotPermitted {
                    name: name.to_owned(),
                },
                Errno::BUSY => TapError::Busy {
                    name: name.to_owned(),
                },
                Errno::INVAL => TapError::NotATap {
                    name: name.to_owned(),
                },
                other => failed("TUNSETIFF", other),
            })?;
        set_up(&mut request).map_err(|errno| TapError::Down {
            name: name.to_owned(),
            source: errno.into(),
        })?;
        Ok(Self {
            device,
            name: name.to_owned(),
            counters: PortCounters::default(),
        })
    }

    /// Makes the interface stay when its last descriptor is closed, until it is removed or its
    /// network namespace ends.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn persist(&self) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes its argument by value (no pointer), and the descriptor is a
        // tun device that this object owns.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), libc::TUNSETPERSIST, 1) };
        if result < 0 {
            return Err(TapError::Failed {
                name: self.name.clone(),
                step: "TUNSETPERSIST",
                source: io::Error::last_os_error(),
            });
        }
        Ok(())
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl NetworkPort for Tap {
    fn receive_into(&mut self, buf: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            // The driver cuts a frame that is too long without a word; the byte behind the caller's
            // buffer shows it.
            let mut behind = [0u8; 1];
            let read = rustix::io::readv(
                &self.device,
                &mut [IoSliceMut::new(buf), IoSliceMut::new(&mut behind)],
            );
            match read {
                Ok(length) if length > buf.len() => self.counters.receive_oversize += 1,
                Ok(length) if length < MIN_FRAME => {}
                Ok(length) => {
                    self.counters.received += 1;
                    return Ok(Some(length));
                }
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(gone(&self.name, errno)),
            }
        }
    }

    fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        if !(MIN_FRAME..=MAX_FRAME).contains(&frame.len()) {
            self.counters.send_malformed += 1;
            return Ok(());
        }
        loop {
            match rustix::io::write(&self.device, frame) {
                Ok(_) => {
                    self.counters.sent += 1;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                // EIO: the interface is down; the others: its queue is full.
                Err(Errno::AGAIN | Errno::NOBUFS | Errno::NOMEM | Errno::IO) => {
                    self.counters.send_dropped += 1;
                    return Ok(());
                }
                Err(errno) => return Err(gone(&self.name, errno)),
            }
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }

    fn counters(&self) -> PortCounters {
        self.counters
    }
}

/// What to say when a tap that was open no longer works.
fn gone(name: &str, errno: Errno) -> io::Error {
    let kind = io::Error::from(errno).kind();
    io::Error::new(kind, format!("tap `{name}` is gone: {errno}"))
}

/// Sets the interface of `request` up, if it is not.
fn set_up(request: &mut InterfaceRequest) -> Result<(), Errno> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    let flags = request.get_flags(&socket, libc::SIOCGIFFLAGS)?;
    if flags & libc::IFF_UP == 0 {
        request.set_flags(&socket, libc::SIOCSIFFLAGS, flags | libc::IFF_UP)?;
    }
    Ok(())
}

/// A `struct ifreq` with a name in it (netdevice(7)).
struct InterfaceRequest(libc::ifreq);

impl InterfaceRequest {
    fn new(name: &str) -> Result<Self, TapError> {
        let bytes = name.as_bytes();
        let legal = (1..libc::IFNAMSIZ).contains(&bytes.len())
            && bytes
                .iter()
                .all(|byte| byte.is_ascii_graphic() && !b"/%:".contains(byte))
            && !matches!(name, "." | "..");
        if !legal {
            return Err(TapError::BadName {
                name: name.to_owned(),
            });
        }
        // SAFETY: `ifreq` is made of integers, arrays of them and one pointer; all bits zero is a
        // value of each.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
            *to = *from as libc::c_char;
        }
        Ok(Self(request))
    }

    /// An ioctl that reads the flags of this request.
    fn set_flags(
        &mut self,
        fd: &OwnedFd,
        ioctl: libc::Ioctl,
        flags: libc::c_int,
    ) -> Result<(), Errno> {
        // Interface flags are 16 bits in this structure.
        self.0.ifr_ifru.ifru_flags = flags as libc::c_short;
        self.call(fd, ioctl)
    }

    /// An ioctl that fills in the flags of this request.
    fn get_flags(&mut self, fd: &OwnedFd, ioctl: libc::Ioctl) -> Result<libc::c_int, Errno> {
        self.call(fd, ioctl)?;
        // SAFETY: the union was zeroed or written by the kernel; its 16 flag bits are an integer,
        // for which all patterns are values.
        Ok(libc::c_int::from(unsafe { self.0.ifr_ifru.ifru_flags }))
    }

    fn call(&mut self, fd: &OwnedFd, ioctl: libc::Ioctl) -> Result<(), Errno> {
        // SAFETY: TUNSETIFF, SIOCGIFFLAGS and SIOCSIFFLAGS (all that is passed here) take a pointer
        // to one `ifreq`, which `self.0` is, exclusively borrowed and alive during the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), ioctl, &raw mut self.0) };
        if result < 0 {
            return Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Tap, TapError};

    #[test]
    fn a_name_that_no_interface_can_have_is_refused_before_the_kernel_sees_it() {
        for name in ["", "a/b", "sixteen-letters-", "tap%d", "a b", "..", "tap:0"] {
            match Tap::open(name) {
                Err(TapError::BadName { name: said }) => assert_eq!(said, name),
                other => panic!("{name:?}: {other:?}"),
            }
        }
    }
}
