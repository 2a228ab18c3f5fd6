//! The program `picket`: `picket serve` is the controller, every other subcommand is a client of its API.

use std::process::ExitCode;

use picket_controller::{cli, serve};

fn main() -> ExitCode {
    match cli::parse(std::env::args_os()) {
        Ok(cli::Action::Serve(args)) => serve::main(&args).into(),
        Ok(cli::Action::Client(cli)) => client(*cli).into(),
        Err(error) => {
            // Help goes to standard output and is a success; a closed pipe is nobody's failure.
            let _ = error.print();
            match error.exit_code() {
                0 => cli::Exit::Complete.into(),
                _ => cli::Exit::Usage.into(),
            }
        }
    }
}

fn client(cli: cli::Cli) -> cli::Exit {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(cli)),
        Err(error) => {
            eprintln!("picket: start the runtime: {error}");
            cli::Exit::Failure
        }
    }
}
