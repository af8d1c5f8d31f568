//! What a machine is made of. The log's header holds it, and a backup compares.

use serde::{Deserialize, Serialize};

use lockstep_cpu::CpuModel;

use super::boot::ImageKind;
use super::bounce::BOUNCE_ALIGN;
use super::bus::{NETWORK_BASE, disk_base};
use super::devices::interrupts::{DISK_IRQS, NETWORK_IRQ};
use super::devices::virtio_blk::{SECTOR_BYTES, SERIAL_BYTES};
use super::devices::virtio_mmio::VIRTIO_MMIO_BYTES;
use super::engine::EngineKind;
use super::memory::PAGE_BYTES;

/// Least RAM: the boot structures and a small kernel.
pub const MEMORY_MINIMUM: u64 = 4 << 20;
/// Most RAM.
pub const MEMORY_MAXIMUM: u64 = 64 << 30;
/// Longest command line, with what the machine appends, without its terminating zero (Linux on x86:
/// `COMMAND_LINE_SIZE` is 2048).
pub const COMMAND_LINE_LIMIT: usize = 2047;

/// Most disks of a machine.
pub const DISKS_MAXIMUM: usize = 4;
/// Most queues of a disk.
pub const DISK_QUEUES_MAXIMUM: u8 = 4;
/// Least memory for bounce buffers: several of the largest requests.
pub const BOUNCE_MINIMUM: u64 = 1 << 20;
/// Most memory for bounce buffers.
pub const BOUNCE_MAXIMUM: u64 = 1 << 30;

/// A disk as the guest sees it. Which file or device holds its bytes is no part of the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskSpec {
    /// By which the guest knows it again (`/dev/disk/by-id/virtio-...`): printable ASCII without
    /// spaces, 1 to [`SERIAL_BYTES`] characters.
    pub serial: String,
    /// Size in bytes, a multiple of 512, not 0.
    pub bytes: u64,
    /// The guest can only read it.
    pub read_only: bool,
    /// Request queues, 1 to [`DISK_QUEUES_MAXIMUM`].
    pub queues: u8,
    /// Whether the disk's write cache is on until the guest says otherwise. Without it each write is
    /// complete only when it would survive a loss of power.
    pub write_cache: bool,
}

impl Default for DiskSpec {
    fn default() -> Self {
        Self {
            serial: String::new(),
            bytes: 0,
            read_only: false,
            queues: 1,
            write_cache: true,
        }
    }
}

/// Everything that a machine's behaviour depends on, besides its images and its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct MachineConfig {
    /// Which engine executes the guest, and so what a position is.
    pub engine: EngineKind,
    /// RAM in bytes: a multiple of 4096, from [`MEMORY_MINIMUM`] to [`MEMORY_MAXIMUM`].
    pub memory_bytes: u64,
    /// The kernel's command line: printable ASCII. For a program that is no operating system, and so
    /// reads no ACPI tables, where the network interface is, is appended.
    pub command_line: String,
    /// Whether there is a network interface.
    pub nic: bool,
    /// Its Ethernet address: unicast and not zero.
    pub mac: [u8; 6],
    /// What the guest's real-time clock shows at the start: seconds since 1970-01-01 UTC.
    pub wall_clock_start: u64,
    /// Disks, at most [`DISKS_MAXIMUM`].
    pub disks: Vec<DiskSpec>,
    /// Memory for bounce buffers, if there are disks, in bytes: a multiple of 4096, from
    /// [`BOUNCE_MINIMUM`] to [`BOUNCE_MAXIMUM`]. It bounds what is under way at a time, and when a
    /// request has to wait, so it is the machine's.
    pub bounce_bytes: u64,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            engine: EngineKind::Soft,
            memory_bytes: 64 << 20,
            command_line: String::new(),
            nic: true,
            mac: [0x02, 0x4c, 0x53, 0, 0, 1],
            wall_clock_start: 0,
            disks: Vec::new(),
            bounce_bytes: 16 << 20,
        }
    }
}

