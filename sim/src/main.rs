//! `lockstep-sim`: replays a seed, or looks for one that breaks a rule.

use std::process::ExitCode;

use lockstep_sim::disk::{self, DiskSabotage};
use lockstep_sim::{Options, run};

const USAGE: &str = "usage: lockstep-sim --seed N [--trace] [--sabotage NAME]
       lockstep-sim --from N --count N [--sabotage NAME]
       lockstep-sim --disk ...: disks under failover instead of the whole

  --seed N         run this seed and say what came of it
  --trace          print everything that happens
  --from N         first seed of a series (default 0)
  --count N        number of seeds
  --sabotage NAME  make a mistake on purpose, to see it caught";

#[derive(Default)]
struct Arguments {
    seed: Option<u64>,
    from: u64,
    count: u64,
    options: Options,
    disk: bool,
    sabotage: Option<String>,
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    while let Some(name) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{name} needs a value"));
        let number = |text: String| {
            text.parse()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        match name.as_str() {
            "--seed" => parsed.seed = Some(number(value()?)?),
            "--from" => parsed.from = number(value()?)?,
            "--count" => parsed.count = number(value()?)?,
            "--trace" => parsed.options.trace = true,
            "--disk" => parsed.disk = true,
            "--sabotage" => parsed.sabotage = Some(value()?),
            other => return Err(format!("unknown argument {other:?}\n{USAGE}")),
        }
    }
    if let (Some(name), false) = (&parsed.sabotage, parsed.disk) {
        parsed.options.sabotage = name.parse()?;
    }
    if parsed.seed.is_none() && parsed.count == 0 {
        return Err(USAGE.to_owned());
    }
    Ok(parsed)
}

/// Runs one seed: what came of it, or what it broke.
fn run_one(seed: u64, arguments: &Arguments) -> Result<String, String> {
    if !arguments.disk {
        let outcome = run(seed, arguments.options);
        return outcome
            .map(|outcome| format!("{outcome:?}"))
            .map_err(|failure| failure.to_string());
    }
    let sabotage = match &arguments.sabotage {
        Some(name) => name.parse()?,
        None => DiskSabotage::None,
    };
    disk::run(seed, sabotage, arguments.options.trace)
        .map(|outcome| format!("{outcome:?}"))
        .map_err(|violation| violation.to_string())
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.from..arguments.from + arguments.count,
    };
    let (mut broken, cases) = (0, seeds.end - seeds.start);
    for seed in seeds {
        match run_one(seed, &arguments) {
            Ok(outcome) if arguments.seed.is_some() => println!("seed {seed}: {outcome}"),
            Ok(_) => {}
            Err(failure) => {
                eprintln!("{failure}");
                broken += 1;
            }
        }
    }
    println!("{cases} cases, {broken} broke a rule");
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
