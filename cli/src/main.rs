//! The program `lockstep`; everything is in the library, where tests reach it.

fn main() -> std::process::ExitCode {
    lockstep_cli::main()
}
