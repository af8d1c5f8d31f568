//! Reading and writing knobs in [`Settings`], by name.

use super::{Knob, KnobError, TABLE, find};
use lockstep_vmm::settings::Settings;
use serde_json::Value;

/// The settings as serde sees them: an object of groups, each an object of fields.
pub(super) fn tree(settings: &Settings) -> Value {
    // Integers, booleans and words in structures: nothing in it that JSON cannot say.
    serde_json::to_value(settings).unwrap_or_default()
}

/// The value of `knob` in `settings`; [`Value::Null`] if they do not have it.
#[must_use]
pub fn get(settings: &Settings, knob: &Knob) -> Value {
    let (group, field) = knob.path();
    tree(settings)[group][field].clone()
}

/// Turns the knob called `name` to what `text` says, as on the command line.
///
/// Only this knob is looked at. Ask [`check`] once all are set.
///
/// # Errors
/// No such knob, or it cannot have that value. `settings` are then as before.
pub fn set(settings: &mut Settings, name: &str, text: &str) -> Result<(), KnobError> {
    let knob = find(name)?;
    assign(settings, knob, knob.parse(text)?)
}

/// Turns `knob` to `value`.
pub(super) fn assign(settings: &mut Settings, knob: &Knob, value: Value) -> Result<(), KnobError> {
    let value = knob.admit(value)?;
    let (group, field) = knob.path();
    let mut tree = tree(settings);
    tree[group][field] = value;
    *settings = serde_json::from_value(tree).map_err(|source| KnobError::Diverged {
        knob: knob.name,
        source,
    })?;
    Ok(())
}

/// Whether every knob is within its range, and whether they go together. For settings that came
/// another way than through this module, which has looked already.
///
/// # Errors
/// The first that is not, or does not.
pub fn check(settings: &Settings) -> Result<(), KnobError> {
    for knob in TABLE {
        knob.admit(get(settings, knob))?;
    }
    let failure = &settings.failure;
    // One lost datagram must not look like a dead host.
    let interval = failure.heartbeat_interval_ms;
    at_least(
        "failure.heartbeat-timeout-ms",
        failure.heartbeat_timeout_ms,
        interval.saturating_mul(2),
        || {
            format!(
                "failure.heartbeat-interval-ms is {interval}, and one heartbeat lost on the way \
                 must not make a peer dead"
            )
        },
    )?;
    let delay = settings.channel.ack_delay_us;
    at_least(
        "failure.stall-timeout-ms",
        failure.stall_timeout_ms,
        delay.div_ceil(1000).saturating_mul(2),
        || {
            format!(
                "channel.ack-delay-us is {delay}, and an acknowledgement that is only delayed must \
                 not look like a stalled peer"
            )
        },
    )
}

fn at_least(
    knob: &'static str,
    found: u32,
    least: u32,
    because: impl FnOnce() -> String,
) -> Result<(), KnobError> {
    if found >= least {
        return Ok(());
    }
    Err(KnobError::Together {
        knob,
        found: found.into(),
        least: least.into(),
        because: because(),
    })
}
