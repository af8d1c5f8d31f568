//! Numbers that one thread counts and another shows.
//!
//! Each counter has one thread that writes it; any thread may read it at any time. Writing costs a
//! load and a store of memory that only the writer's core holds: no locked instruction. The groups
//! of different writers lie on cache lines of their own.
//!
//! Every access is `Relaxed`, and pairs with nothing: a counter orders nothing and protects nothing.
//! A snapshot is each counter's value at about the same time, not all at one instant.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// A sum that only grows. One thread writes it.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only the one writing thread calls this: two would lose counts.
    pub fn add(&self, n: u64) {
        // Relaxed, not a locked read-modify-write: nobody else stores here.
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// Adds one. Only the one writing thread calls this.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The sum so far, as far as this thread can see.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Relaxed: a number to be shown, pairs with nothing.
        self.0.load(Ordering::Relaxed)
    }
}

/// A level that goes up and down. One thread writes it.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the level.
    pub fn set(&self, level: u64) {
        // Relaxed: a number to be shown, pairs with nothing.
        self.0.store(level, Ordering::Relaxed);
    }

    /// The level, as far as this thread can see.
    #[must_use]
    pub fn get(&self) -> u64 {
        // Relaxed: a number to be shown, pairs with nothing.
        self.0.load(Ordering::Relaxed)
    }
}

/// Declares a group of counters, and the snapshot of it that travels to whoever asks.
macro_rules! group {
    (
        $(#[$meta:meta])* $group:ident => $snapshot:ident {
            $($(#[doc = $doc:literal])+ $field:ident: $kind:ident,)+
        }
    ) => {
        $(#[$meta])*
        ///
        /// On cache lines of its own: two, because processors fetch them in pairs.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct $group {
            $($(#[doc = $doc])+ pub $field: $kind,)+
        }

        impl $group {
            /// The values now.
            #[must_use]
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($field: self.$field.get(),)+ }
            }
        }

        #[doc = concat!("Values of [`", stringify!($group), "`].")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
        #[serde(default)]
        pub struct $snapshot {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }
    };
}

group! {
    /// What the thread that executes the guest counts.
    VcpuCounters => VcpuSnapshot {
        /// Log entries committed.
        entries: Counter,
        /// Log bytes committed.
        bytes: Counter,
        /// Sequence number of the last entry committed.
        committed_sequence: Gauge,
        /// The machine's position.
        position: Gauge,
        /// Outputs that were held for an acknowledgement.
        outputs_held: Counter,
        /// Outputs given to the world.
        outputs_released: Counter,
        /// Outputs waiting now.
        held_now: Gauge,
        /// Bytes of log in the ring, not yet acknowledged.
        ring_fill_bytes: Gauge,
        /// Times the vCPU waited because the ring was full.
        ring_full_waits: Counter,
        /// Nanoseconds it waited for that.
        ring_full_ns: Counter,
        /// Nanoseconds it was held back because the backup lagged.
        slowed_ns: Counter,
        /// Instructions that KVM could not execute and the software CPU did.
        emulated_instructions: Counter,
        /// Events applied.
        events: Counter,
        /// Log entries that move the clock and say nothing else.
        clock_entries: Gauge,
        /// Log entries of frames that came.
        frame_entries: Gauge,
        /// Log entries of random bytes.
        entropy_entries: Gauge,
        /// Log entries of disk requests that ended.
        disk_entries: Gauge,
        /// Disk requests that wait now: for an acknowledgement, or for earlier ones to the same blocks.
        disk_waiting: Gauge,
        /// Disk requests that the host's disks are at now.
        disk_running: Gauge,
        /// Log entries of what the machine said.
        output_entries: Gauge,
        /// Log entries of digests.
        digest_entries: Gauge,
    }
}

group! {
    /// What the thread that serves the channel counts.
    ChannelCounters => ChannelSnapshot {
        /// Sends handed to the transport.
        sends: Counter,
        /// Log bytes sent.
        bytes_sent: Counter,
        /// Log bytes received.
        bytes_received: Counter,
        /// Acknowledgements sent or received.
        acks: Counter,
        /// Sequence number up to which the backup has acknowledged.
        acked_sequence: Gauge,
        /// Sequence number up to which the backup has replayed.
        replayed_sequence: Gauge,
        /// vCPU time that the backup has yet to replay, nanoseconds.
        lag_ns: Gauge,
        /// Heartbeats sent.
        heartbeats_sent: Counter,
        /// Heartbeats received.
        heartbeats_received: Counter,
        /// Connections refused, and why is in the log.
        strangers_refused: Counter,
    }
}

/// Everything that one replica counts, shared between its threads.
#[derive(Debug, Default)]
pub struct Counters {
    /// Written by the thread that executes (or replays).
    pub vcpu: VcpuCounters,
    /// Written by the thread that serves the channel; by the vCPU's with inline flush.
    pub channel: ChannelCounters,
}

impl Counters {
    /// The values now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            vcpu: self.vcpu.snapshot(),
            channel: self.channel.snapshot(),
        }
    }
}

/// Values of [`Counters`], for `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshot {
    /// Of the thread that executes.
    pub vcpu: VcpuSnapshot,
    /// Of the thread that serves the channel.
    pub channel: ChannelSnapshot,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_sees_a_counter_only_grow_and_reach_its_sum() {
        const STEPS: u64 = 100_000;
        let counters = Counters::default();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for level in 0..STEPS {
                    counters.vcpu.entries.increment();
                    counters.vcpu.bytes.add(64);
                    counters.vcpu.held_now.set(level % 7);
                }
            });
            let mut last = Snapshot::default();
            while last.vcpu.entries < STEPS {
                let now = counters.snapshot();
                assert!(now.vcpu.entries >= last.vcpu.entries);
                assert!(now.vcpu.bytes >= last.vcpu.bytes);
                assert!(now.vcpu.held_now < 7);
                last = now;
            }
        });
        assert_eq!(counters.snapshot().vcpu.bytes, 64 * STEPS);
    }

    #[test]
    fn the_groups_of_two_threads_share_no_cache_line() {
        let counters = Counters::default();
        let vcpu = std::ptr::from_ref(&counters.vcpu).addr();
        let channel = std::ptr::from_ref(&counters.channel).addr();
        assert_eq!((vcpu % 128, channel % 128), (0, 0));
        assert!(vcpu.abs_diff(channel) >= 128);
    }

    #[test]
    fn a_snapshot_of_an_older_release_is_read_with_zeros() {
        let counters = Counters::default();
        counters.channel.acks.add(9);
        let text = serde_json::to_string(&counters.snapshot()).expect("numbers");
        let back: Snapshot = serde_json::from_str(&text).expect("its own form");
        assert_eq!(back.channel.acks, 9);
        let older = r#"{"vcpu":{"entries":3}}"#;
        let back: Snapshot = serde_json::from_str(older).expect("missing fields are zero");
        assert_eq!(
            (back.vcpu.entries, back.channel),
            (3, ChannelSnapshot::default())
        );
    }
}