/// A value in a [`MachineConfig`] that no machine can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// RAM size.
    #[error(
        "memory-bytes is {0}; it must be a multiple of {PAGE_BYTES} from {MEMORY_MINIMUM} to {MEMORY_MAXIMUM}"
    )]
    MemoryBytes(u64),
    /// Too long a command line.
    #[error(
        "the command line has {0} bytes with what the machine appends; at most {COMMAND_LINE_LIMIT} fit"
    )]
    CommandLineLength(usize),
    /// A character that cannot be in a command line.
    #[error("the command line holds {0:?}; only printable ASCII characters can be in it")]
    CommandLineCharacter(char),
    /// An address that an interface cannot have.
    #[error("mac {0:02x?} is zero or a group address; an interface needs a unicast address")]
    Mac([u8; 6]),
    /// Too many disks.
    #[error("there are {0} disks; a machine has at most {DISKS_MAXIMUM}")]
    Disks(usize),
    /// A name that a disk cannot have.
    #[error(
        "a disk's serial is {0:?}; it must be 1 to {SERIAL_BYTES} printable ASCII characters without spaces, \
         and no two disks may share one"
    )]
    DiskSerial(String),
    /// A size that a disk cannot have.
    #[error("disk {serial} has {bytes} bytes; it must be a multiple of {SECTOR_BYTES}, and not 0")]
    DiskBytes {
        /// Which.
        serial: String,
        /// Its size.
        bytes: u64,
    },
    /// Too many queues, or none.
    #[error("disk {serial} has {queues} queues; it must be 1 to {DISK_QUEUES_MAXIMUM}")]
    DiskQueues {
        /// Which.
        serial: String,
        /// How many.
        queues: u8,
    },
    /// Memory for bounce buffers.
    #[error(
        "bounce-bytes is {0}; it must be a multiple of {BOUNCE_ALIGN} from {BOUNCE_MINIMUM} to {BOUNCE_MAXIMUM}"
    )]
    BounceBytes(u64),
}

