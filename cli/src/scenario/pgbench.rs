//! PostgreSQL's own benchmark as a second client of it: written by others, and so not by who believes in
//! failovers. It gives up at the first connection that is lost and counts transactions that failed.

use super::process::{die_with_parent, tail};
use super::{Scenario, ScenarioError};
use lockstep_vmm::host::namespaces::GUEST_ADDRESS;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// Where Debian has it, below a directory for each version.
const INSTALLED: &str = "/usr/lib/postgresql";

/// Connections, and transactions a second on all of them: it is there to be disturbed, not to load.
const CONNECTIONS: &str = "2";
const RATE: &str = "10";

/// The program, if this host has it.
pub(super) fn program() -> Option<PathBuf> {
    let versions = std::fs::read_dir(INSTALLED).ok()?;
    let mut programs: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin/pgbench")))
        .filter(|program| program.exists())
        .collect();
    programs.sort();
    programs.pop()
}

/// A run of it.
#[derive(Debug)]
pub(super) struct Pgbench(Option<Child>);

impl Drop for Pgbench {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Scenario {
    /// Makes its tables, and starts it for `length` and what is missing to a whole second.
    ///
    /// # Errors
    /// It cannot be started, or not make its tables.
    pub(super) fn pgbench(
        &self,
        program: &Path,
        length: Duration,
    ) -> Result<Pgbench, ScenarioError> {
        // Drop, create, generate in the server, primary keys.
        let made = self
            .pgbench_command(program, &["-i", "-q", "-I", "dtGp"])?
            .output()
            .map_err(files)?;
        if !made.status.success() {
            return Err(files(io::Error::other(words(&made))));
        }
        let seconds = length.as_secs() + 1;
        let seconds = seconds.to_string();
        let arguments = ["-n", "-c", CONNECTIONS, "-R", RATE, "-T", &seconds];
        let child = self
            .pgbench_command(program, &arguments)?
            .spawn()
            .map_err(files)?;
        Ok(Pgbench(Some(child)))
    }

    fn pgbench_command(
        &self,
        program: &Path,
        arguments: &[&str],
    ) -> Result<Command, ScenarioError> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .args([
                "-h",
                &GUEST_ADDRESS.to_string(),
                "-U",
                "postgres",
                "postgres",
            ])
            .env("PGOPTIONS", "-c client_min_messages=warning")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        die_with_parent(&mut command);
        self.topology.clients.place(&mut command)?;
        Ok(command)
    }
}

impl Pgbench {
    /// Waits for its end: transactions that it counts, or what is wrong, in words.
    pub(super) fn end(mut self) -> Result<Result<u64, String>, ScenarioError> {
        let Some(child) = self.0.take() else {
            return Ok(Ok(0));
        };
        let output = child.wait_with_output().map_err(files)?;
        let said = String::from_utf8_lossy(&output.stdout);
        let processed = number(&said, "number of transactions actually processed: ");
        let failed = number(&said, "number of failed transactions: ");
        Ok(match (output.status.success(), processed, failed) {
            (true, Some(processed), Some(0)) if processed > 0 => Ok(processed),
            _ => Err(format!("pgbench: {}", words(&output))),
        })
    }
}

/// The number behind `label`.
fn number(said: &str, label: &str) -> Option<u64> {
    let rest = said.split_once(label)?.1;
    let end = rest
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn words(output: &Output) -> String {
    let said = [tail(&output.stdout), tail(&output.stderr)].join("\n");
    format!("{}; it said:\n{said}", output.status)
}

fn files(source: io::Error) -> ScenarioError {
    ScenarioError::Files {
        what: "running pgbench",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn its_counts_are_read_and_those_of_other_lines_are_not() {
        // As version 15 prints it; older ones count no failures.
        let said = "scaling factor: 1\nnumber of transactions actually processed: 137\n\
                    number of failed transactions: 0 (0.000%)\nlatency average = 2 ms\n";
        let of = |label| number(said, label);
        assert_eq!(of("number of transactions actually processed: "), Some(137));
        assert_eq!(of("number of failed transactions: "), Some(0));
        assert_eq!(of("number of retries: "), None);
        assert_eq!(of("latency average"), None);
    }
}
