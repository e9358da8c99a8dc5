//! `vsock-sshd`: an SSH server for guests that have none. It listens on vsock, serves the host (CID 2) only, and
//! runs as the user who starts it. One static program, which is also its own SFTP server and, if wanted, the
//! first process of a guest.

mod arguments;
mod backlog;
mod children;
mod command;
mod connection;
mod descriptor;
mod forwards;
mod init;
mod keys;
mod limits;
mod listener;
mod log;
mod login;
mod output;
mod process;
mod server;
mod sftp;

use std::process::ExitCode;

use arguments::{Arguments, Role};

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        // The end of the first process is the guest's: better one that can be entered, and says what is wrong.
        Err(fault) if std::process::id() == 1 => {
            log::say(format_args!("{fault}; going on without arguments"));
            Arguments::defaults(Role::Init)
        }
        Err(fault) => {
            log::say(format_args!("{fault}\n{}", arguments::USAGE));
            return ExitCode::from(2);
        }
    };
    let done = match arguments.role {
        Role::Help => {
            println!("{}", arguments::USAGE);
            Ok(())
        }
        Role::Version => {
            println!("vsock-sshd {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        Role::Sftp => match &arguments.folder {
            Some(folder) => sftp::serve_folder(folder, arguments.writable),
            None => sftp::serve_machine(),
        },
        Role::Init => init::run(&arguments),
        Role::Server => server::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(format_args!("{error}"));
            ExitCode::FAILURE
        }
    }
}
