//! `lockstep switch`: a network for machines on a host where there is no tap to be had.

use clap::Args;
use lockstep_vmm::host::switch::{Switch, SwitchError};
use std::path::PathBuf;
use std::sync::mpsc;

/// Arguments of `lockstep switch`.
#[derive(Debug, Args)]
pub struct SwitchArguments {
    /// Where the switch listens: what `network.switch` in a VM configuration names
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Print what it has done, at its end, as JSON
    #[arg(long)]
    json: bool,
}

/// A switch could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum SwitchCommandError {
    /// It could not listen.
    #[error(transparent)]
    Switch(#[from] SwitchError),
    /// The thread that waits for the end could not be started.
    #[error("signals: {0}")]
    Signals(std::io::Error),
}

/// Switches until SIGINT or SIGTERM.
///
/// # Errors
/// See [`SwitchCommandError`].
pub fn switch(arguments: &SwitchArguments) -> Result<(), SwitchCommandError> {
    let (ended, end) = mpsc::channel();
    let tell = move || {
        // Nobody listens any more once the first signal was heard.
        let _ = ended.send(());
    };
    crate::signals::on_end(tell).map_err(SwitchCommandError::Signals)?;
    let switch = Switch::bind(&arguments.path)?;
    eprintln!("switching at {}", arguments.path.display());
    // The sender lives in the thread that waits for signals, which never ends.
    let _ = end.recv();
    let counters = switch.counters();
    if arguments.json {
        println!("{}", serde_json::json!(counters));
    } else {
        println!(
            "{} frames delivered, {} dropped, {} malformed, {} members refused",
            counters.delivered, counters.dropped, counters.malformed, counters.refused
        );
    }
    Ok(())
}
