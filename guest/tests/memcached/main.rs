//! The key-value service against memcached's protocol and against a model of it.

mod memory;
mod model;
#[path = "../native/mod.rs"]
mod native;

use lockstep_guest::{KEY_MOST, VALUE_MOST};
use native::{Config, Tenant};

/// Reads a number out of the tenant's statistics.
fn statistic(tenant: &mut Tenant, name: &str) -> u64 {
    let text = String::from_utf8(tenant.ask(b"stats\r\n").unwrap()).unwrap();
    let prefix = format!("STAT {name} ");
    let line = text.lines().find(|line| line.starts_with(&prefix)).unwrap();
    line[prefix.len()..].parse().unwrap()
}

/// Asks and answers in turn; the text of each must be exactly that.
fn converse(tenant: &mut Tenant, turns: &[(&str, &str)]) {
    for (question, answer) in turns {
        let got = tenant.ask(question.as_bytes()).unwrap_or_default();
        assert_eq!(
            String::from_utf8_lossy(&got),
            *answer,
            "answering {question:?}"
        );
    }
}

#[test]
fn commands_answer_as_memcached_does() {
    let Some(mut tenant) = Tenant::start("commands_answer_as_memcached_does", Config::default())
    else {
        return;
    };
    converse(
        &mut tenant,
        &[
            ("get a\r\n", "END\r\n"),
            ("set a 5 0 3\r\nabc\r\n", "STORED\r\n"),
            ("get a\r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("gets a\r\n", "VALUE a 5 3 1\r\nabc\r\nEND\r\n"),
            ("get a\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("get  a  \r\n", "VALUE a 5 3\r\nabc\r\nEND\r\n"),
            ("add a 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
            ("replace b 0 0 1\r\nx\r\n", "NOT_STORED\r\n"),
            ("add b 4294967295 0 0\r\n\r\n", "STORED\r\n"),
            (
                "get b a nothing\r\n",
                "VALUE b 4294967295 0\r\n\r\nVALUE a 5 3\r\nabc\r\nEND\r\n",
            ),
            ("replace b 0 0 1\r\n7\r\n", "STORED\r\n"),
            ("cas b 0 0 1 2\r\n8\r\n", "EXISTS\r\n"),
            ("cas b 0 0 1 3\r\n8\r\n", "STORED\r\n"),
            ("cas c 0 0 1 3\r\n8\r\n", "NOT_FOUND\r\n"),
            ("incr b 3\r\n", "11\r\n"),
            ("decr b 2\r\n", "9\r\n"),
            ("get b\r\n", "VALUE b 0 1\r\n9\r\nEND\r\n"),
            ("decr b 10\r\n", "0\r\n"),
            (
                "incr b 18446744073709551615\r\n",
                "18446744073709551615\r\n",
            ),
            ("incr b 2\r\n", "1\r\n"),
            ("incr nothing 1\r\n", "NOT_FOUND\r\n"),
            (
                "incr a 1\r\n",
                "CLIENT_ERROR cannot increment or decrement non-numeric value\r\n",
            ),
            (
                "incr b x\r\n",
                "CLIENT_ERROR invalid numeric delta argument\r\n",
            ),
            (
                "incr b 18446744073709551616\r\n",
                "CLIENT_ERROR invalid numeric delta argument\r\n",
            ),
            ("touch b 0\r\n", "TOUCHED\r\n"),
            ("touch nothing 0\r\n", "NOT_FOUND\r\n"),
            ("delete b\r\n", "DELETED\r\n"),
            ("delete b\r\n", "NOT_FOUND\r\n"),
            ("version\r\n", "VERSION test\r\n"),
        ],
    );
    tenant.finish();
}

#[test]
fn malformed_requests_are_told_what_is_wrong_and_change_nothing() {
    let name = "malformed_requests_are_told_what_is_wrong_and_change_nothing";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    const BAD_LINE: &str = "CLIENT_ERROR bad command line format\r\n";
    const BAD_DATA: &str = "CLIENT_ERROR bad data chunk\r\n";
    let longest = "k".repeat(KEY_MOST);
    let too_long = "k".repeat(KEY_MOST + 1);
    let too_large = format!("set a 0 0 {}\r\n", VALUE_MOST + 1);
    let turns = [
        ("set a 0 0 1\r\n1\r\n".to_owned(), "STORED\r\n"),
        ("\r\n".to_owned(), "ERROR\r\n"),
        ("get\r\n".to_owned(), "ERROR\r\n"),
        ("get ".to_owned(), "ERROR\r\n"),
        ("fetch a\r\n".to_owned(), "ERROR\r\n"),
        ("gett a\r\n".to_owned(), "ERROR\r\n"),
        ("version".to_owned(), "ERROR\r\n"),
        ("verylongcommand a\r\n".to_owned(), "ERROR\r\n"),
        (format!("get {longest}\r\n"), "END\r\n"),
        (format!("get {too_long}\r\n"), BAD_LINE),
        (format!("set {too_long} 0 0 1\r\nx\r\n"), BAD_LINE),
        ("get a\tb\r\n".to_owned(), BAD_LINE),
        ("set a\r\n".to_owned(), "ERROR\r\n"),
        ("set a 0 0\r\nx\r\n".to_owned(), "ERROR\r\n"),
        ("set a x 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a -1 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 4294967296 0 1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 -1\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1x\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1 norepl\r\nx\r\n".to_owned(), BAD_LINE),
        ("set a 0 0 1 noreply x\r\nx\r\n".to_owned(), BAD_LINE),
        ("cas a 0 0 1\r\nx\r\n".to_owned(), "ERROR\r\n"),
        ("set a 0 0 2\r\nx\r\n".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nxyz\r\n".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nx".to_owned(), BAD_DATA),
        ("set a 0 0 1\r\nx\r".to_owned(), BAD_DATA),
        (too_large, "SERVER_ERROR object too large for cache\r\n"),
        ("delete\r\n".to_owned(), "ERROR\r\n"),
        ("delete a 0\r\n".to_owned(), BAD_LINE),
        ("incr a\r\n".to_owned(), "ERROR\r\n"),
        // What follows a malformed request is not executed: it may be data.
        ("bogus a 0 0 10\r\ndelete a\r\n\r\n".to_owned(), "ERROR\r\n"),
        ("get a\r\n".to_owned(), "VALUE a 0 1\r\n1\r\nEND\r\n"),
    ];
    let turns: Vec<(&str, &str)> = turns
        .iter()
        .map(|(question, answer)| (question.as_str(), *answer))
        .collect();
    converse(&mut tenant, &turns);
    tenant.finish();
}

#[test]
fn noreply_is_silent_and_a_datagram_may_hold_several_commands() {
    let name = "noreply_is_silent_and_a_datagram_may_hold_several_commands";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    assert_eq!(
        tenant.ask(b"set a 0 0 1 noreply\r\n1\r\nincr a 4 noreply\r\n"),
        None
    );
    assert_eq!(
        tenant.ask(b"touch a 0 noreply\r\ndelete b noreply\r\n"),
        None
    );
    // A well-formed request that fails is silent, too.
    assert_eq!(
        tenant.ask(b"set t 0 0 1 noreply\r\nx\r\nincr t 1 noreply\r\n"),
        None
    );
    converse(
        &mut tenant,
        &[
            (
                "set b 0 0 1 noreply\r\n2\r\nget a b\r\nincr b 1\r\n",
                "VALUE a 0 1\r\n5\r\nVALUE b 0 1\r\n2\r\nEND\r\n3\r\n",
            ),
            // A key may be called noreply.
            (
                "set noreply 0 0 1\r\nx\r\ndelete noreply noreply\r\nget noreply\r\n",
                "STORED\r\nEND\r\n",
            ),
        ],
    );
    tenant.finish();
}

#[test]
fn items_live_at_least_as_long_as_asked_and_not_two_seconds_longer() {
    let name = "items_live_at_least_as_long_as_asked_and_not_two_seconds_longer";
    let config = Config {
        epoch: 1_800_000_000,
        ..Config::default()
    };
    let Some(mut tenant) = Tenant::start(name, config) else {
        return;
    };
    tenant.set_uptime(100);
    converse(
        &mut tenant,
        &[
            ("set a 0 10 1\r\n1\r\n", "STORED\r\n"),
            ("set forever 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("set absolute 0 1800000150 1\r\n1\r\n", "STORED\r\n"),
            (
                "set past 0 1800000099 1\r\n1\r\nget past\r\n",
                "STORED\r\nEND\r\n",
            ),
            (
                "set touched 0 1 1\r\n1\r\ntouch touched 1000\r\n",
                "STORED\r\nTOUCHED\r\n",
            ),
            (
                "set gone 0 0 1\r\n1\r\nset gone 0 -1 1\r\n1\r\nget gone\r\n",
                "STORED\r\nSTORED\r\nEND\r\n",
            ),
        ],
    );
    tenant.set_uptime(110);
    converse(&mut tenant, &[("get a\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n")]);
    // Counting keeps the time that was set.
    converse(&mut tenant, &[("incr a 1\r\n", "2\r\n")]);
    tenant.set_uptime(111);
    converse(
        &mut tenant,
        &[
            ("get a\r\n", "END\r\n"),
            ("add a 0 0 1\r\n3\r\n", "STORED\r\n"),
        ],
    );
    tenant.set_uptime(149);
    converse(
        &mut tenant,
        &[("get absolute\r\n", "VALUE absolute 0 1\r\n1\r\nEND\r\n")],
    );
    tenant.set_uptime(150);
    converse(&mut tenant, &[("get absolute\r\n", "END\r\n")]);
    tenant.set_uptime(1000);
    converse(
        &mut tenant,
        &[("get touched\r\n", "VALUE touched 0 1\r\n1\r\nEND\r\n")],
    );
    tenant.set_uptime(u32::MAX);
    converse(
        &mut tenant,
        &[(
            "get touched forever\r\n",
            "VALUE forever 0 1\r\n1\r\nEND\r\n",
        )],
    );
    tenant.finish();
}

#[test]
fn an_expiry_that_no_clock_can_measure_is_refused() {
    let name = "an_expiry_that_no_clock_can_measure_is_refused";
    const REFUSED: &str = "SERVER_ERROR no clock for this expiry\r\n";
    let Some(mut tenant) = Tenant::start(
        name,
        Config {
            clock: false,
            ..Config::default()
        },
    ) else {
        return;
    };
    converse(
        &mut tenant,
        &[
            ("set a 0 1 1\r\n1\r\n", REFUSED),
            ("set a 0 0 1\r\n1\r\n", "STORED\r\n"),
            ("touch a 10\r\n", REFUSED),
            ("set b 0 -1 1\r\n1\r\n", "STORED\r\n"),
            ("get a b\r\n", "VALUE a 0 1\r\n1\r\nEND\r\n"),
        ],
    );
    tenant.finish();
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    converse(&mut tenant, &[("set a 0 1800000000 1\r\n1\r\n", REFUSED)]);
    tenant.finish();
}

#[test]
fn a_long_answer_is_cut_into_datagrams_and_one_too_long_is_refused() {
    let name = "a_long_answer_is_cut_into_datagrams_and_one_too_long_is_refused";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    let value = "v".repeat(VALUE_MOST);
    for key in 0..10 {
        let set = format!("set {key} 0 0 {VALUE_MOST}\r\n{value}\r\n");
        assert_eq!(tenant.ask(set.as_bytes()).unwrap(), b"STORED\r\n");
    }
    let keys: Vec<String> = (0..10).map(|key| key.to_string()).collect();
    let expected: String = keys
        .iter()
        .map(|key| format!("VALUE {key} 0 {VALUE_MOST}\r\n{value}\r\n"))
        .chain(["END\r\n".to_owned()])
        .collect();
    let answer = tenant
        .ask(format!("get {}\r\n", keys.join(" ")).as_bytes())
        .unwrap();
    assert_eq!(String::from_utf8(answer).unwrap(), expected);
    let twice = format!("get {} {}\r\n", keys.join(" "), keys.join(" "));
    assert_eq!(
        tenant.ask(twice.as_bytes()).unwrap(),
        b"SERVER_ERROR response too large\r\n"
    );
    tenant.finish();
}

#[test]
fn a_request_in_several_datagrams_is_refused() {
    let name = "a_request_in_several_datagrams_is_refused";
    let Some(mut tenant) = Tenant::start(name, Config::default()) else {
        return;
    };
    for header in [
        [0, 1, 0, 0, 0, 2, 0, 0],
        [0, 1, 0, 1, 0, 1, 0, 0],
        [0, 1, 0, 0, 0, 0, 0, 0],
    ] {
        let mut payload = header.to_vec();
        payload.extend_from_slice(b"set a 0 0 1\r\n1\r\n");
        let answers = tenant.datagram(lockstep_guest::KV_PORT, &payload);
        assert_eq!(answers.len(), 1);
        assert_eq!(
            &answers[0][8..],
            b"SERVER_ERROR multi-packet request not supported\r\n"
        );
    }
    assert_eq!(tenant.ask(b"get a\r\n").unwrap(), b"END\r\n");
    tenant.finish();
}
