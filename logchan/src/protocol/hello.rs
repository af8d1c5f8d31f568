//! Connection set-up: each side says who it is, and compares.
//!
//! A message is 24 bytes of preamble and a JSON body of at most [`MAX_BODY_BYTES`]. Everything that
//! bounds the body is in the preamble and is checked as it arrives, so a stranger costs a few bytes.

use std::collections::BTreeMap;
use std::mem::size_of;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Role;
use crate::entry::{MAX_ENTRY_BYTES, Sequence};

/// How every connection begins.
pub const MAGIC: [u8; 8] = *b"LOCKSTEP";

/// Version of this protocol and of the entry layout. Peers of different versions do not talk.
pub const PROTOCOL_VERSION: u32 = 2;

/// Longest body, bytes.
pub const MAX_BODY_BYTES: usize = 64 << 10;

/// Size of what stands before the body.
pub const PREAMBLE_BYTES: usize = 24;

/// Longest name of a VM, bytes.
pub const MAX_VM_NAME_BYTES: usize = 128;

/// Smallest log ring, bytes: two of the longest entries, so that credit never runs out for good.
pub const MIN_RING_BYTES: u64 = 2 * MAX_ENTRY_BYTES as u64;

/// The longest text of a value in an error message, in characters.
const MAX_SHOWN: usize = 200;

/// What stands before the body, little-endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Preamble {
    magic: [u8; 8],
    version: U32,
    /// [`KIND_HELLO`], [`KIND_REFUSAL`], [`KIND_LIFELINE`] or [`KIND_RESYNC`].
    kind: U16,
    reserved: U16,
    /// Bytes of the body.
    length: U32,
    /// CRC32C of the body.
    crc: U32,
}

const _: () = assert!(size_of::<Preamble>() == PREAMBLE_BYTES);

const KIND_HELLO: u16 = 1;
const KIND_REFUSAL: u16 = 2;
const KIND_LIFELINE: u16 = 3;
const KIND_RESYNC: u16 = 4;

/// Who somebody is and what it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Hello {
    /// Which end of the channel.
    pub role: Role,
    /// Name of the VM, at most [`MAX_VM_NAME_BYTES`].
    pub vm: String,
    /// Generation of the pairing. A backup that leaves it out takes the primary's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Capacity of this side's log ring, bytes. The two sides' may differ.
    pub ring_bytes: u64,
    /// The last entry that is part of the state from which the backup begins; the log that is sent
    /// starts behind it.
    pub starts_behind: Sequence,
    /// Everything else in which both sides have to agree, by name: engine, what a position means,
    /// CPU model, devices, memory size, image digests.
    pub configuration: BTreeMap<String, Value>,
}

/// What both sides agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agreed {
    /// Generation of the pairing.
    pub generation: u64,
    /// Capacity of the peer's ring, bytes.
    pub peer_ring_bytes: u64,
}

/// Why the peer does not want to talk, in its own words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "kebab-case",
    tag = "reason"
)]
pub enum Refusal {
    /// There is a backup already.
    #[error("the primary has a backup already (generation {generation}): stop that one first")]
    Busy {
        /// Generation of the existing pairing.
        generation: u64,
    },
    /// Not the same VM, or not the same configuration of it.
    #[error(
        "`{field}` differs: primary has {primary}, backup has {backup}: start both from the same VM configuration"
    )]
    Differs {
        /// Name of the first field that differs.
        field: String,
        /// The primary's value.
        primary: String,
        /// The backup's value.
        backup: String,
    },
    /// The hello is not one that can be accepted.
    #[error("it does not accept our hello: {error}")]
    Unacceptable {
        /// What it said about it.
        error: String,
    },
}

/// What a backup says on its second connection, and the primary repeats if it holds it. Nothing else
/// ever travels there: it ends with the primary's process, as soon as the kernel closes its files.
/// The connection that the log travels on ends later, for its `io_uring` holds it until the kernel has
/// taken that down too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Lifeline {
    /// Name of the VM.
    pub vm: String,
    /// Generation of the pairing.
    pub generation: u64,
}

/// What a backup says on the connection on which its disks are made equal to the primary's, before the machine
/// starts, and the primary repeats if it is ready. What follows is not this protocol's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Resync {
    /// Name of the VM.
    pub vm: String,
    /// Generation of the pairing.
    pub generation: u64,
}

/// A message of connection set-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// An introduction.
    Hello(Hello),
    /// The end of the conversation.
    Refusal(Refusal),
    /// A paired backup's second connection.
    Lifeline(Lifeline),
    /// The connection for its disks.
    Resync(Resync),
}

