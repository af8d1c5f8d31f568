//! Protected machines that lose their primary: real processes, in network namespaces, under load.

use lockstep_bench::load::LoadConfig;
use lockstep_cli::commands::HALTED_EXIT_CODE;
use lockstep_cli::commands::report::Role;
use lockstep_cli::scenario::{
    Fault, Host, Loss, Round, Scenario, ScenarioOptions, Tenant, Workload,
};
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::namespaces::trial::with_namespaces;
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::{Settings, ShmAck, TransportKind};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_lockstep");

fn scenario(settings: Settings) -> Scenario {
    Scenario::new(ScenarioOptions {
        program: PROGRAM.into(),
        engine: EngineChoice::Soft,
        settings,
        save_logs: true,
        tenant: Tenant::Bare,
        disk_sharing: Sharing::Shared,
        evidence: None,
    })
    .expect("a network, as probed")
}

fn over(transport: TransportKind) -> Settings {
    let mut settings = Settings::default();
    settings.channel.transport = transport;
    settings
}

/// A load that two busy cores bear.
fn load(scenario: &Scenario) -> Workload {
    Workload::Memcached(LoadConfig {
        rate: 500.0,
        data_keys: 96,
        counter_keys: 32,
        ..LoadConfig::new(scenario.target())
    })
}

fn lose_primary(scenario: &mut Scenario, fault: Fault, primary_on: Host) -> Round {
    let loss = Loss {
        fault,
        moment: Duration::from_millis(400),
        length: Duration::from_millis(900),
        primary_on,
    };
    let load = load(scenario);
    let round = scenario
        .lose_primary(&loss, load, &mut |_| ())
        .unwrap_or_else(|error| panic!("{fault:?}, primary on {primary_on:?}: {error}"));
    assert!(
        round.load.acknowledged_writes > 0,
        "a load without acknowledged writes proves nothing: {:?}",
        round.load
    );
    assert_eq!(round.failures(), Vec::<String>::new());
    assert_eq!(round.judgement.live_sides, 1);
    round
}

#[test]
fn a_killed_primary_takes_no_acknowledged_write_with_it_over_tcp() {
    with_namespaces(
        "a_killed_primary_takes_no_acknowledged_write_with_it_over_tcp",
        || {
            let mut scenario = scenario(over(TransportKind::Tcp));
            // And the survivors' places may be any.
            for primary_on in [Host::A, Host::B] {
                lose_primary(&mut scenario, Fault::Kill, primary_on);
            }
        },
    );
}

#[test]
fn a_killed_primary_takes_no_acknowledged_write_with_it_over_shared_memory() {
    with_namespaces(
        "a_killed_primary_takes_no_acknowledged_write_with_it_over_shared_memory",
        || {
            for meaning in [ShmAck::Committed, ShmAck::Received] {
                let mut settings = over(TransportKind::Shm);
                settings.channel.shm_ack = meaning;
                lose_primary(&mut scenario(settings), Fault::Kill, Host::A);
            }
        },
    );
}

#[test]
fn a_silent_primary_is_replaced_and_halts_when_it_comes_back() {
    with_namespaces(
        "a_silent_primary_is_replaced_and_halts_when_it_comes_back",
        || {
            let mut scenario = scenario(over(TransportKind::Tcp));
            let round = lose_primary(&mut scenario, Fault::Stop, Host::A);
            // That it is silent is known only by waiting.
            let timeout = Settings::default().failure.heartbeat_timeout_ms;
            assert!(
                round.judgement.failover.detection >= u64::from(timeout / 2) * 1_000_000,
                "{:?}",
                round.judgement
            );
        },
    );
}

#[test]
fn an_orderly_end_is_no_failover_and_its_log_replays_to_the_same_digest() {
    with_namespaces(
        "an_orderly_end_is_no_failover_and_its_log_replays_to_the_same_digest",
        || {
            let mut scenario = scenario(over(TransportKind::Tcp));
            let pair = scenario.pair(Host::A, Duration::ZERO).expect("a pair");
            let configuration = scenario.configuration_path(pair.backup.name());
            let log = pair.saved_log.clone().expect("asked for");
            let mut client = scenario.client(load(&scenario)).expect("a client");
            client.run(Duration::from_millis(300)).expect("a load");
            assert!(client.verify().expect("a verification").passed());
            shows_its_status(&pair.primary.status().expect("a status"), "primary");
            shows_its_status(&pair.backup.status().expect("a status"), "backup");

            let (of_primary, of_backup) = scenario.end_pair(pair).expect("an orderly end");
            assert_eq!(
                (of_primary.role, of_backup.role),
                (Role::Primary, Role::Backup)
            );
            assert!(of_backup.failover.is_none(), "{:?}", of_backup.failover);
            let digest = serde_json::json!(of_backup.digest.expect("at the log's end"));
            for attempt in 1..=3 {
                let replayed = replay(&log, &configuration);
                assert_eq!(replayed["digest"], digest, "replay {attempt}: {replayed}");
                assert_eq!(replayed["end"], "stopped");
            }
            a_damaged_log_is_refused(&log, &configuration);
        },
    );
}

