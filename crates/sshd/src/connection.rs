//! One connection after its login: its channels, and what a client asks of them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use russh::server::{Handle, Msg};
use russh::{ChannelId, ChannelWriteHalf, Sig};
use rustix::process::{Signal, WaitStatus};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use crate::backlog::{Backlog, Inbox, InboxReader};
use crate::children::{ChildId, Children};
use crate::command::{self, Program};
use crate::output::{Closed, Open, Output};
use crate::process::{self, Started, Streams, Terminal, Wishes};
use crate::{forwards, limits};

/// The channels of a connection, shared with the tasks that serve them.
#[derive(Clone)]
pub(crate) struct Channels {
    pub(crate) backlog: Arc<Backlog>,
    children: Children,
    map: Arc<Mutex<HashMap<ChannelId, Channel>>>,
    /// Of channels that we have opened: until their task takes it, also when they have been closed by then.
    confirmed: Arc<Mutex<HashMap<ChannelId, Input>>>,
    slots: Arc<Semaphore>,
    /// It counts as a connection until all that serves its channels has ended.
    _connection: Arc<OwnedSemaphorePermit>,
}

/// Counts as a channel until it is dropped: from the wish to open one until all that serves it has ended.
pub(crate) type Slot = OwnedSemaphorePermit;

/// What arrives on a channel, and its end.
pub(crate) struct Input {
    pub(crate) bytes: InboxReader,
    pub(crate) closed: Closed,
}

struct Channel {
    inbox: Arc<Inbox>,
    open: Open,
    /// Of a session, until a process takes it; the task of a forward has its own.
    slot: Option<Slot>,
    /// Until a process takes it.
    writer: Option<ChannelWriteHalf<Msg>>,
    wishes: Wishes,
    process: Option<Running>,
    /// Those that end together with the channel.
    tasks: Vec<AbortHandle>,
}

struct Running {
    child: ChildId,
    terminal: Option<OwnedFd>,
}

impl Channels {
    pub(crate) fn new(children: Children, connection: OwnedSemaphorePermit) -> Channels {
        Channels {
            backlog: Arc::default(),
            children,
            map: Arc::default(),
            confirmed: Arc::default(),
            slots: Arc::new(Semaphore::new(limits::CHANNELS)),
            _connection: Arc::new(connection),
        }
    }

