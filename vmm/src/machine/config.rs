//! What a machine is made of. The log's header holds it, and a backup compares.

use serde::{Deserialize, Serialize};

use lockstep_cpu::CpuModel;

use super::boot::ImageKind;
use super::bus::NETWORK_BASE;
use super::devices::interrupts::NETWORK_IRQ;
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
        Ok(())
    }

    /// What a guest of this kind is given: the operator's words, and what it has no other way to
    /// know (Linux, `Documentation/admin-guide/kernel-parameters.txt`). To an operating system that is
    /// the rate of the `soft` engine's time-stamp counter (`tsc_early_khz=`), which it would otherwise
    /// measure less well; to a program that reads no ACPI tables, where the network interface is
    /// (`virtio_mmio.device=`).
    pub fn full_command_line(&self, kind: ImageKind) -> String {
        let added = match kind {
            ImageKind::OperatingSystem if self.engine == EngineKind::Soft => {
                format!("tsc_early_khz={}", CpuModel::x86_64_v1().tsc_khz)
            }
            ImageKind::Bare if self.nic => format!(
                "virtio_mmio.device={}K@{NETWORK_BASE:#x}:{NETWORK_IRQ}",
                VIRTIO_MMIO_BYTES >> 10
            ),
            _ => return self.command_line.clone(),
        };
        if self.command_line.is_empty() {
            added
        } else {
            format!("{} {added}", self.command_line)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