/// Why connection set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    /// The peer is no Lockstep.
    #[error("hello field `magic`: found {found:02x?}, expected {expected:02x?} (\"LOCKSTEP\"): a stranger connected", expected = MAGIC)]
    Magic {
        /// What it sent, at most 8 bytes.
        found: Vec<u8>,
    },
    /// The peer is another Lockstep.
    #[error("hello field `version`: found {found}, expected {expected}: install the same version on both hosts", expected = PROTOCOL_VERSION)]
    Version {
        /// The peer's.
        found: u32,
    },
    /// No such message.
    #[error(
        "hello field `kind`: found {found}, expected {KIND_HELLO} (hello), {KIND_REFUSAL} (refusal), \
         {KIND_LIFELINE} (lifeline) or {KIND_RESYNC} (resync)"
    )]
    Kind {
        /// In the preamble.
        found: u16,
    },
    /// Bytes that are to be zero.
    #[error("hello field `reserved`: found {found:#06x}, expected 0")]
    Reserved {
        /// In the preamble.
        found: u16,
    },
    /// A body that nobody sends.
    #[error("hello field `length`: found {found}, expected at most {expected}", expected = MAX_BODY_BYTES)]
    Length {
        /// In the preamble.
        found: u64,
    },
    /// Damaged.
    #[error("hello field `crc`: found {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// In the preamble.
        found: u32,
        /// Computed over the body.
        expected: u32,
    },
    /// The body is not what this version sends.
    #[error("hello body: {0}")]
    Body(#[source] serde_json::Error),
    /// The VM's name is too long.
    #[error("hello field `vm`: a name of {found} bytes, expected at most {expected}", expected = MAX_VM_NAME_BYTES)]
    VmName {
        /// Its length, bytes.
        found: usize,
    },
    /// The peer is of our own role.
    #[error("hello field `role`: found {found}, expected {expected}")]
    Role {
        /// The peer's.
        found: Role,
        /// What we need.
        expected: Role,
    },
    /// A ring that the longest entry does not fit twice.
    #[error("hello field `ring-bytes`: the {role} has {found}, expected at least {expected}", expected = MIN_RING_BYTES)]
    Ring {
        /// Whose.
        role: Role,
        /// Its capacity.
        found: u64,
    },
    /// The peer is a Lockstep, but not the one we need.
    #[error("{0}")]
    Unwanted(Refusal),
    /// A message in the wrong place.
    #[error("hello: a {found} came where a {expected} was expected")]
    OutOfPlace {
        /// What came.
        found: &'static str,
        /// What was to come.
        expected: &'static str,
    },
    /// The peer refused.
    #[error("the peer refused: {0}")]
    Refused(Refusal),
}

impl Message {
    /// As it travels.
    ///
    /// # Errors
    /// The body is longer than [`MAX_BODY_BYTES`], or the VM's name too long.
    pub fn encode(&self) -> Result<Vec<u8>, HelloError> {
        let (kind, body) = match self {
            Self::Hello(hello) => {
                check_name(&hello.vm)?;
                (KIND_HELLO, serde_json::to_vec(hello))
            }
            Self::Refusal(refusal) => (KIND_REFUSAL, serde_json::to_vec(refusal)),
            Self::Lifeline(lifeline) => {
                check_name(&lifeline.vm)?;
                (KIND_LIFELINE, serde_json::to_vec(lifeline))
            }
            Self::Resync(resync) => {
                check_name(&resync.vm)?;
                (KIND_RESYNC, serde_json::to_vec(resync))
            }
        };
        let body = body.map_err(HelloError::Body)?;
        if body.len() > MAX_BODY_BYTES {
            return Err(HelloError::Length {
                found: body.len() as u64,
            });
        }
        let preamble = Preamble {
            magic: MAGIC,
            version: U32::new(PROTOCOL_VERSION),
            kind: U16::new(kind),
            reserved: U16::ZERO,
            length: U32::new(body.len() as u32),
            crc: U32::new(crc32c::crc32c(&body)),
        };
        Ok([preamble.as_bytes(), &body].concat())
    }

    /// Reads the message at the start of `bytes`. `None` if more is needed: [`needed`] says how
    /// much. A wrong preamble is reported from its first wrong byte on.
    ///
    /// # Errors
    /// The peer is a stranger, of another version, or sends what no peer sends.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, HelloError> {
        let seen = bytes.len().min(MAGIC.len());
        if bytes[..seen] != MAGIC[..seen] {
            return Err(HelloError::Magic {
                found: bytes[..seen].to_vec(),
            });
        }
        let Ok((preamble, rest)) = Preamble::ref_from_prefix(bytes) else {
            return Ok(None);
        };
        let length = preamble.check()?;
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let (found, expected) = (preamble.crc.get(), crc32c::crc32c(body));
        if found != expected {
            return Err(HelloError::Crc { found, expected });
        }
        match preamble.kind.get() {
            KIND_HELLO => {
                let hello: Hello = serde_json::from_slice(body).map_err(HelloError::Body)?;
                check_name(&hello.vm)?;
                Ok(Some(Self::Hello(hello)))
            }
            KIND_REFUSAL => serde_json::from_slice(body)
                .map(|refusal| Some(Self::Refusal(refusal)))
                .map_err(HelloError::Body),
            KIND_LIFELINE => {
                let lifeline: Lifeline = serde_json::from_slice(body).map_err(HelloError::Body)?;
                check_name(&lifeline.vm)?;
                Ok(Some(Self::Lifeline(lifeline)))
            }
            KIND_RESYNC => {
                let resync: Resync = serde_json::from_slice(body).map_err(HelloError::Body)?;
                check_name(&resync.vm)?;
                Ok(Some(Self::Resync(resync)))
            }
            found => Err(HelloError::Kind { found }),
        }
    }

    /// What it is called in an error.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Refusal(_) => "refusal",
            Self::Lifeline(_) => "lifeline",
            Self::Resync(_) => "resync",
        }
    }
}