    fn map(&self) -> MutexGuard<'_, HashMap<ChannelId, Channel>> {
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn confirmed(&self) -> MutexGuard<'_, HashMap<ChannelId, Input>> {
        self.confirmed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, id: ChannelId, act: impl FnOnce(&mut Channel) -> T) -> Option<T> {
        self.map().get_mut(&id).map(act)
    }

    /// Makes room for a channel; none if there may be no more.
    pub(crate) fn slot(&self) -> Option<Slot> {
        Arc::clone(&self.slots).try_acquire_owned().ok()
    }

    /// How many channels have a socket that leads to the client's agent.
    pub(crate) fn agents(&self) -> usize {
        self.map().values().filter(|channel| channel.wishes.agent.is_some()).count()
    }

    /// Adds a channel; returns what arrives on it. `writer` and `slot` are for a process that it may get.
    pub(crate) fn add(
        &self,
        id: ChannelId,
        writer: Option<ChannelWriteHalf<Msg>>,
        slot: Option<Slot>,
    ) -> Input {
        let channel = Channel {
            inbox: Inbox::new(&self.backlog),
            open: Open::default(),
            slot,
            writer,
            wishes: Wishes::default(),
            process: None,
            tasks: Vec::new(),
        };
        let input = channel.input();
        self.map().insert(id, channel);
        input
    }

    /// Adds a channel that the client has confirmed.
    pub(crate) fn confirm(&self, id: ChannelId) {
        // A client may confirm what it has opened itself, or twice.
        if self.map().contains_key(&id) {
            return;
        }
        let mut confirmed = self.confirmed();
        // There are no more that we have opened: the client has confirmed others, which nobody takes.
        if confirmed.len() < limits::CHANNELS {
            confirmed.insert(id, self.add(id, None, None));
        }
    }

    /// What arrives on a channel that the client has confirmed, for the task that serves it.
    pub(crate) fn take_confirmed(&self, id: ChannelId) -> Option<Input> {
        self.confirmed().remove(&id)
    }

    /// Ends a task together with a channel.
    pub(crate) fn own(&self, id: ChannelId, task: AbortHandle) {
        match self.map().get_mut(&id) {
            Some(channel) => channel.tasks.push(task),
            None => task.abort(),
        }
    }

    /// Data that has arrived.
    pub(crate) fn push(&self, id: ChannelId, data: &[u8]) {
        self.with(id, |channel| channel.inbox.push(data));
    }

    /// The client sends no more on a channel.
    pub(crate) fn end(&self, id: ChannelId) {
        self.with(id, |channel| channel.inbox.end());
    }

    /// A channel is closed: what serves it ends, in bounded time.
    pub(crate) fn remove(&self, id: ChannelId) {
        let channel = self.map().remove(&id);
        if let Some(channel) = channel {
            channel.finish();
        }
    }

    /// Closes a channel that has served its purpose. russh does not tell of the end of those that we close.
    pub(crate) async fn close(&self, writer: &ChannelWriteHalf<Msg>) {
        // The session has ended otherwise.
        let _ = writer.close().await;
        self.remove(writer.id());
    }

    /// The connection has ended.
    pub(crate) fn remove_all(&self) {
        let channels: Vec<_> = self.map().drain().collect();
        channels.into_iter().for_each(|(_, channel)| channel.finish());
    }

    /// Ends a process whose channel is closed, with its group. Who has made a group of their own goes on.
    fn hang_up(&self, child: ChildId) {
        // Its group may outlive it, with programs that ignore SIGHUP.
        self.children.hold(child);
        self.children.signal(child, Signal::HUP);
        self.children.signal(child, Signal::CONT);
        let children = self.children.clone();
        tokio::spawn(async move {
            sleep(limits::GRACE_TIME).await;
            children.signal(child, Signal::KILL);
            children.release(child);
        });
    }

    /// A terminal for the process that will start; false: too late.
    pub(crate) fn want_terminal(&self, id: ChannelId, terminal: Terminal) -> bool {
        self.wish(id, |wishes| {
            wishes.terminal = Some(terminal);
            true
        })
    }

    /// A variable for the process that will start; false: too late, too many, or no name of one.
    pub(crate) fn want_variable(&self, id: ChannelId, name: &str, value: &str) -> bool {
        let is_fit = !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0');
        is_fit
            && self.wish(id, |wishes| {
                let size = |(a, b): &(String, String)| a.len() + b.len();
                let bytes: usize = wishes.variables.iter().map(size).sum();
                let fits = bytes + name.len() + value.len() <= limits::VARIABLE_BYTES;
                if wishes.variables.len() < limits::VARIABLES && fits {
                    wishes.variables.push((name.to_owned(), value.to_owned()));
                    return true;
                }
                false
            })
    }

    /// The client's agent for the process that will start; false: too late, it has one, or there is no place for it.
    pub(crate) fn want_agent(&self, id: ChannelId, handle: Handle) -> bool {
        // One of a channel, which a process that has started would not get to know.
        if !self.wish(id, |wishes| wishes.agent.is_none()) {
            return false;
        }
        let Some((path, task)) = forwards::listen_for_agent(self.clone(), handle) else {
            return false;
        };
        self.own(id, task);
        self.wish(id, |wishes| {
            wishes.agent = Some(path);
            true
        })
    }

    fn wish(&self, id: ChannelId, act: impl FnOnce(&mut Wishes) -> bool) -> bool {
        self.with(id, |channel| channel.writer.is_some() && act(&mut channel.wishes)) == Some(true)
    }

    /// The terminal of a channel has another size.
    pub(crate) fn resize(&self, id: ChannelId, size: rustix::termios::Winsize) {
        self.with(id, |channel| {
            if let Some(terminal) = &mut channel.wishes.terminal {
                terminal.size = size;
            }
            if let Some(terminal) = channel.process.as_ref().and_then(|it| it.terminal.as_ref()) {
                process::resize(terminal, size);
            }
        });
    }

    /// Signals the process of a channel, and its group.
    pub(crate) fn signal(&self, id: ChannelId, signal: &Sig) {
        // Debug prints the names of the others.
        let name =
            if let Sig::Custom(name) = signal { name.clone() } else { format!("{signal:?}") };
        let child = self.with(id, |channel| channel.process.as_ref().map(|it| it.child)).flatten();
        if let (Some(child), Some(signal)) = (child, process::signal_of(&name)) {
            self.children.signal(child, signal);
        }
    }

    /// Starts the user's shell; false: there is none, or the channel has a process.
    pub(crate) fn start_shell(&self, id: ChannelId, handle: Handle) -> bool {
        let Some(shell) = command::shell() else {
            let said =
                "vsock-sshd: there is no shell in this guest: give a program and its arguments\n";
            return self.say_failure(id, &handle, 127, said.to_owned());
        };
        self.start(id, handle, &Program { name: shell.into(), ..Program::default() })
    }

    /// Starts a command; false: the channel has a process.
    pub(crate) fn start_command(&self, id: ChannelId, handle: Handle, line: &[u8]) -> bool {
        match command::program_of(command::shell().as_deref(), line) {
            Ok(program) => self.start(id, handle, &program),
            Err(fault) => self.say_failure(id, &handle, 127, format!("vsock-sshd: {fault}\n")),
        }
    }

    /// Starts our SFTP server; false: the channel has a process.
    pub(crate) fn start_sftp(&self, id: ChannelId, handle: Handle) -> bool {
        self.start(id, handle, &process::sftp_program())
    }

    fn start(&self, id: ChannelId, handle: Handle, program: &Program) -> bool {
        let mut map = self.map();
        let Some(channel) = map.get_mut(&id) else { return false };
        let Some(writer) = channel.writer.take() else { return false };
        let started = match process::start(&self.children, program, &channel.wishes) {
            Ok(started) => started,
            Err(error) => {
                channel.writer = Some(writer);
                drop(map);
                let (status, said) = process::failure(OsStr::new(&program.name), &error);
                return self.say_failure(id, &handle, status, said);
            }
        };
        let Started { child, ended, streams, terminal } = started;
        channel.process = Some(Running { child, terminal });
        let slot = channel.slot.take();
        let input = channel.input();
        let all = self.clone();
        tokio::spawn(async move {
            let _slot = slot;
            all.see_through(child, ended, streams, input, &writer, &handle).await;
        });
        true
    }

    /// Serves a process to its end, or to that of its channel.
    async fn see_through(
        &self,
        child: ChildId,
        ended: oneshot::Receiver<WaitStatus>,
        streams: Streams,
        input: Input,
        writer: &ChannelWriteHalf<Msg>,
        handle: &Handle,
    ) {
        let Input { bytes, mut closed } = input;
        let inbox = Arc::clone(&bytes.0);
        let output = Output::new(writer.make_writer(), &self.backlog, &closed);
        let errors = Output::new(writer.make_writer_ext(Some(1)), &self.backlog, &closed);
        let (unfed, fed) = oneshot::channel();
        let mut seen = pin!(streams.see_through(ended, bytes, unfed, output, errors));
        tokio::select! {
            status = &mut seen => {
                let _ = writer.eof().await;
                report(handle, writer.id(), status).await;
                self.close(writer).await;
                return;
            }
            () = closed.wait() => {}
        }
        // RFC 4254, section 5.3: what the client sent before is still delivered.
        let is_fed = timeout(limits::LAST_INPUT_TIME, async {
            tokio::select! {
                _ = &mut seen => None,
                _ = fed => Some(()),
            }
        });
        match is_fed.await {
            Ok(None) => return,
            // With all of its input a program may end by itself.
            Ok(Some(())) if inbox.is_whole() => {
                if timeout(limits::GRACE_TIME, &mut seen).await.is_ok() {
                    return;
                }
            }
            Ok(Some(())) => {}
            Err(_) => forwards::say_lost("a program"),
        }
        self.hang_up(child);
        // SIGHUP ends it, or what it does then; not SIGPIPE.
        let _ = timeout(limits::GRACE_TIME, seen).await;
    }

    /// Answers for a program that did not start, as a shell does. Returns true: the client's request was understood.
    fn say_failure(&self, id: ChannelId, handle: &Handle, status: u32, said: String) -> bool {
        let Some(writer) = self.with(id, |channel| channel.writer.take()).flatten() else {
            return false;
        };
        let (all, handle) = (self.clone(), handle.clone());
        let task = tokio::spawn(async move {
            let _ = writer.make_writer_ext(Some(1)).write_all(said.as_bytes()).await;
            let _ = writer.eof().await;
            let _ = handle.exit_status_request(id, status).await;
            all.close(&writer).await;
        });
        self.own(id, task.abort_handle());
        true
    }
}

impl Channel {
    fn input(&self) -> Input {
        Input { bytes: InboxReader(Arc::clone(&self.inbox)), closed: self.open.closed() }
    }

    /// Says that it is closed; dropping `open` says it to the tasks that go on until they have delivered its input.
    fn finish(self) {
        self.inbox.break_off();
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Tells the client how a process ended. Without an answer the connection has ended.
async fn report(handle: &Handle, id: ChannelId, status: Option<WaitStatus>) {
    let Some(status) = status else { return };
    if let Some(number) = status.terminating_signal() {
        let name = Sig::Custom(process::name_of(number));
        let _ = handle.exit_signal_request(id, name, false, String::new(), String::new()).await;
    } else {
        let code = status.exit_status().and_then(|code| u32::try_from(code).ok());
        let _ = handle.exit_status_request(id, code.unwrap_or(255)).await;
    }
}
