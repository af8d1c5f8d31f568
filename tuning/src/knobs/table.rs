//! The table itself.

use super::Domain::{Integer, OneOf, PowerOfTwo, Switch};
use super::Unit::{
    Bytes, Core, Entries, Frames, Instructions, Microseconds, Milliseconds, Requests,
};
use super::{Knob, Unit};
use lockstep_logchan::protocol::hello::MIN_RING_BYTES;

/// The ways in which a thread waits (`settings::Wait`).
const WAITS: &[&str] = &["spin", "spin-then-block", "block"];

/// Largest number of a core: the kernel's fixed mask has 1,024.
const LAST_CORE: i64 = 1023;

macro_rules! knob {
    ($group:literal, $field:literal, $unit:expr, $domain:expr, $meaning:literal) => {
        Knob {
            name: concat!($group, ".", $field),
            argument: concat!($group, "-", $field),
            unit: $unit,
            domain: $domain,
            meaning: $meaning,
        }
    };
}

const fn from(least: i64, most: i64) -> super::Domain {
    Integer { least, most }
}

/// Every knob, in the order of [`lockstep_vmm::settings::Settings`].
pub const TABLE: &[Knob] = &[
    knob!(
        "channel",
        "transport",
        Unit::None,
        OneOf(&["shm", "tcp"]),
        "How log bytes travel: in shared memory on one host, or over TCP"
    ),
    knob!(
        "channel",
        "flush",
        Unit::None,
        OneOf(&["inline", "core"]),
        "Who sends the log on tcp: the vCPU's own thread, or a thread for it alone"
    ),
    knob!(
        "channel",
        "shm-ack",
        Unit::None,
        OneOf(&["committed", "received"]),
        "What counts as acknowledged on shm: in the shared ring, or read and checked by the backup"
    ),
    knob!(
        "channel",
        "ring-bytes",
        Bytes,
        PowerOfTwo {
            least: MIN_RING_BYTES as i64,
            most: 512 << 20,
        },
        "Log buffer on each side; a full one halts the primary"
    ),
    knob!(
        "channel",
        "ack-entries",
        Entries,
        from(1, 65_536),
        "Acknowledge after this many entries that do not ask for it"
    ),
    knob!(
        "channel",
        "ack-delay-us",
        Microseconds,
        from(0, 100_000),
        "Acknowledge after this long what does not ask for it"
    ),
    knob!(
        "channel",
        "sqpoll",
        Unit::None,
        Switch,
        "A kernel thread submits to io_uring; it takes a core of its own"
    ),
    knob!(
        "channel",
        "send-zc",
        Unit::None,
        Switch,
        "Send without copying into the socket's buffer"
    ),
    knob!(
        "channel",
        "busy-poll-us",
        Microseconds,
        from(0, 100_000),
        "Poll the network card for this long before waiting (SO_BUSY_POLL); 0 is off"
    ),
    knob!(
        "channel",
        "congestion-control",
        Unit::None,
        OneOf(&["host", "cubic", "reno"]),
        "Of the log's TCP connection; host leaves what the host has, which may pace (BBR)"
    ),
    knob!(
        "cpu",
        "idle-wait",
        Unit::None,
        OneOf(WAITS),
        "How the primary's vCPU thread waits while the guest is halted, and for acknowledgements"
    ),
    knob!(
        "cpu",
        "receive-wait",
        Unit::None,
        OneOf(WAITS),
        "How the backup's receiving thread waits for log bytes"
    ),
    knob!(
        "cpu",
        "replay-wait",
        Unit::None,
        OneOf(WAITS),
        "How the backup's replaying thread waits for entries"
    ),
    knob!(
        "cpu",
        "spin-us",
        Microseconds,
        from(0, 1_000_000),
        "How long spin-then-block spins before it sleeps"
    ),
    knob!(
        "cpu",
        "receiver-real-time",
        Unit::None,
        Switch,
        "The backup acknowledges before all ordinary threads run (SCHED_FIFO): a lower tail if replay has a core of its own"
    ),
    knob!(
        "cpu",
        "vcpu-core",
        Core,
        from(-1, LAST_CORE),
        "Core of the vCPU's thread; -1 leaves it to the scheduler"
    ),
    knob!(
        "cpu",
        "channel-core",
        Core,
        from(-1, LAST_CORE),
        "Core of the channel's thread (flush = core) or the backup's receiver; -1 as above"
    ),
    knob!(
        "cpu",
        "slice-instructions",
        Instructions,
        from(100, 10_000_000),
        "Guest instructions between two looks at the world (soft engine)"
    ),
    knob!(
        "failure",
        "heartbeat-interval-ms",
        Milliseconds,
        from(1, 10_000),
        "Time between heartbeats"
    ),
    knob!(
        "failure",
        "heartbeat-timeout-ms",
        Milliseconds,
        from(2, 60_000),
        "A peer silent for this long is taken for dead"
    ),
    knob!(
        "failure",
        "stall-timeout-ms",
        Milliseconds,
        from(1, 60_000),
        "So is one whose log or acknowledgements do not move for this long while they should"
    ),
    knob!(
        "failure",
        "arbiter-retry-ms",
        Milliseconds,
        from(1, 10_000),
        "Time between attempts while the arbiter is out of reach"
    ),
    knob!(
        "failure",
        "shadow-frames",
        Frames,
        from(0, 65_536),
        "Frames that the backup remembers from the network until the log has them; 0 is off"
    ),
    knob!(
        "replay",
        "digest-interval-ms",
        Milliseconds,
        from(0, 3_600_000),
        "Time between comparisons of the two machines' state; 0 is off"
    ),
    knob!(
        "replay",
        "digest-stripe-bytes",
        Bytes,
        from(4096, 1 << 30),
        "Memory covered by one comparison; the guest waits while it is read"
    ),
    knob!(
        "replay",
        "clock-drift-us",
        Microseconds,
        from(1, 1_000_000),
        "Largest drift of a running guest's clock before an entry corrects it"
    ),
    knob!(
        "replay",
        "lag-limit-ms",
        Milliseconds,
        from(1, 60_000),
        "Above this much vCPU time that the backup has yet to replay the primary is slowed down, to a tenth at twice as much"
    ),
    knob!(
        "disk",
        "queue-depth",
        Requests,
        from(1, 1024),
        "Disk requests that the kernel has at a time, over all disks"
    ),
    knob!(
        "disk",
        "bounce-bytes",
        Bytes,
        from(1 << 20, 1 << 30),
        "Memory for bounce buffers, a multiple of 4096; bounds what is under way, and is the same on both sides"
    ),
    knob!(
        "disk",
        "backup-reads",
        Unit::None,
        Switch,
        "What the guest reads is not sent: the backup reads the shared disk itself (--backup-reads)"
    ),
    knob!(
        "disk",
        "settle-ms",
        Milliseconds,
        from(0, 60_000),
        "After a failover, new writes to blocks that the dead primary may still be writing wait this long"
    ),
    knob!(
        "disk",
        "hang-ms",
        Milliseconds,
        from(1, 3_600_000),
        "A disk request that takes longer than this is said to hang"
    ),
    knob!(
        "disk",
        "read-retry-ms",
        Milliseconds,
        from(0, 3_600_000),
        "A backup that reads the shared disk itself repeats what fails, or brings other data, for this long"
    ),
];
