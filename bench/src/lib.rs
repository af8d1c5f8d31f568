//! Suites that end in histograms and plots.
//!
//! A suite is a function that takes its options and a [`Report`](report::Report), measures, hands the
//! report every series, figure and promise, and returns. The report is a directory that anybody can
//! read without this program: percentile files and interval logs for HdrHistogram's tools, one
//! `summary.json`, and plots in SVG.
//!
//! House rules of a suite:
//! - What is compared is measured in one run, in short rounds that take turns ([`rounds`]), so that
//!   a busy minute of the host falls on all alike.
//! - Each round warms up and then forgets.
//! - Percentiles, never means. Open loops measure from the intended time.
//! - It runs small inside the tests, so that it does not rot.
//!
//! | module | measures |
//! |---|---|
//! | [`ring`] | the log ring beside other rings |
//! | [`channel`] | the logging channel |
//! | [`cpu`] | the software CPU beside QEMU: a kernel's boot, and bare loops |
//! | [`disk`] | the host's side of a disk beside `fio`, bounce buffers, and the output rule for writes |
//! | [`output_latency`] | what the output rule adds to a packet |
//! | [`load`] | is the client of the others: open-loop memcached over UDP, and echo |
//! | [`redis`] | is a client that checks: Redis over TCP, histories, linearizability |
//! | [`sql`] | is a client that checks: databases, every transaction looked for again |
//! | [`postgresql`], [`sqlite`] | are the databases that it knows |
//! | [`pingpong`] | is the yardstick: a bare TCP ping-pong |

pub mod channel;
pub mod cpu;
pub mod disk;
pub mod load;
pub mod output_latency;
pub mod pingpong;
pub mod postgresql;
pub mod redis;
pub mod report;
pub mod ring;
pub mod rounds;
pub mod sql;
pub mod sqlite;