impl MachineConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first that is out of range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(MEMORY_MINIMUM..=MEMORY_MAXIMUM).contains(&self.memory_bytes)
            || !self.memory_bytes.is_multiple_of(PAGE_BYTES)
        {
            return Err(ConfigError::MemoryBytes(self.memory_bytes));
        }
        let unprintable = |character: &char| !(' '..='~').contains(character);
        if let Some(character) = self.command_line.chars().find(unprintable) {
            return Err(ConfigError::CommandLineCharacter(character));
        }
        let length = self.full_command_line(ImageKind::Bare).len();
        if length > COMMAND_LINE_LIMIT {
            return Err(ConfigError::CommandLineLength(length));
        }
        if self.nic && (self.mac == [0; 6] || self.mac[0] & 1 != 0) {
            return Err(ConfigError::Mac(self.mac));
        }
        if !(BOUNCE_MINIMUM..=BOUNCE_MAXIMUM).contains(&self.bounce_bytes)
            || !self.bounce_bytes.is_multiple_of(BOUNCE_ALIGN)
        {
            return Err(ConfigError::BounceBytes(self.bounce_bytes));
        }
        self.validate_disks()
    }

    fn validate_disks(&self) -> Result<(), ConfigError> {
        if self.disks.len() > DISKS_MAXIMUM {
            return Err(ConfigError::Disks(self.disks.len()));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            let serial = disk.serial.clone();
            let printable = serial.bytes().all(|byte| (b'!'..=b'~').contains(&byte));
            let taken = self.disks[..index]
                .iter()
                .any(|other| other.serial == serial);
            if !printable || !(1..=SERIAL_BYTES).contains(&serial.len()) || taken {
                return Err(ConfigError::DiskSerial(serial));
            }
            if disk.bytes == 0 || !disk.bytes.is_multiple_of(SECTOR_BYTES) {
                let bytes = disk.bytes;
                return Err(ConfigError::DiskBytes { serial, bytes });
            }
            if !(1..=DISK_QUEUES_MAXIMUM).contains(&disk.queues) {
                let queues = disk.queues;
                return Err(ConfigError::DiskQueues { serial, queues });
            }
        }
        Ok(())
    }

    /// What a guest of this kind is given: the operator's words, and what it has no other way to
    /// know (Linux, `Documentation/admin-guide/kernel-parameters.txt`). To an operating system that is
    /// the rate of the `soft` engine's time-stamp counter (`tsc_early_khz=`), which it would otherwise
    /// measure less well; to a program that reads no ACPI tables, where the network interface and the
    /// disks are (`virtio_mmio.device=`).
    pub fn full_command_line(&self, kind: ImageKind) -> String {
        let mut words = Vec::new();
        if !self.command_line.is_empty() {
            words.push(self.command_line.clone());
        }
        match kind {
            ImageKind::OperatingSystem if self.engine == EngineKind::Soft => {
                let khz = CpuModel::x86_64_v1().tsc_khz;
                words.push(format!("tsc_early_khz={khz}"));
            }
            ImageKind::OperatingSystem => {}
            ImageKind::Bare => {
                let nic = self.nic.then_some((NETWORK_BASE, NETWORK_IRQ));
                let disks = (0..self.disks.len()).map(disk_base).zip(DISK_IRQS);
                words.extend(nic.into_iter().chain(disks).map(|(base, irq)| {
                    let kib = VIRTIO_MMIO_BYTES >> 10;
                    format!("virtio_mmio.device={kib}K@{base:#x}:{irq}")
                }));
            }
        }
        words.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(serial: &str) -> DiskSpec {
        DiskSpec {
            serial: serial.into(),
            bytes: 1 << 20,
            ..DiskSpec::default()
        }
    }

    #[test]
    fn disks_that_cannot_be_are_refused_by_name() {
        let of = |disks: Vec<DiskSpec>| MachineConfig {
            disks,
            ..MachineConfig::default()
        };
        assert!(of(vec![disk("a"), disk("b")]).validate().is_ok());
        for serial in ["", "a b", "\u{e4}", "123456789012345678901"] {
            assert_eq!(
                of(vec![disk(serial)]).validate(),
                Err(ConfigError::DiskSerial(serial.into()))
            );
        }
        let twice = of(vec![disk("a"), disk("a")]).validate();
        assert_eq!(twice, Err(ConfigError::DiskSerial("a".into())));
        for bytes in [0, 511, 513, u64::MAX] {
            let odd = DiskSpec { bytes, ..disk("a") };
            assert!(matches!(
                of(vec![odd]).validate(),
                Err(ConfigError::DiskBytes { .. })
            ));
        }
        for queues in [0, 5] {
            let odd = DiskSpec {
                queues,
                ..disk("a")
            };
            assert!(matches!(
                of(vec![odd]).validate(),
                Err(ConfigError::DiskQueues { .. })
            ));
        }
        let five = ["a", "b", "c", "d", "e"].map(disk).to_vec();
        assert_eq!(of(five).validate(), Err(ConfigError::Disks(5)));
        for bounce_bytes in [0, BOUNCE_MINIMUM - 4096, BOUNCE_MINIMUM + 1, u64::MAX] {
            let config = MachineConfig {
                bounce_bytes,
                ..MachineConfig::default()
            };
            assert_eq!(
                config.validate(),
                Err(ConfigError::BounceBytes(bounce_bytes))
            );
        }
    }

    #[test]
    fn the_network_interface_is_announced_on_the_command_line_where_acpi_is_not_read() {
        let config = MachineConfig {
            command_line: "quiet".into(),
            ..MachineConfig::default()
        };
        assert_eq!(
            config.full_command_line(ImageKind::OperatingSystem),
            "quiet tsc_early_khz=1000000"
        );
        assert_eq!(
            config.full_command_line(ImageKind::Bare),
            "quiet virtio_mmio.device=4K@0xd0000000:5"
        );
        let config = MachineConfig {
            disks: vec![disk("a"), disk("b")],
            nic: false,
            ..config
        };
        assert_eq!(
            config.full_command_line(ImageKind::Bare),
            "quiet virtio_mmio.device=4K@0xd0002000:10 virtio_mmio.device=4K@0xd0003000:11"
        );
        assert!(config.validate().is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused_by_name() {
        let default = MachineConfig::default;
        for memory_bytes in [0, 4096, MEMORY_MINIMUM + 1, MEMORY_MAXIMUM + 4096, u64::MAX] {
            let config = MachineConfig {
                memory_bytes,
                ..default()
            };
            assert_eq!(
                config.validate(),
                Err(ConfigError::MemoryBytes(memory_bytes))
            );
        }
        for mac in [[0; 6], [1, 0, 0, 0, 0, 1], [0xff; 6]] {
            let config = MachineConfig { mac, ..default() };
            assert_eq!(config.validate(), Err(ConfigError::Mac(mac)));
            assert!(
                MachineConfig {
                    nic: false,
                    ..config
                }
                .validate()
                .is_ok()
            );
        }
        let config = MachineConfig {
            command_line: "a\nb".into(),
            ..default()
        };
        assert_eq!(
            config.validate(),
            Err(ConfigError::CommandLineCharacter('\n'))
        );
        let config = MachineConfig {
            command_line: "x".repeat(2047),
            ..default()
        };
        assert!(matches!(
            config.validate(),
            Err(ConfigError::CommandLineLength(_))
        ));
    }

    #[test]
    fn the_configuration_survives_serialization_and_refuses_unknown_fields() {
        let config = MachineConfig::default();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(
            serde_json::from_str::<MachineConfig>(&text).unwrap(),
            config
        );
        assert!(serde_json::from_str::<MachineConfig>(r#"{"memory": 1}"#).is_err());
    }
}
