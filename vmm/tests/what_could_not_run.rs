//! The last test binary of `cargo test --workspace` (cargo runs packages and their tests in the
//! order of their names): names and counts what this host could not run, and why.

use lockstep_perf::not_run;

fn main() {
    let Some(path) = not_run::file_of_this_run() else {
        println!(
            "{} is not set: nothing is known about tests that could not run",
            not_run::DIRECTORY
        );
        return;
    };
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    println!(
        "\nCould not run on this host: {} tests",
        text.lines().count()
    );
    for line in text.lines() {
        let (test, why) = line.split_once('\t').unwrap_or((line, ""));
        println!("  {test}: {why}");
    }
    // Read once: what is left of a run that ended earlier must not be counted with a later one.
    let _ = std::fs::remove_file(&path);
}
