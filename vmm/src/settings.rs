//! Everything an operator can tune, with defaults. `tuning` lists each with unit, range and
//! meaning, from one table; the command line and the configuration file are made from that table.

use serde::{Deserialize, Serialize};

/// How a thread waits for work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wait {
    /// Never sleeps: lowest latency, one core gone.
    Spin,
    /// Spins for a while, then sleeps.
    SpinThenBlock,
    /// Sleeps at once.
    Block,
}

/// How log bytes travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// Both processes on one host share the ring.
    Shm,
    /// TCP through io_uring.
    Tcp,
}

/// Who sends the log and takes the acks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flush {
    /// The vCPU's own thread, between runs of the guest.
    Inline,
    /// A thread of its own, on a core of its own where there is one.
    Core,
}

/// The congestion control of the log's TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CongestionControl {
    /// The host's default (`net.ipv4.tcp_congestion_control`).
    Host,
    /// Does not pace, as BBR does.
    Cubic,
    /// The same; every kernel has it.
    Reno,
}

/// What an acknowledgement means on shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShmAck {
    /// The entry is committed to the ring that both processes map: it outlives the primary.
    Committed,
    /// The backup has read and checked the entry.
    Received,
}

/// The channel's knobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ChannelSettings {
    /// Transport.
    pub transport: TransportKind,
    /// Who flushes.
    pub flush: Flush,
    /// Meaning of an ack on `shm`.
    pub shm_ack: ShmAck,
    /// Log buffer on each side, bytes, a power of two.
    pub ring_bytes: u64,
    /// Acknowledge after this many entries that do not ask for it.
    pub ack_entries: u32,
    /// Acknowledge after this long, microseconds.
    pub ack_delay_us: u32,
    /// Kernel-side submission thread.
    pub sqpoll: bool,
    /// Zero-copy send.
    pub send_zc: bool,
    /// SO_BUSY_POLL, microseconds; 0 is off.
    pub busy_poll_us: u32,
    /// Of the log's connection on `tcp`.
    pub congestion_control: CongestionControl,
}

/// Waiting and pinning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct CpuSettings {
    /// How the primary's vCPU thread waits while the guest is halted.
    pub idle_wait: Wait,
    /// How the backup's receiving thread waits for log bytes.
    pub receive_wait: Wait,
    /// How the backup's replaying thread waits for entries.
    pub replay_wait: Wait,
    /// Spin this long before sleeping, microseconds (`spin-then-block`).
    pub spin_us: u32,
    /// The backup's receiving thread goes before all ordinary ones, where the host lets it.
    pub receiver_real_time: bool,
    /// Core of the vCPU thread; -1 leaves it to the scheduler.
    pub vcpu_core: i32,
    /// Core of the channel thread (`flush = core`) or the backup's receiver; -1 as above.
    pub channel_core: i32,
    /// Instructions between two looks at the world (`soft` engine).
    pub slice_instructions: u32,
}

/// Failure detection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FailureSettings {
    /// Time between heartbeats, milliseconds.
    pub heartbeat_interval_ms: u32,
    /// A peer silent for this long is taken for dead, milliseconds.
    pub heartbeat_timeout_ms: u32,
    /// Acks outstanding with no progress for this long, milliseconds.
    pub stall_timeout_ms: u32,
    /// Time between attempts while the arbiter is out of reach, milliseconds.
    pub arbiter_retry_ms: u32,
    /// Frames that the backup remembers until the log has them; 0 is off.
    pub shadow_frames: u32,
}

/// Checks and clock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ReplaySettings {
    /// Time between digest entries, milliseconds; 0 is off.
    pub digest_interval_ms: u32,
    /// Memory covered by one digest entry, bytes.
    pub digest_stripe_bytes: u32,
    /// Largest drift of the guest's clock before a clock entry corrects it, microseconds.
    pub clock_drift_us: u32,
    /// Execution lag of the backup, in vCPU time that it has yet to replay, above which the primary is
    /// slowed down, milliseconds. A failover takes that much longer.
    pub lag_limit_ms: u32,
}

/// Disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskSettings {
    /// Requests that the kernel has at a time, over all disks.
    pub queue_depth: u32,
    /// Memory for bounce buffers, bytes; the same on both sides.
    pub bounce_bytes: u64,
    /// What a guest reads is not sent to the backup, which reads the shared disk itself.
    pub backup_reads: bool,
    /// After a failover, a new write to blocks that the dead primary may still be writing waits this
    /// long, milliseconds.
    pub settle_ms: u32,
    /// A request that takes longer than this is said to hang, milliseconds.
    pub hang_ms: u32,
    /// A backup repeats a read that fails, or finds other data, for this long, milliseconds.
    pub read_retry_ms: u32,
}

/// All knobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// The channel.
    pub channel: ChannelSettings,
    /// Waiting and pinning.
    pub cpu: CpuSettings,
    /// Failure detection.
    pub failure: FailureSettings,
    /// Digests and clock.
    pub replay: ReplaySettings,
    /// Disks.
    pub disk: DiskSettings,
}

impl Default for DiskSettings {
    fn default() -> Self {
        Self {
            queue_depth: 64,
            bounce_bytes: 16 << 20,
            backup_reads: false,
            settle_ms: 100,
            hang_ms: 5000,
            read_retry_ms: 5000,
        }
    }
}

impl Default for ChannelSettings {
    fn default() -> Self {
        Self {
            transport: TransportKind::Tcp,
            flush: Flush::Inline,
            shm_ack: ShmAck::Committed,
            ring_bytes: 16 << 20,
            ack_entries: 64,
            ack_delay_us: 1000,
            sqpoll: false,
            send_zc: false,
            busy_poll_us: 0,
            congestion_control: CongestionControl::Cubic,
        }
    }
}

impl Default for CpuSettings {
    fn default() -> Self {
        Self {
            idle_wait: Wait::SpinThenBlock,
            receive_wait: Wait::SpinThenBlock,
            replay_wait: Wait::Block,
            spin_us: 100,
            receiver_real_time: false,
            vcpu_core: -1,
            channel_core: -1,
            slice_instructions: 20_000,
        }
    }
}

impl Default for FailureSettings {
    fn default() -> Self {
        Self {
            heartbeat_interval_ms: 10,
            heartbeat_timeout_ms: 100,
            stall_timeout_ms: 100,
            arbiter_retry_ms: 50,
            shadow_frames: 2048,
        }
    }
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self {
            digest_interval_ms: 100,
            digest_stripe_bytes: 1 << 20,
            clock_drift_us: 1000,
            lag_limit_ms: 300,
        }
    }
}
