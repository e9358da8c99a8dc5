//! What russh calls for a client: who is let in, and to whom its requests go.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use russh::keys::PublicKey;
use russh::server::{
    Auth, ChannelOpenHandle, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, ChannelOpenFailure, Pty, Sig};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use crate::connection::Channels;
use crate::forwards::{self, Target};
use crate::process::{self, Terminal};
use crate::{keys, limits};

/// Who may log in: as the user that this process is, with one of the keys of a file.
pub(crate) struct Admission {
    user: Option<String>,
    authorized_keys: PathBuf,
}

impl Admission {
    pub(crate) fn new(authorized_keys: PathBuf) -> Admission {
        Admission { user: own_name(), authorized_keys }
    }

    fn admits(&self, user: &str, key: &PublicKey) -> bool {
        // A client that asks for another user must not become this one without noticing.
        self.user.as_deref().is_none_or(|own| own == user)
            && keys::authorized(&self.authorized_keys)
                .iter()
                .any(|known| known.key_data() == key.key_data())
    }
}

/// The name of the user that this process is: root needs no file of users. Unknown: any name will do.
fn own_name() -> Option<String> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Some("root".to_owned());
    }
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let number = user.as_raw().to_string();
    users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)? == number).then(|| name.to_owned())
    })
}

/// One client.
pub(crate) struct Client {
    admission: Arc<Admission>,
    channels: Channels,
    listeners: HashMap<String, AbortHandle>,
    logged_in: Option<oneshot::Sender<()>>,
}

type Done = Result<(), russh::Error>;

impl Client {
    pub(crate) fn new(
        admission: Arc<Admission>,
        channels: Channels,
        logged_in: oneshot::Sender<()>,
    ) -> Client {
        Client { admission, channels, listeners: HashMap::new(), logged_in: Some(logged_in) }
    }

    fn judge(&self, user: &str, key: &PublicKey) -> Auth {
        if self.admission.admits(user, key) { Auth::Accept } else { Auth::reject() }
    }

    async fn connect(&self, channel: Channel<Msg>, reply: ChannelOpenHandle, target: Target) {
        if let Some(slot) = self.channels.slot() {
            forwards::connect(&self.channels, slot, channel, reply, target);
        } else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
        }
    }

    fn has_room_to_listen(&self) -> bool {
        self.listeners.len() + self.channels.agents() < limits::LISTENERS
    }

    fn may_listen(&self, name: &str) -> bool {
        self.has_room_to_listen() && !self.listeners.contains_key(name)
    }

    fn stop_listening(&mut self, name: &str) -> bool {
        self.listeners.remove(name).inspect(AbortHandle::abort).is_some()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.listeners.values().for_each(AbortHandle::abort);
        self.channels.remove_all();
    }
}

fn answer(session: &mut Session, channel: ChannelId, is_done: bool) -> Done {
    if is_done { session.channel_success(channel) } else { session.channel_failure(channel) }
}

fn tcp_name(address: &str, port: u32) -> String {
    format!("{address}:{port}")
}

impl Handler for Client {
    type Error = russh::Error;

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, offer.public_key))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(self.judge(user, key.public_key))
    }

    async fn auth_succeeded(&mut self, _: &mut Session) -> Done {
        if let Some(logged_in) = self.logged_in.take() {
            let _ = logged_in.send(());
        }
        Ok(())
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Done {
        let Some(slot) = self.channels.slot() else {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        };
        // Without its reading half, whose queue would stop the whole connection when it is full: what arrives is
        // given to `data` too.
        let (_, writer) = channel.split();
        self.channels.add(writer.id(), Some(writer), Some(slot));
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _: &str,
        _: u32,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Done {
        self.connect(channel, reply, Target::Tcp(host.to_owned(), port)).await;
        Ok(())
    }

    async fn channel_open_direct_streamlocal(
        &mut self,
        channel: Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Done {
        self.connect(channel, reply, Target::Unix(PathBuf::from(path))).await;
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        id: ChannelId,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Done {
        self.channels.confirm(id);
        Ok(())
    }

    async fn data(&mut self, id: ChannelId, data: &[u8], _: &mut Session) -> Done {
        self.channels.push(id, data);
        Ok(())
    }

    async fn channel_eof(&mut self, id: ChannelId, _: &mut Session) -> Done {
        self.channels.end(id);
        Ok(())
    }

    async fn channel_close(&mut self, id: ChannelId, _: &mut Session) -> Done {
        self.channels.remove(id);
        Ok(())
    }

    async fn pty_request(
        &mut self,
        id: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &[(Pty, u32)],
        session: &mut Session,
    ) -> Done {
        let size = process::size(columns, rows, width, height);
        let is_fit = !term.contains('\0') && term.len() <= limits::VARIABLE_BYTES;
        let terminal = Terminal { kind: term.to_owned(), size };
        answer(session, id, is_fit && self.channels.want_terminal(id, terminal))
    }

    async fn window_change_request(
        &mut self,
        id: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        _: &mut Session,
    ) -> Done {
        self.channels.resize(id, process::size(columns, rows, width, height));
        Ok(())
    }

    async fn env_request(
        &mut self,
        id: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Done {
        answer(session, id, self.channels.want_variable(id, name, value))
    }

    async fn agent_request(
        &mut self,
        id: ChannelId,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.has_room_to_listen() && self.channels.want_agent(id, session.handle()))
    }

    async fn shell_request(&mut self, id: ChannelId, session: &mut Session) -> Done {
        let is_done = self.channels.start_shell(id, session.handle());
        answer(session, id, is_done)
    }

    async fn exec_request(&mut self, id: ChannelId, line: &[u8], session: &mut Session) -> Done {
        let is_done = self.channels.start_command(id, session.handle(), line);
        answer(session, id, is_done)
    }

    async fn subsystem_request(
        &mut self,
        id: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Done {
        let is_done = name == "sftp" && self.channels.start_sftp(id, session.handle());
        answer(session, id, is_done)
    }

    async fn signal(&mut self, id: ChannelId, signal: Sig, _: &mut Session) -> Done {
        self.channels.signal(id, &signal);
        Ok(())
    }

    async fn tcpip_forward(
        &mut self,
        address: &str,
        port: &mut u32,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if !self.may_listen(&tcp_name(address, *port)) {
            return Ok(false);
        }
        let channels = self.channels.clone();
        let found = forwards::listen_tcp(channels, session.handle(), address, *port).await;
        let Ok((bound, task)) = found else { return Ok(false) };
        *port = bound;
        self.listeners.insert(tcp_name(address, bound), task);
        Ok(true)
    }

    async fn cancel_tcpip_forward(
        &mut self,
        address: &str,
        port: u32,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.stop_listening(&tcp_name(address, port)))
    }

    async fn streamlocal_forward(
        &mut self,
        path: &str,
        session: &mut Session,
    ) -> Result<bool, Self::Error> {
        if !self.may_listen(path) {
            return Ok(false);
        }
        let channels = self.channels.clone();
        let Ok(task) = forwards::listen_unix(channels, session.handle(), path) else {
            return Ok(false);
        };
        self.listeners.insert(path.to_owned(), task);
        Ok(true)
    }

    async fn cancel_streamlocal_forward(
        &mut self,
        path: &str,
        _: &mut Session,
    ) -> Result<bool, Self::Error> {
        Ok(self.stop_listening(path))
    }
}
