//! `lockstep-sim`: replays a seed, or looks for one that breaks a rule.

use std::process::ExitCode;

use lockstep_sim::{Options, run};

const USAGE: &str = "usage: lockstep-sim --seed N [--trace] [--sabotage NAME]
       lockstep-sim --from N --count N [--sabotage NAME]

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
            "--sabotage" => parsed.options.sabotage = value()?.parse()?,
            other => return Err(format!("unknown argument {other:?}\n{USAGE}")),
        }
    }
    if parsed.seed.is_none() && parsed.count == 0 {
        return Err(USAGE.to_owned());
    }
    Ok(parsed)
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
    let mut broken = 0;
    for seed in seeds {
        match run(seed, arguments.options) {
            Ok(outcome) if arguments.seed.is_some() => println!("seed {seed}: {outcome:?}"),
            Ok(_) => {}
            Err(failure) => {
                eprintln!("{failure}");
                broken += 1;
            }
        }
    }
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
