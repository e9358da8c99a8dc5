//! The server: listens, and gives each connection a session of russh, within the limits.

use std::borrow::Cow;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::HashAlg;
use russh::server::{Config, run_stream};
use russh::{MethodKind, MethodSet, Preferred, SshId, kex};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use crate::arguments::{Arguments, Place, WITHOUT_KEYS};
use crate::backlog::Wire;
use crate::children::Children;
use crate::connection::Channels;
use crate::descriptor::Descriptor;
use crate::listener::Listener;
use crate::login::{Admission, Client};
use crate::{keys, limits, log};

/// Neither groups of primes nor curves that cost an emulated processor long: both clients that matter have these.
const KEY_EXCHANGES: &[kex::Name] = &[
    kex::MLKEM768X25519_SHA256,
    kex::CURVE25519,
    kex::CURVE25519_PRE_RFC_8731,
    kex::EXTENSION_SUPPORT_AS_SERVER,
    kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
];

/// Serves until listening fails.
pub(crate) fn run(arguments: &Arguments) -> io::Result<()> {
    // One thread: what is done per connection is little, and a guest may have one processor and a few megabytes.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(serve(arguments))
}

async fn serve(arguments: &Arguments) -> io::Result<()> {
    let count = keys::authorized(&arguments.authorized_keys).len();
    check_keys(arguments, count)?;
    let listener = Listener::bind(&arguments.place)?;
    let key = keys::host_key(&arguments.host_key)?;
    let place = match &arguments.place {
        Place::Vsock(port) => format!("vsock port {port}"),
        Place::Unix(path) => path.display().to_string(),
    };
    log::say(format_args!(
        "listening on {place}, {count} authorized {}, host key {}",
        if count == 1 { "key" } else { "keys" },
        key.public_key().fingerprint(HashAlg::Sha256)
    ));
    let server = Server {
        config: Arc::new(config(key)),
        admission: Arc::new(Admission::new(arguments.authorized_keys.clone())),
        children: Children::watch()?,
        connections: Arc::new(Semaphore::new(limits::CONNECTIONS)),
        logins: Arc::new(Semaphore::new(limits::LOGINS)),
    };
    loop {
        match listener.accept().await {
            Ok(socket) => server.begin(socket),
            Err(error) if is_shortage(&error) => sleep(limits::PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// Refuses to listen on vsock where nobody has put a key. Nothing else tells a guest that is to be entered from a
/// machine that this program was started on by mistake: that one may be a guest too, with a vsock of its own.
fn check_keys(arguments: &Arguments, count: usize) -> io::Result<()> {
    if count > 0 || arguments.without_keys || matches!(arguments.place, Place::Unix(_)) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "no key is let in: put one into {}; or give {WITHOUT_KEYS}, if this is the guest and the keys come later",
        arguments.authorized_keys.display()
    )))
}

fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|it| matches!(it, Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS))
}

fn config(key: russh::keys::PrivateKey) -> Config {
    // The comment is for asyncssh, which finds there in which order a server has the arguments of SFTP's SYMLINK.
    let name = concat!("SSH-2.0-vsock_sshd_", env!("CARGO_PKG_VERSION"), " SFTP as OpenSSH");
    Config {
        server_id: SshId::Standard(Cow::Borrowed(name)),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        // Which keys are let in is no secret of the host, which is the only client.
        auth_rejection_time: Duration::ZERO,
        max_auth_attempts: limits::LOGIN_ATTEMPTS,
        keys: vec![key],
        preferred: Preferred { kex: Cow::Borrowed(KEY_EXCHANGES), ..Preferred::DEFAULT },
        window_size: limits::WINDOW,
        maximum_packet_size: limits::PACKET,
        // The reading halves of channels are not used.
        channel_buffer_size: 4,
        // A guest that is stopped and goes on must keep its sessions; vsock tells when the host is gone.
        inactivity_timeout: None,
        ..Config::default()
    }
}

struct Server {
    config: Arc<Config>,
    admission: Arc<Admission>,
    children: Children,
    connections: Arc<Semaphore>,
    logins: Arc<Semaphore>,
}

impl Server {
    /// Begins a session, or closes a connection that is one too many.
    fn begin(&self, socket: OwnedFd) {
        let Ok(connection) = Arc::clone(&self.connections).try_acquire_owned() else { return };
        let Ok(login) = Arc::clone(&self.logins).try_acquire_owned() else { return };
        let Ok(socket) = Descriptor::new(socket) else { return };
        let channels = Channels::new(self.children.clone(), connection);
        let backlog = Arc::clone(&channels.backlog);
        let wire = Wire { socket, backlog: Arc::clone(&backlog) };
        let (say_logged_in, logged_in) = oneshot::channel();
        let client = Client::new(Arc::clone(&self.admission), channels, say_logged_in);
        tokio::spawn(async move {
            // Either the client has logged in by then, or it is gone, or it is cut off.
            if timeout(limits::LOGIN_TIME, logged_in).await.is_err() {
                backlog.cut();
            }
            drop(login);
        });
        tokio::spawn(see_through(Arc::clone(&self.config), wire, client));
    }
}

/// Serves a connection to its end.
async fn see_through(config: Arc<Config>, wire: Wire, client: Client) {
    // How it ends is the client's business: whatever is wrong with what it sends concerns nobody else.
    if let Ok(session) = run_stream(config, wire, client).await {
        let _ = session.await;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::arguments::Role;

    use super::*;

    #[test]
    fn vsock_without_a_key_is_refused_unless_it_is_wanted() {
        let plain = Arguments::defaults(Role::Server);
        let said = check_keys(&plain, 0).unwrap_err().to_string();
        assert!(said.contains("/etc/vsock-sshd/authorized_keys"), "{said}");
        assert!(check_keys(&plain, 1).is_ok());
        let wanted = Arguments { without_keys: true, ..Arguments::defaults(Role::Server) };
        assert!(check_keys(&wanted, 0).is_ok());
        let unix = Arguments { place: Place::Unix(PathBuf::from("sshd")), ..plain };
        assert!(check_keys(&unix, 0).is_ok());
    }
}
