//! PostgreSQL and SQLite in an unmodified Debian, their data on a disk that two hosts share, or on one of each's
//! own, losing their primary under write load: real packages, real connections, real signals.

mod debian_pair;

use debian_pair::{scenario, tenant};
use lockstep_bench::load::{Arrivals, Pace};
use lockstep_bench::sql::SqlConfig;
use lockstep_cli::scenario::{Fault, Host, Loss, Scenario, Workload};
use lockstep_perf::not_run;
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::host::namespaces::GUEST_ADDRESS;
use lockstep_vmm::host::namespaces::trial::with_namespaces;
use std::time::{Duration, Instant};

fn config(port: u16) -> SqlConfig {
    SqlConfig {
        pace: Pace::Open {
            rate: 30.0,
            arrivals: Arrivals::Uniform,
        },
        ..SqlConfig::new((GUEST_ADDRESS, port).into())
    }
}

fn postgresql(seed: u64) -> Workload {
    Workload::Postgresql(config(5432)).seeded(seed)
}

fn sqlite(seed: u64) -> Workload {
    Workload::Sqlite(config(5433)).seeded(seed)
}

/// Loses the primary `rounds` times at moments that differ, and prints what the client waited.
fn lose(
    test: &'static str,
    recipe: &str,
    workload: fn(u64) -> Workload,
    rounds: u64,
    fault: Fault,
    sharing: Sharing,
) {
    // Before the network is a namespace's, which has no way out.
    let Some(tenant) = tenant(recipe, test) else {
        return;
    };
    with_namespaces(test, || {
        let mut scenario = scenario(tenant, sharing);
        for round in 1..=rounds {
            let began = Instant::now();
            let loss = Loss {
                fault,
                // Every 73 ms from 300 ms on, so that 20 rounds meet different moments of a checkpoint.
                moment: Duration::from_millis(300 + 73 * (round - 1)),
                length: Duration::from_millis(2500),
                primary_on: if round % 2 == 1 { Host::A } else { Host::B },
            };
            let found = scenario
                .lose_primary(&loss, workload(round), &mut |_| ())
                .unwrap_or_else(|error| panic!("round {round}: {error}"));
            println!(
                "round {round}: {} transactions acknowledged, {} lost, {} checks by the database, pgbench \
                 {:?}; the client waited {:.1} ms; {:.1} s in all",
                found.verification.acknowledged_writes,
                found.verification.lost_writes,
                found.verification.database_checks,
                found.pgbench,
                found.load.worst_gap.length.as_secs_f64() * 1e3,
                began.elapsed().as_secs_f64(),
            );
            assert_eq!(found.failures(), Vec::<String>::new(), "round {round}");
            assert!(found.verification.acknowledged_writes > 0);
            assert!(found.verification.database_checks > 0);
            assert_eq!(found.judgement.live_sides, 1);
            if recipe == "postgresql" && found.pgbench.is_none() {
                let why = "no pgbench in /usr/lib/postgresql/*/bin: apt-get install postgresql";
                not_run::report(&format!("{test} (beside pgbench)"), why);
            }
        }
    });
}

#[test]
fn sqlite_keeps_every_transaction_it_acknowledged_when_its_primary_is_killed() {
    let test = "sqlite_keeps_every_transaction_it_acknowledged_when_its_primary_is_killed";
    lose(test, "sqlite", sqlite, 1, Fault::Kill, Sharing::Shared);
}

#[test]
fn sqlite_keeps_every_transaction_on_disks_of_each_sides_own() {
    let test = "sqlite_keeps_every_transaction_on_disks_of_each_sides_own";
    lose(test, "sqlite", sqlite, 2, Fault::Kill, Sharing::Own);
}

