//! This program as an SFTP server on its standard streams: of a guest, for a client that logged in; or of a folder of the
//! host, for a guest.

use std::io;
use std::path::Path;

use rustix::process::Signal;
use vsock_sandbox::State;
use vsock_sftp::Server;

use crate::log;

/// Serves all files until the streams end.
pub(crate) fn serve_machine() -> io::Result<()> {
    serve(Server::of_machine())
}

/// The same with the files in a folder alone, for a client that may be hostile. A second layer that the kernel lacks is a
/// line on standard error. It ends with the process that has started it, which alone knows of it.
pub(crate) fn serve_folder(path: &Path, is_writable: bool) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let server = Server::of_folder(path, is_writable)?;
    let state = server.restrict_process()?;
    if state != State::On {
        log::say(format_args!("its sandbox is {state}"));
    }
    serve(server)
}

fn serve(server: Server) -> io::Result<()> {
    server.serve(&mut io::stdin().lock(), &mut io::stdout().lock())
}