impl Preamble {
    /// Checks every field but the CRC; returns the body's length.
    fn check(&self) -> Result<usize, HelloError> {
        if self.version.get() != PROTOCOL_VERSION {
            return Err(HelloError::Version {
                found: self.version.get(),
            });
        }
        if !(KIND_HELLO..=KIND_RESYNC).contains(&self.kind.get()) {
            return Err(HelloError::Kind {
                found: self.kind.get(),
            });
        }
        if self.reserved.get() != 0 {
            return Err(HelloError::Reserved {
                found: self.reserved.get(),
            });
        }
        let length = self.length.get() as usize;
        if length > MAX_BODY_BYTES {
            return Err(HelloError::Length {
                found: length as u64,
            });
        }
        Ok(length)
    }
}

/// Length of the message at the start of `bytes`, as far as it is known: never more than
/// [`PREAMBLE_BYTES`] + [`MAX_BODY_BYTES`].
#[must_use]
pub fn needed(bytes: &[u8]) -> usize {
    match Preamble::ref_from_prefix(bytes) {
        Ok((preamble, _)) => PREAMBLE_BYTES + preamble.check().unwrap_or(0),
        Err(_) => PREAMBLE_BYTES,
    }
}

impl Hello {
    /// Compares this side's hello with the peer's.
    ///
    /// # Errors
    /// [`HelloError::Role`] or [`HelloError::Unwanted`] with the first field that differs.
    pub fn compare(&self, theirs: &Self) -> Result<Agreed, HelloError> {
        let expected = self.role.peer();
        if theirs.role != expected {
            return Err(HelloError::Role {
                found: theirs.role,
                expected,
            });
        }
        let differs = |field: &str, ours: &str, theirs: &str| {
            let (primary, backup) = match self.role {
                Role::Primary => (shown(ours), shown(theirs)),
                Role::Backup => (shown(theirs), shown(ours)),
            };
            HelloError::Unwanted(Refusal::Differs {
                field: shown(field),
                primary,
                backup,
            })
        };
        if self.vm != theirs.vm {
            return Err(differs("vm", &self.vm, &theirs.vm));
        }
        if let (Some(our), Some(their)) = (self.generation, theirs.generation)
            && our != their
        {
            return Err(differs("generation", &our.to_string(), &their.to_string()));
        }
        if self.starts_behind != theirs.starts_behind {
            let (our, their) = (self.starts_behind.0, theirs.starts_behind.0);
            return Err(differs(
                "starts-behind",
                &our.to_string(),
                &their.to_string(),
            ));
        }
        for side in [self, theirs] {
            if side.ring_bytes < MIN_RING_BYTES {
                return Err(HelloError::Ring {
                    role: side.role,
                    found: side.ring_bytes,
                });
            }
        }
        let names = self.configuration.keys().chain(theirs.configuration.keys());
        for name in names {
            let (our, their) = (self.configuration.get(name), theirs.configuration.get(name));
            if our != their {
                let text = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
                return Err(differs(name, &text(our), &text(their)));
            }
        }
        Ok(Agreed {
            generation: self.generation.or(theirs.generation).unwrap_or_default(),
            peer_ring_bytes: theirs.ring_bytes,
        })
    }
}

impl HelloError {
    /// What to tell a peer whose hello met this error; nothing to a stranger, and nothing to a peer
    /// that refused itself.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Magic { .. } | Self::Refused(_) => None,
            Self::Unwanted(refusal) => Some(refusal.clone()),
            other => Some(Refusal::Unacceptable {
                error: shown(&other.to_string()),
            }),
        }
    }
}

fn check_name(vm: &str) -> Result<(), HelloError> {
    if vm.len() > MAX_VM_NAME_BYTES {
        return Err(HelloError::VmName { found: vm.len() });
    }
    Ok(())
}

/// The start of `text`, so that a peer cannot fill our log.
fn shown(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}
