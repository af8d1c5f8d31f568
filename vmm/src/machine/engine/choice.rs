//! Which engine a VM gets.

use serde::{Deserialize, Serialize};

use super::kvm::capabilities::KvmCapabilities;
use super::{EngineError, EngineKind};
use crate::machine::boot::{self, ImageKind};

/// The operator's wish.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineChoice {
    /// KVM where host and guest allow it, else the software CPU.
    #[default]
    Auto,
    /// The software CPU.
    Soft,
    /// KVM, or an error.
    Kvm,
}

/// The outcome of a choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSelection {
    /// The engine to use.
    pub kind: EngineKind,
    /// Why, in words for the operator.
    pub reason: String,
}

impl EngineChoice {
    /// Decides for a VM that boots `kernel`.
    ///
    /// An operating system reads the time-stamp counter and is preempted by timers between exits.
    /// KVM lets the log capture neither, so `auto` gives it the software CPU on every host.
    ///
    /// # Errors
    /// KVM was asked for and cannot be used.
    pub fn select(self, kernel: &[u8]) -> Result<EngineSelection, EngineError> {
        let selection = |kind, reason: String| Ok(EngineSelection { kind, reason });
        match self {
            Self::Soft => selection(EngineKind::Soft, "asked for".into()),
            Self::Kvm => {
                let found = KvmCapabilities::probe()?;
                selection(EngineKind::Kvm, format!("asked for; KVM: {found}"))
            }
            Self::Auto if boot::image_kind(kernel) == Some(ImageKind::OperatingSystem) => {
                selection(
                    EngineKind::Soft,
                    "the kernel is an operating system's, which reads clocks that KVM cannot log"
                        .into(),
                )
            }
            Self::Auto => match KvmCapabilities::probe() {
                Ok(found) => selection(EngineKind::Kvm, format!("KVM can be used: {found}")),
                Err(error) => selection(EngineKind::Soft, error.to_string()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_says_why_and_gives_operating_systems_the_software_cpu() {
        let mut linux = vec![0; 0x400];
        linux[0x202..0x206].copy_from_slice(b"HdrS");
        let selection = EngineChoice::Auto.select(&linux).unwrap();
        assert_eq!(selection.kind, EngineKind::Soft);
        assert!(
            selection.reason.contains("operating system"),
            "{}",
            selection.reason
        );
        assert!(!EngineChoice::Auto.select(b"").unwrap().reason.is_empty());
    }
}
