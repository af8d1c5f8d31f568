//! Bringing the two sides of a pair together: hellos, the log ring, the channel, heartbeats, roles.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lockstep_logchan::entry::Sequence;
use lockstep_logchan::protocol::hello::{Hello, Lifeline, Resync};
use lockstep_logchan::protocol::receiver::AckPolicy;
use lockstep_logchan::protocol::{Role, VmId};
use lockstep_logchan::reader::EntryReader;
use lockstep_logchan::transport::connect::{
    self, Address, Connection, Incoming, Listener, Offer, Patience, connect,
};
use lockstep_logchan::transport::on_core::OnCore;
use lockstep_logchan::transport::shm::{
    self, ShmBackup, ShmOptions, ShmParts, ShmPrimary, receive_parts, send_parts,
};
use lockstep_logchan::transport::tcp::{TcpBackup, TcpOptions, TcpPrimary};
use lockstep_logchan::transport::{BackupChannel, PrimaryChannel};
use lockstep_logchan::writer::EntryWriter;
use lockstep_perf::counters::Counters;
use lockstep_ringbuf::{Ring, RingOptions, WaitPolicy};

use super::control::Control;
use super::disk_desk::DiskBacking;
use super::pulse::{Pairing, Pulse};
use super::resync::{Meeting, ResyncError};
use super::status::{Standing, Status};
use super::{RunError, VmSpec};
use crate::ft::arbiter::{Claim, Party};
use crate::host::arbiter_file::ArbiterFile;
use crate::host::disk::{CopyFile, Sharing};
use crate::settings::{CongestionControl, Flush, Settings, ShmAck, TransportKind, Wait};

/// A connection at the primary's door has this long to say who it is.
pub(super) const HELLO_LIMIT: Duration = Duration::from_secs(2);

/// What a hello calls whose each disk is.
pub(super) const DISK_SHARING: &str = "disk-sharing";

/// How often a waiting primary looks whether it was asked to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Where the two sides of a pair find each other, and who decides between them.
#[derive(Debug, Clone)]
pub struct PairSpec {
    /// Where the primary listens: `HOST:PORT` for `tcp`, `unix:PATH` for `shm`.
    pub address: Address,
    /// This side's UDP address for heartbeats.
    pub heartbeat_listen: SocketAddr,
    /// The other side's.
    pub heartbeat_peer: SocketAddr,
    /// The test-and-set.
    pub arbiter: ArbiterFile,
    /// Generation of the pairing: the primary's; a backup takes its primary's.
    pub generation: u64,
    /// A backup saves the log that it replays here.
    pub save_log: Option<PathBuf>,
    /// The guest's IPv4 address, announced by ARP at go-live where it is known.
    pub guest_ip: Option<[u8; 4]>,
}

pub(super) fn wait_policy(wait: Wait, spin_us: u32) -> WaitPolicy {
    match wait {
        Wait::Spin => WaitPolicy::Spin,
        Wait::SpinThenBlock => WaitPolicy::SpinThenBlock {
            spin: Duration::from_micros(u64::from(spin_us)),
        },
        Wait::Block => WaitPolicy::Block,
    }
}

/// What this side says of itself. Everything in which the two must agree is in `configuration`.
pub(super) fn hello(
    vm: &VmSpec,
    role: Role,
    generation: Option<u64>,
    ring_bytes: u64,
    sharing: &[Sharing],
) -> Hello {
    let mut configuration = BTreeMap::new();
    let value = serde_json::to_value(&vm.machine).unwrap_or_default();
    if let serde_json::Value::Object(fields) = value {
        configuration.extend(fields);
    }
    let origin = vm.origin();
    configuration.insert("kernel-xxh3".into(), origin.kernel_xxh3.into());
    configuration.insert("kernel-bytes".into(), vm.kernel.len().into());
    configuration.insert("initrd-xxh3".into(), origin.initrd_xxh3.into());
    let snapshot = vm.snapshot.as_ref();
    let snapshot = snapshot.map(|snapshot| format!("{:032x}", snapshot.digest()));
    configuration.insert("snapshot-xxh3".into(), snapshot.into());
    configuration.insert("cpu-model".into(), origin.cpu_model.into());
    let sharing = serde_json::to_value(sharing).unwrap_or_default();
    configuration.insert(DISK_SHARING.into(), sharing);
    Hello {
        role,
        vm: vm.name.clone(),
        generation,
        ring_bytes,
        starts_behind: Sequence::NONE,
        configuration,
    }
}

