//! A guest's data when nobody works on them: its service is stopped and has them checked, and the disk is
//! unmounted and its file system checked. By the guest itself, whose tools know the formats.

use super::{Scenario, ScenarioError};
use lockstep_vmm::host::namespaces::GUEST_ADDRESS;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The guest's control port: `guest/init/control.sh`.
const PORT: u16 = 9;
/// How long a check may say nothing.
const PATIENCE: Duration = Duration::from_secs(120);
/// Most lines of what it says.
const LINES_MOST: usize = 1000;

impl Scenario {
    /// Has the guest stop its service and check its data; what is wrong, in words. The machine is of no
    /// more use.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn check_at_rest(&self) -> Result<Option<String>, ScenarioError> {
        let said = self
            .topology
            .clients
            .run(|| ask("check"))?
            .map_err(ScenarioError::Control)?;
        // `ok`, or `failed` and why, behind all that the checks had to say.
        let ok = said.last().is_some_and(|verdict| verdict == "ok");
        Ok((!ok).then(|| format!("checked at rest: {}", said.join(" / "))))
    }
}

fn ask(word: &str) -> io::Result<Vec<String>> {
    let address = SocketAddr::from((GUEST_ADDRESS, PORT));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{word}\n").as_bytes())?;
    let mut said = Vec::new();
    for line in BufReader::new(stream).lines().take(LINES_MOST) {
        let line = line?;
        let last = line == "ok" || line.starts_with("failed");
        said.push(line);
        if last {
            return Ok(said);
        }
    }
    let why = format!("it ended in the middle, after {}", said.join(" / "));
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, why))
}