/// What the issue lists: role, generation, lag, ring fill, acks, held outputs.
fn shows_its_status(status: &Value, role: &str) {
    assert_eq!(status["role"], role, "{status}");
    assert_eq!(status["engine"], "soft", "{status}");
    assert_eq!(status["generation"], 1, "{status}");
    assert_eq!(status["transport"], "tcp", "{status}");
    let numbers = [
        ("channel", "lag_ns"),
        ("channel", "acked_sequence"),
        ("channel", "acks"),
        ("vcpu", "ring_fill_bytes"),
        ("vcpu", "held_now"),
        ("vcpu", "outputs_released"),
    ];
    for (group, name) in numbers {
        assert!(
            status["counters"][group][name].is_u64(),
            "{group}.{name}: {status}"
        );
    }
    let moved = if role == "primary" {
        "entries"
    } else {
        "position"
    };
    assert_ne!(status["counters"]["vcpu"][moved], 0, "{status}");
}

fn replay(log: &Path, configuration: &Path) -> Value {
    let output = Command::new(PROGRAM)
        .arg("replay")
        .arg(log)
        .arg("--config")
        .arg(configuration)
        .arg("--json")
        .output()
        .expect("lockstep replay");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// A byte in the middle of the log, turned.
fn a_damaged_log_is_refused(log: &Path, configuration: &Path) {
    let mut bytes = std::fs::read(log).expect("the log");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    let damaged = log.with_extension("damaged");
    std::fs::write(&damaged, bytes).expect("write");
    let output = Command::new(PROGRAM)
        .arg("replay")
        .arg(&damaged)
        .arg("--config")
        .arg(configuration)
        .output()
        .expect("lockstep replay");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("replaying the saved log"), "{said}");
}

#[test]
fn a_flipped_bit_in_the_backups_memory_is_found_and_it_never_goes_live() {
    with_namespaces(
        "a_flipped_bit_in_the_backups_memory_is_found_and_it_never_goes_live",
        || {
            let mut settings = over(TransportKind::Tcp);
            settings.replay.digest_interval_ms = 5;
            let mut scenario = scenario(settings);
            let mut pair = scenario.pair(Host::A, Duration::ZERO).expect("a pair");
            let mut client = scenario.client(load(&scenario)).expect("a client");
            client.run(Duration::from_millis(300)).expect("a load");

            flip_a_bit_of_guest_memory(pair.backup.id());
            let end = pair
                .backup
                .wait_end(Duration::from_secs(10))
                .expect("an end");
            assert_eq!(end.code(), Some(i32::from(HALTED_EXIT_CODE)), "{end}");
            let said = pair.backup.last_words();
            assert!(said.contains("state differs at position"), "{said}");

            // The primary is not to suffer for it.
            let alone = |status: &Value| (status["role"] == "alone").then_some(());
            pair.primary
                .wait_for("being alone", Duration::from_secs(10), alone)
                .expect("an arbiter that is there");
            client.run(Duration::from_millis(300)).expect("a load");
            let verdict = client.verify().expect("a verification");
            assert!(verdict.passed(), "{verdict:?}");
        },
    );
}

/// Flips a bit of a value that the guest of this process stores. Guest RAM is a large private anonymous
/// mapping, and in it is what the client has written.
fn flip_a_bit_of_guest_memory(process: u32) {
    use std::os::unix::fs::FileExt;
    /// How a value of key 5 begins, whichever write it is from.
    const VALUE: &[u8] = b"0000000005.00000000";
    const RAM_BYTES: u64 = 16 << 20;
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("its mappings");
    let memory = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{process}/mem"))
        .expect("its memory");
    let mut flipped = 0;
    for line in maps.lines() {
        // address, permissions, offset, device, inode, and for files a path: proc_pid_maps(5).
        let fields: Vec<_> = line.split_whitespace().collect();
        let (start, end) = fields[0].split_once('-').expect("a range");
        let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16).expect("hex"));
        if fields.len() != 5 || fields[1] != "rw-p" || end - start < RAM_BYTES {
            continue;
        }
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).expect("a mapping");
        for at in 0..bytes.len() - VALUE.len() {
            if bytes[at..].starts_with(VALUE) {
                let turned = [bytes[at] ^ 0x10];
                memory
                    .write_all_at(&turned, start + at as u64)
                    .expect("a bit");
                flipped += 1;
            }
        }
    }
    assert!(flipped > 0, "no value of the client in the guest's memory");
}