/// Whose each disk is, in their order.
pub(super) fn sharing(disks: &[DiskBacking]) -> Vec<Sharing> {
    disks.iter().map(|disk| disk.sharing).collect()
}

fn channel_error(error: impl std::error::Error + Send + Sync + 'static) -> RunError {
    RunError::Channel(Box::new(error))
}

/// Waits at the door until the backup has come; `None` if the operator asked to stop first.
pub(super) fn await_backup(
    listener: &mut Listener,
    hello: &Hello,
    control: &Control,
    counters: &Counters,
) -> Result<Option<Connection>, RunError> {
    while !control.stop_asked() {
        match listener
            .poll(Offer::Pair(hello), LOOK_EVERY)
            .map_err(channel_error)?
        {
            Some(Incoming::Paired(connection)) => return Ok(Some(connection)),
            Some(Incoming::Refused { peer, error }) => {
                counters.channel.strangers_refused.increment();
                tracing::warn!(%peer, %error, "refused");
            }
            Some(Incoming::Lifeline(_) | Incoming::Resync(_)) | None => {}
        }
    }
    Ok(None)
}

/// Waits at the door until a backup has come whose own disks are equal to `copies`; `None` if the operator asked to
/// stop first.
pub(super) fn meet_backup(
    listener: &mut Listener,
    hello: &Hello,
    copies: &mut [CopyFile],
    control: &Control,
    status: &Status,
) -> Result<Option<Connection>, RunError> {
    let counters = &status.counters;
    while let Some(connection) = await_backup(listener, hello, control, counters)? {
        let meeting = Meeting {
            greeting: Resync {
                vm: hello.vm.clone(),
                generation: connection.agreed.generation,
            },
            copies: &mut *copies,
            control,
            status,
        };
        match meeting.lead(listener) {
            Ok(()) => return Ok(Some(connection)),
            Err(ResyncError::Stopped) => break,
            Err(error) if error.is_ours() => return Err(error.into()),
            Err(error) => {
                counters.channel.strangers_refused.increment();
                tracing::error!(
                    %error,
                    "the backup's disks were not made equal to ours: waiting for one to come again"
                );
                status.stand(Standing::Waiting);
            }
        }
    }
    Ok(None)
}

/// The backup's way to the primary's door.
pub(super) fn reach_primary(
    address: &Address,
    hello: &Hello,
    patience: &Patience,
) -> Result<Connection, RunError> {
    connect(address, hello, patience).map_err(channel_error)
}

/// The primary's end of the channel.
pub(super) fn primary_channel(
    connection: Connection,
    settings: &Settings,
) -> Result<(Box<dyn PrimaryChannel>, EntryWriter), RunError> {
    let ring = Ring::create(ring_capacity(settings), RingOptions::default());
    let ring = ring.map_err(channel_error)?;
    let last = Sequence::NONE;
    let writer = EntryWriter::new(ring.producer().map_err(channel_error)?, last);
    let wait = wait_policy(settings.cpu.idle_wait, settings.cpu.spin_us);
    let channel: Box<dyn PrimaryChannel> = match settings.channel.transport {
        TransportKind::Shm => {
            let parts = ShmParts::create(&ring).map_err(channel_error)?;
            send_parts(connection.stream.as_fd(), &parts).map_err(channel_error)?;
            Box::new(ShmPrimary::new(
                connection.stream,
                parts,
                last,
                shm_options(settings, wait),
            ))
        }
        TransportKind::Tcp => {
            let options = tcp_options(settings, wait);
            let Connection { stream, agreed, .. } = connection;
            let channel = TcpPrimary::new(stream, &ring, last, &agreed, &options);
            let channel = channel.map_err(channel_error)?;
            match settings.channel.flush {
                Flush::Inline => Box::new(channel),
                Flush::Core => {
                    let core = settings.cpu.channel_core;
                    let idle = wait_policy(settings.cpu.receive_wait, settings.cpu.spin_us);
                    Box::new(OnCore::start(channel, core, idle, wait).map_err(channel_error)?)
                }
            }
        }
    };
    Ok((channel, writer))
}

