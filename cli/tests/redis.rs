//! Redis in an unmodified Debian, losing its primary: real packages, real connections, real signals.

mod debian_pair;

use debian_pair::{scenario, tenant};
use lockstep_bench::load::{Arrivals, Pace};
use lockstep_bench::redis::RedisConfig;
use lockstep_cli::scenario::{Fault, Host, Loss, Workload};
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::namespaces::GUEST_ADDRESS;
use lockstep_vmm::host::namespaces::trial::with_namespaces;
use std::time::Duration;

/// How long the soak test loads the machine, seconds, if not ten minutes.
const SOAK_SECONDS: &str = "LOCKSTEP_SOAK_SECONDS";

fn mixed_load(rate: f64) -> Workload {
    Workload::Redis(RedisConfig {
        pace: Pace::Open {
            rate,
            arrivals: Arrivals::Uniform,
        },
        depth: 1,
        ..RedisConfig::new((GUEST_ADDRESS, 6379).into())
    })
}

#[test]
fn redis_keeps_its_connections_and_all_it_acknowledged_when_its_primary_is_killed() {
    let test = "redis_keeps_its_connections_and_all_it_acknowledged_when_its_primary_is_killed";
    // Before the network is a namespace's, which has no way out.
    let Some(tenant) = tenant("redis", test) else {
        return;
    };
    with_namespaces(test, || {
        let mut scenario = scenario(tenant, Sharing::Shared);
        let loss = Loss {
            fault: Fault::Kill,
            moment: Duration::from_millis(700),
            length: Duration::from_millis(1500),
            primary_on: Host::A,
        };
        let round = scenario
            .lose_primary(&loss, mixed_load(300.0), &mut |_| ())
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(round.failures(), Vec::<String>::new());
        assert!(round.verification.acknowledged_writes > 0);
        assert!(round.verification.checked_operations > 0);
        assert_eq!(round.judgement.live_sides, 1);
    });
}

/// Ten minutes, so it is asked for: `cargo test -p lockstep --test redis -- --ignored`.
#[test]
#[ignore = "takes ten minutes"]
fn ten_minutes_of_mixed_load_diverge_nowhere() {
    let test = "ten_minutes_of_mixed_load_diverge_nowhere";
    let seconds = std::env::var(SOAK_SECONDS).map_or(600, |text| text.parse().expect("a number"));
    let Some(tenant) = tenant("redis", test) else {
        return;
    };
    with_namespaces(test, || {
        let mut scenario = scenario(tenant, Sharing::Shared);
        let mut pair = scenario.pair(Host::A, Duration::ZERO).expect("a pair");
        let mut client = scenario.client(mixed_load(500.0)).expect("a client");
        let seen = client.run(Duration::from_secs(seconds)).expect("a load");
        assert_eq!(seen.wrong, Vec::<String>::new());
        let verdict = client.verify().expect("a verification");
        assert!(verdict.passed(), "{verdict:?}");
        // The backup followed all the while, comparing ten times a second.
        let status = pair.backup.status().expect("a status");
        assert_eq!(status["role"], "backup", "{status}");
        let status = pair.primary.status().expect("a status");
        let digests = status["counters"]["vcpu"]["digest_entries"].as_u64();
        assert!(digests > Some(9 * seconds), "{status}");
        println!(
            "{seconds} s: {} answers, {digests:?} digests compared",
            seen.answered
        );
        assert!(pair.backup.has_ended().expect("a process").is_none());
        scenario
            .end_pair(pair)
            .expect("an orderly end, and a digest");
    });
}

/// Ten seconds of what an idle host has to spare, so it is asked for, with the one above and with `--release`: the
/// promise is the release build's.
#[test]
#[ignore = "measures what an idle machine takes, which other tests would disturb"]
fn an_idle_guest_takes_little_of_both_hosts_and_of_the_log() {
    const SECONDS: u64 = 10;
    let test = "an_idle_guest_takes_little_of_both_hosts_and_of_the_log";
    let Some(tenant) = tenant("redis", test) else {
        return;
    };
    with_namespaces(test, || {
        let mut scenario = scenario(tenant, Sharing::Shared);
        let pair = scenario.pair(Host::A, Duration::ZERO).expect("a pair");
        std::thread::sleep(Duration::from_secs(3));
        let bytes = || {
            let status = pair.primary.status().expect("a status");
            status["counters"]["vcpu"]["bytes"]
                .as_u64()
                .expect("a number")
        };
        let sides = [pair.primary.id(), pair.backup.id()];
        let (log, ran) = (bytes(), sides.map(ticks));
        std::thread::sleep(Duration::from_secs(SECONDS));
        let megabits = (bytes() - log) as f64 * 8.0 / 1e6 / SECONDS as f64;
        // A hundred ticks a second: sysconf(_SC_CLK_TCK) is that on every x86-64 Linux.
        let percent = |index: usize| (ticks(sides[index]) - ran[index]) as f64 / SECONDS as f64;
        let (primary, backup) = (percent(0), percent(1));
        println!(
            "primary {primary:.1} %, backup {backup:.1} % of a core, log {megabits:.3} Mbit/s"
        );
        assert!(primary < 5.0, "primary: {primary} % of a core");
        assert!(backup < 5.0, "backup: {backup} % of a core");
        assert!(megabits < 0.2, "log: {megabits} Mbit/s");
    });
}

/// Processor time that a process has used, clock ticks: fields 14 and 15 of proc_pid_stat(5).
fn ticks(process: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let behind_name = stat.rsplit_once(')').expect("a name").1;
    let fields: Vec<_> = behind_name.split_whitespace().collect();
    let number = |index: usize| fields[index].parse::<u64>().expect("a number");
    number(11) + number(12)
}
