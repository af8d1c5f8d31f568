//! Knobs as arguments of a command.

use super::assign::assign;
use super::domain::plain;
use super::{Knob, KnobError, TABLE, check};
use clap::builder::ValueParser;
use clap::{Arg, ArgMatches, Command};
use lockstep_vmm::settings::Settings;
use serde_json::Value;

/// The heading under which `--help` lists the knobs. `-h` leaves them out.
pub const HEADING: &str = "Knobs";

/// Adds an argument for every knob.
#[must_use]
pub fn arguments(command: Command) -> Command {
    command.args(TABLE.iter().map(argument))
}

fn argument(knob: &'static Knob) -> Arg {
    let help = format!(
        "{} [{}] [default: {}]",
        knob.meaning,
        knob.allowed(),
        plain(&knob.default())
    );
    Arg::new(knob.name)
        .long(knob.argument)
        .value_name("VALUE")
        .help(help)
        .help_heading(HEADING)
        .hide_short_help(true)
        .allow_negative_numbers(true)
        .value_parser(ValueParser::new(move |text: &str| knob.parse(text)))
}

/// `base`, with the knobs that the command line turned. `matches` are those of a command that
/// [`arguments`] was used on.
///
/// # Errors
/// Knobs that do not go together ([`check`]).
///
/// # Panics
/// `matches` hold something else under a knob's name: the program's mistake, not the user's.
pub fn settings_from(matches: &ArgMatches, base: Settings) -> Result<Settings, KnobError> {
    let mut settings = base;
    for knob in TABLE {
        if let Some(value) = matches.get_one::<Value>(knob.name) {
            assign(&mut settings, knob, value.clone())?;
        }
    }
    check(&settings)?;
    Ok(settings)
}
