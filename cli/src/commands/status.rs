//! `lockstep status`: asks a running process how it is.

use clap::Args;
use lockstep_vmm::host::status_socket::{self, StatusError};
use serde_json::Value;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Arguments of `lockstep status`.
#[derive(Debug, Args)]
pub struct StatusArguments {
    /// The process's status socket: what it was given with `--status`
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// Asks, and prints the answer.
///
/// # Errors
/// Nobody answers.
pub fn status(arguments: &StatusArguments) -> Result<(), StatusError> {
    let answer = status_socket::query(&arguments.socket, PATIENCE)?;
    if arguments.json {
        println!("{answer}");
    } else {
        print!("{}", lines(&answer));
    }
    Ok(())
}

/// One line for each value, under the path of its names; what is not there is left out.
fn lines(answer: &Value) -> String {
    let mut rows = Vec::new();
    flatten("", answer, &mut rows);
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<width$}  {value}");
    }
    text
}

fn flatten(prefix: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                let path = if prefix.is_empty() {
                    name.clone()
                } else {
                    format!("{prefix}.{name}")
                };
                flatten(&path, value, rows);
            }
        }
        Value::Null => {}
        Value::String(text) => rows.push((prefix.to_owned(), text.clone())),
        other => rows.push((prefix.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::lines;
    use serde_json::json;

    #[test]
    fn an_answer_is_shown_a_value_a_line_and_what_is_absent_is_left_out() {
        let answer = json!({"role": "backup", "failover": null, "channel": {"lag_ns": 7}});
        assert_eq!(
            lines(&answer),
            "channel.lag_ns  7\nrole            backup\n"
        );
    }
}