/// The backup's end of the channel, and whether the primary writes the very ring that it reads.
pub(super) fn backup_channel(
    connection: Connection,
    address: &Address,
    settings: &Settings,
) -> Result<(Box<dyn BackupChannel>, EntryReader, bool), RunError> {
    let last = Sequence::NONE;
    let wait = wait_policy(settings.cpu.receive_wait, settings.cpu.spin_us);
    match settings.channel.transport {
        TransportKind::Shm => {
            let parts = receive_parts(connection.stream.as_fd()).map_err(channel_error)?;
            let options = shm_options(settings, wait);
            let made = ShmBackup::new(connection.stream, parts, last, options);
            let (channel, reader) = made.map_err(channel_error)?;
            Ok((Box::new(channel), reader, true))
        }
        TransportKind::Tcp => {
            let ring = Ring::create(ring_capacity(settings), RingOptions::default());
            let ring = ring.map_err(channel_error)?;
            let options = tcp_options(settings, wait);
            let lifeline = Lifeline {
                vm: connection.theirs.vm.clone(),
                generation: connection.agreed.generation,
            };
            let lifeline = connect::lifeline(address, &lifeline, Patience::default().hello)
                .inspect_err(
                    |error| tracing::warn!(%error, "no lifeline: the primary's end is noticed later"),
                )
                .ok();
            let made = TcpBackup::new(connection.stream, &ring, last, &options);
            let (channel, reader) = made.map_err(channel_error)?;
            Ok((Box::new(channel.watching(lifeline)), reader, false))
        }
    }
}

fn ring_capacity(settings: &Settings) -> usize {
    usize::try_from(settings.channel.ring_bytes).unwrap_or(usize::MAX)
}

fn stall_timeout(settings: &Settings) -> Duration {
    Duration::from_millis(u64::from(settings.failure.stall_timeout_ms))
}

fn shm_options(settings: &Settings, wait: WaitPolicy) -> ShmOptions {
    let ack = match settings.channel.shm_ack {
        ShmAck::Committed => shm::ShmAck::Committed,
        ShmAck::Received => shm::ShmAck::Received,
    };
    ShmOptions {
        ack,
        wait,
        stall_timeout: stall_timeout(settings),
    }
}

fn tcp_options(settings: &Settings, wait: WaitPolicy) -> TcpOptions {
    let channel = &settings.channel;
    TcpOptions {
        wait,
        sqpoll: channel.sqpoll,
        send_zc: channel.send_zc,
        busy_poll_us: channel.busy_poll_us,
        congestion_control: match channel.congestion_control {
            CongestionControl::Host => None,
            CongestionControl::Cubic => Some("cubic"),
            CongestionControl::Reno => Some("reno"),
        },
        ack: AckPolicy {
            entries: channel.ack_entries,
            delay_ns: u64::from(channel.ack_delay_us) * 1000,
        },
        stall_timeout: stall_timeout(settings),
    }
}

/// Starts the heartbeats of `role` in `generation`.
pub(super) fn start_pulse(
    vm: &VmSpec,
    role: Role,
    generation: u64,
    spec: &PairSpec,
    settings: &Settings,
    counters: Arc<Counters>,
) -> Result<Pulse, RunError> {
    let socket = UdpSocket::bind(spec.heartbeat_listen)
        .and_then(|socket| socket.connect(spec.heartbeat_peer).map(|()| socket))
        .map_err(RunError::host("opening the heartbeat socket"))?;
    let pairing = Pairing {
        vm: VmId::of_name(&vm.name),
        generation,
        role,
    };
    let interval = Duration::from_millis(u64::from(settings.failure.heartbeat_interval_ms));
    Pulse::start(socket, pairing, interval, counters)
        .map_err(RunError::host("starting the heartbeat thread"))
}

/// The claim that this side would put to the arbiter.
pub(super) fn claim(role: Role, generation: u64) -> Result<Claim, RunError> {
    let mut instance = [0; 8];
    let filled = rustix::rand::getrandom(&mut instance, rustix::rand::GetRandomFlags::empty());
    if filled
        .map_err(io::Error::from)
        .map_err(RunError::host("drawing an identity"))?
        != 8
    {
        let short = io::Error::from(io::ErrorKind::UnexpectedEof);
        return Err(RunError::host("drawing an identity")(short));
    }
    let party = Party::new(role, u64::from_ne_bytes(instance));
    Ok(Claim { generation, party })
}