/// Each side has a disk of its own. The primary is killed; what it wrote and its backup did not is made good when it
/// comes back as the backup, from what both have noted; both disks are then equal, and the roles change once more.
/// Asked for: `cargo test --release -p lockstep --test databases -- --ignored --nocapture`.
#[test]
#[ignore = "two boots and two failovers"]
fn own_disks_are_made_equal_again_after_a_failover_and_the_roles_change() {
    let test = "own_disks_are_made_equal_again_after_a_failover_and_the_roles_change";
    let Some(tenant) = tenant("sqlite", test) else {
        return;
    };
    with_namespaces(test, || {
        let mut scenario = scenario(tenant, Sharing::Own);
        let lose = |scenario: &mut Scenario, primary_on, seed| {
            let loss = Loss {
                fault: Fault::Kill,
                moment: Duration::from_millis(700),
                length: Duration::from_millis(2500),
                primary_on,
            };
            let found = scenario
                .lose_primary(&loss, sqlite(seed), &mut |_| ())
                .unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(found.failures(), Vec::<String>::new());
            assert!(found.verification.acknowledged_writes > 0);
        };
        lose(&mut scenario, Host::A, 1);

        scenario.keep_disks();
        let pair = scenario.pair(Host::B, Duration::ZERO).expect("a pair");
        let status = pair.primary.status().expect("a status");
        println!(
            "the former primary's disk was made equal: {}",
            status["resync"]
        );
        let [compared, differed] =
            ["compared", "differed"].map(|what| status["resync"][what].as_u64().expect(what));
        let blocks = std::fs::metadata(&scenario.own_disks()[0])
            .expect("a disk")
            .len()
            / (64 << 10);
        assert!(
            compared < blocks / 2 && differed <= compared,
            "{compared} of {blocks} blocks compared, {differed} differed"
        );
        let mut client = scenario.client(sqlite(2)).expect("a client");
        client.run(Duration::from_secs(1)).expect("answers");
        assert_eq!(scenario.check_at_rest().expect("an answer"), None);
        scenario.end_pair(pair).expect("an orderly end");
        let [a, b] = scenario
            .own_disks()
            .map(|disk| std::fs::read(disk).expect("a disk"));
        assert!(a == b, "the disks differ after an orderly end");

        scenario.keep_disks();
        lose(&mut scenario, Host::B, 3);
    });
}

/// Boots PostgreSQL once for each build of the program, which takes minutes in a debug build, so it is asked
/// for: `cargo test --release -p lockstep --test databases -- --ignored --nocapture`.
#[test]
#[ignore = "twenty failovers, and a boot"]
fn postgresql_keeps_every_transaction_it_acknowledged_through_twenty_kills() {
    let test = "postgresql_keeps_every_transaction_it_acknowledged_through_twenty_kills";
    lose(
        test,
        "postgresql",
        postgresql,
        20,
        Fault::Kill,
        Sharing::Shared,
    );
}

/// Asked for with the one above.
#[test]
#[ignore = "twenty failovers"]
fn sqlite_keeps_every_transaction_it_acknowledged_through_twenty_kills() {
    let test = "sqlite_keeps_every_transaction_it_acknowledged_through_twenty_kills";
    lose(test, "sqlite", sqlite, 20, Fault::Kill, Sharing::Shared);
}

/// A stopped primary comes back when the other side is live, and may not write to the disk that they share.
/// Asked for with those above.
#[test]
#[ignore = "ten failovers"]
fn a_primary_of_sqlite_that_was_stopped_and_resumed_tears_nothing_on_the_disk() {
    let test = "a_primary_of_sqlite_that_was_stopped_and_resumed_tears_nothing_on_the_disk";
    lose(test, "sqlite", sqlite, 10, Fault::Stop, Sharing::Shared);
}

/// The same, asked for as well.
#[test]
#[ignore = "ten failovers, and a boot"]
fn a_primary_of_postgresql_that_was_stopped_and_resumed_tears_nothing_on_the_disk() {
    let test = "a_primary_of_postgresql_that_was_stopped_and_resumed_tears_nothing_on_the_disk";
    lose(
        test,
        "postgresql",
        postgresql,
        10,
        Fault::Stop,
        Sharing::Shared,
    );
}
