//! The clients that check databases, against databases that keep their word, lie and die.

mod database_servers;

use database_servers::{PostgresqlServer, SqliteServer};
use lockstep_bench::load::{Arrivals, Pace};
use lockstep_bench::postgresql::Postgresql;
use lockstep_bench::sql::{Session, SqlClient, SqlConfig, SqlError};
use lockstep_bench::sqlite::Sqlite;
use std::net::SocketAddr;
use std::time::Duration;

fn config(target: SocketAddr) -> SqlConfig {
    SqlConfig {
        connections: 4,
        accounts: 20,
        checkpoint_every: Some(Duration::from_millis(100)),
        patience: Duration::from_secs(10),
        ..SqlConfig::new(target)
    }
}

fn ready<S: Session>(config: SqlConfig) -> SqlClient<S> {
    let mut client = SqlClient::connect(config).expect("it listens");
    client.prepare().expect("it makes tables");
    client
}

/// Both paces, two runs; the verdict's number of checks.
fn passes<S: Session>(target: SocketAddr) -> u64 {
    let mut checked = 0;
    let open = Pace::Open {
        rate: 200.0,
        arrivals: Arrivals::Poisson,
    };
    for pace in [open, Pace::Closed] {
        let mut client = ready::<S>(SqlConfig {
            pace,
            ..config(target)
        });
        for _ in 0..2 {
            let report = client.run(Duration::from_millis(400)).expect("a run");
            assert_eq!(
                (report.errors, report.connections_lost, report.unsent),
                (0, 0, 0),
                "{report:?}"
            );
            assert_eq!(report.answered, report.requests);
            assert!(
                report.acknowledged_writes > 10 && report.acknowledged_writes < report.answered
            );
            assert_eq!(report.ended_early, None);
        }
        let verdict = client.verify();
        assert!(verdict.passed(), "{verdict}");
        assert!(verdict.ledger.acknowledged_writes > 20, "{verdict}");
        checked = verdict.checked;
    }
    checked
}

/// What `lie` does to the tables behind the client's back, the verdict tells with `says`.
fn finds<S: Session>(target: SocketAddr, lie: impl FnOnce(), says: &str) {
    let mut client = ready::<S>(SqlConfig {
        pace: Pace::Closed,
        ..config(target)
    });
    client.run(Duration::from_millis(200)).expect("a run");
    lie();
    let verdict = client.verify();
    assert!(!verdict.passed(), "it was believed: {verdict}");
    assert!(verdict.to_string().contains(says), "{verdict}");
}

const LIES: [(&str, &str); 4] = [
    (
        "DELETE FROM transfers WHERE id = 3",
        "transfer 3 was acknowledged and is gone",
    ),
    (
        "UPDATE accounts SET balance = balance + 1 WHERE id = 7",
        "account 7 holds",
    ),
    (
        "UPDATE transfers SET note = 'torn' WHERE id = 2",
        "a transfer is there as",
    ),
    (
        "INSERT INTO transfers VALUES (1000000, 1, 2, 3, 'x')",
        "nobody asked for it",
    ),
];

#[test]
fn the_real_postgresql_passes_and_amcheck_looks_at_every_index() {
    let test = "the_real_postgresql_passes_and_amcheck_looks_at_every_index";
    let Some(server) = PostgresqlServer::start(test) else {
        return;
    };
    // Three of ours, two tables, and those of the catalogs.
    assert!(passes::<Postgresql>(server.address) > 100);
}

#[test]
fn the_real_sqlite_passes() {
    let Some(server) = SqliteServer::start("the_real_sqlite_passes") else {
        return;
    };
    assert_eq!(passes::<Sqlite>(server.address), 1);
}

#[test]
fn what_a_database_forgot_or_made_up_is_found_and_told() {
    let test = "what_a_database_forgot_or_made_up_is_found_and_told";
    if let Some(server) = PostgresqlServer::start(test) {
        for (lie, says) in LIES {
            finds::<Postgresql>(server.address, || server.execute(lie), says);
        }
    }
    if let Some(server) = SqliteServer::start(test) {
        for (lie, says) in LIES {
            finds::<Sqlite>(server.address, || server.execute(lie), says);
        }
    }
}

#[test]
fn a_database_that_dies_costs_every_connection_and_its_tables_stay_unread() {
    let test = "a_database_that_dies_costs_every_connection_and_its_tables_stay_unread";
    let Some(mut server) = PostgresqlServer::start(test) else {
        return;
    };
    let mut client = ready::<Postgresql>(config(server.address));
    let report = std::thread::scope(|scope| {
        let running = scope.spawn(|| client.run(Duration::from_secs(20)));
        std::thread::sleep(Duration::from_millis(300));
        server.kill();
        running.join().expect("no panic").expect("a run")
    });
    assert_eq!(report.connections_lost, 5, "{:?}", report.losses);
    assert_eq!(
        report.ended_early.as_deref(),
        Some("every connection is lost")
    );
    assert!(report.unsent > 0 && report.length < Duration::from_secs(15));
    let verdict = client.verify();
    assert!(!verdict.passed() && verdict.ledger.unread_keys > 0);
}

#[test]
fn settings_and_servers_that_cannot_work_are_named() {
    let nobody: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let says = |change: fn(&mut SqlConfig)| {
        let mut config = config(nobody);
        change(&mut config);
        SqlClient::<Sqlite>::connect(config)
            .expect_err("refused")
            .to_string()
    };
    assert!(says(|config| config.connections = 0).contains("connections is 0; use 1 to 64"));
    assert!(says(|config| config.accounts = 1).contains("accounts is 1; use 2"));
    assert!(says(|config| config.checkpoint_every = Some(Duration::ZERO)).contains("use 10"));
    assert!(
        says(|config| config.pace = Pace::Open {
            rate: f64::NAN,
            arrivals: Arrivals::Uniform,
        })
        .contains("rate is NaN")
    );
    assert!(says(|_| {}).contains("is the database listening there?"));
    let error = SqlClient::<Postgresql>::connect(config(nobody)).expect_err("nobody is there");
    assert!(matches!(error, SqlError::Connect { .. }), "{error}");
}
