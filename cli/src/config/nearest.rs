//! Turns "unknown field" into "did you mean".

/// The error as TOML's parser shows it (with line, column and the line itself), and behind it the
/// name that was probably meant.
pub(super) fn explain(error: &toml::de::Error) -> String {
    let shown = error.to_string();
    match suggestion(error.message()) {
        Some(nearest) => format!(
            "{}\nhelp: the nearest valid name is `{nearest}`",
            shown.trim_end()
        ),
        None => shown,
    }
}

/// serde says: unknown field (or variant) `x`, expected one of `a`, `b`.
fn suggestion(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") && !message.starts_with("unknown variant") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let found = quoted.next()?;
    quoted
        .min_by(|a, b| distance(found, a).total_cmp(&distance(found, b)))
        .map(str::to_owned)
}

/// Small where two names are alike; a blank, an underscore and a hyphen are.
fn distance(found: &str, valid: &str) -> f64 {
    let found = found.to_ascii_lowercase().replace(['_', ' '], "-");
    1.0 - strsim::jaro_winkler(&found, valid)
}
