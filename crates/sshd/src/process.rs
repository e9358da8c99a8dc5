//! A process of a channel: its standard streams or its terminal, and how it ended.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, WaitStatus};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::backlog::InboxReader;
use crate::children::{ChildId, Children};
use crate::command::Program;
use crate::descriptor::Descriptor;
use crate::limits;
use crate::output::Output;

/// The path of this program, which is its own SFTP server.
pub(crate) const OURSELVES: &str = "/proc/self/exe";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The character that ends input on a terminal.
const END_OF_INPUT: u8 = 4;

/// The terminal that a client wants for its process.
#[derive(Debug, Clone)]
pub(crate) struct Terminal {
    pub(crate) kind: String,
    pub(crate) size: Winsize,
}

/// What a client has said of a process before it starts.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) terminal: Option<Terminal>,
    pub(crate) variables: Vec<(String, String)>,
    pub(crate) agent: Option<PathBuf>,
}

/// A process that has started; `Streams` and `ended` belong to who sees it through.
pub(crate) struct Started {
    pub(crate) child: ChildId,
    pub(crate) ended: oneshot::Receiver<WaitStatus>,
    pub(crate) streams: Streams,
    /// The master of its terminal, for changes of its size.
    pub(crate) terminal: Option<OwnedFd>,
}

/// Our ends of a process's streams.
pub(crate) struct Streams {
    input: Descriptor,
    output: Descriptor,
    /// Not of a terminal, which has one stream for both.
    errors: Option<Descriptor>,
}

/// Home of the user that this is: no file of users is needed.
fn home() -> PathBuf {
    let root = Path::new("/root");
    if rustix::process::geteuid().is_root() && root.is_dir() {
        return root.to_owned();
    }
    std::env::var_os("HOME").map(PathBuf::from).filter(|home| home.is_dir()).unwrap_or("/".into())
}

/// Starts a program as the leader of a session and of a process group.
pub(crate) fn start(
    children: &Children,
    program: &Program,
    wishes: &Wishes,
) -> io::Result<Started> {
    let mut command = Command::new(&program.name);
    command.args(&program.arguments);
    set_environment(&mut command, wishes);
    command.envs(program.variables.iter().map(|(name, value)| (name, value)));
    let folder = program.folder.clone().unwrap_or_else(home);
    if !folder.is_dir() {
        return Err(io::Error::other(format!("{} is no folder", folder.display())));
    }
    command.current_dir(folder);
    let has_terminal = wishes.terminal.is_some();
    // SAFETY: the closure makes two system calls, on a descriptor that the child has, and touches no memory that
    // another thread may hold a lock of; that is all that is allowed between fork and exec.
    unsafe {
        command.pre_exec(move || {
            rustix::process::setsid()?;
            if has_terminal {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
            }
            Ok(())
        });
    }
    match &wishes.terminal {
        None => with_pipes(children, command),
        Some(terminal) => with_terminal(children, command, terminal),
    }
}

fn set_environment(command: &mut Command, wishes: &Wishes) {
    // What this process got (the variables of an image) reaches its children, as it does below an init.
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", PATH);
    }
    let home = home();
    command.env("HOME", &home);
    if rustix::process::geteuid().is_root() {
        command.envs([("USER", "root"), ("LOGNAME", "root")]);
    }
    if let Some(shell) = crate::command::shell() {
        command.env("SHELL", shell);
    }
    command.envs(wishes.variables.iter().map(|(name, value)| (name, value)));
    if let Some(agent) = &wishes.agent {
        command.env("SSH_AUTH_SOCK", agent);
    }
    match &wishes.terminal {
        Some(terminal) => command.env("TERM", &terminal.kind),
        None => command.env_remove("TERM"),
    };
}

fn with_pipes(children: &Children, mut command: Command) -> io::Result<Started> {
    let (their_input, our_input) = pipe_with(PipeFlags::CLOEXEC)?;
    let (our_output, their_output) = pipe_with(PipeFlags::CLOEXEC)?;
    let (our_errors, their_errors) = pipe_with(PipeFlags::CLOEXEC)?;
    let streams = Streams {
        input: Descriptor::new(our_input)?,
        output: Descriptor::new(our_output)?,
        errors: Some(Descriptor::new(our_errors)?),
    };
    command.stdin(their_input).stdout(their_output).stderr(their_errors);
    let (child, ended) = children.start(&mut command)?;
    Ok(Started { child, ended, streams, terminal: None })
}

fn with_terminal(
    children: &Children,
    mut command: Command,
    terminal: &Terminal,
) -> io::Result<Started> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    rustix::termios::tcsetwinsize(&master, terminal.size)?;
    let slave = open_terminal(&rustix::pty::ptsname(&master, Vec::new())?)?;
    command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
    let streams = Streams {
        input: Descriptor::new(master.try_clone()?)?,
        output: Descriptor::new(master.try_clone()?)?,
        errors: None,
    };
    let (child, ended) = children.start(&mut command)?;
    Ok(Started { child, ended, streams, terminal: Some(master) })
}

fn open_terminal(name: &CStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(name, flags, Mode::empty())?)
}

impl Streams {
    /// Copies until the process has ended and what it has written has been sent. Processes that it left behind may
    /// hold its streams open: those are not waited for. `unfed` is dropped when the process has got all its input, or has
    /// not read it in time.
    pub(crate) async fn see_through(
        self,
        ended: oneshot::Receiver<WaitStatus>,
        inbox: InboxReader,
        unfed: oneshot::Sender<()>,
        output: Output<impl AsyncWrite + Unpin>,
        errors: Output<impl AsyncWrite + Unpin>,
    ) -> Option<WaitStatus> {
        let has_terminal = self.errors.is_none();
        let (say_ended, is_ended) = watch::channel(false);
        let wait = async {
            let status = ended.await.ok();
            say_ended.send_replace(true);
            status
        };
        let copy = async {
            tokio::join!(copy_out(&self.output, output, is_ended.clone()), async {
                if let Some(from) = &self.errors {
                    copy_out(from, errors, is_ended.clone()).await;
                }
            });
        };
        let feed = copy_in(inbox, self.input, unfed, has_terminal);
        tokio::select! {
            (status, ()) = async { tokio::join!(wait, copy) } => status,
            // It ends only by being dropped.
            never = async { feed.await; std::future::pending().await } => never,
        }
    }
}

/// Copies what the client sends to the process.
async fn copy_in(
    mut from: InboxReader,
    mut to: Descriptor,
    unfed: oneshot::Sender<()>,
    is_terminal: bool,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(length) => {
                if to.write_all(&buffer[..length]).await.is_err() {
                    // The process does not read any more; nor is what comes kept.
                    from.0.close();
                    return;
                }
            }
        }
    }
    let is_whole = from.0.is_whole();
    if is_terminal && is_whole {
        let _ = to.write_all(&[END_OF_INPUT]).await;
    }
    if !is_terminal && !is_whole {
        // SIGHUP follows, which the program must not get before what is in the pipe.
        let _ = timeout(limits::GRACE_TIME, until_read(&to)).await;
    }
    drop(unfed);
    // A terminal stays open for its output. And no program must take for all what was broken off: it gets SIGHUP first.
    if is_terminal || !is_whole {
        std::future::pending::<()>().await;
    }
}

/// Waits until a pipe is empty, of which nothing tells.
async fn until_read(pipe: &Descriptor) {
    while rustix::io::ioctl_fionread(pipe).is_ok_and(|left| left > 0) {
        sleep(limits::LOOK_TIME).await;
    }
}

/// Copies what the process writes to the client: to its end, or, once the process has ended, all that is there. Others
/// may go on writing, so that is at most what a pipe or a terminal can hold.
async fn copy_out(
    from: &Descriptor,
    mut to: Output<impl AsyncWrite + Unpin>,
    mut is_ended: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 32 << 10];
    let mut left = limits::LAST_OUTPUT;
    while left > 0 {
        let has_ended = *is_ended.borrow();
        match from.read_now(&mut buffer) {
            Ok(Some(0)) | Err(_) => return,
            Ok(Some(length)) => {
                if has_ended {
                    left = left.saturating_sub(length);
                }
                to.send(&buffer[..length]).await;
            }
            Ok(None) if has_ended => return,
            Ok(None) => {
                tokio::select! {
                    readable = from.readable() => if readable.is_err() { return },
                    _ = is_ended.changed() => {}
                }
            }
        }
    }
}

/// Our own SFTP server as a program.
pub(crate) fn sftp_program() -> Program {
    let arguments = vec![OsString::from("--sftp")];
    Program { name: OURSELVES.into(), arguments, ..Program::default() }
}

/// The message for a program that does not start, and its exit status, as a shell has them.
pub(crate) fn failure(name: &OsStr, error: &io::Error) -> (u32, String) {
    let name = String::from_utf8_lossy(name.as_bytes()).into_owned();
    if error.kind() == io::ErrorKind::NotFound {
        (127, format!("vsock-sshd: {name}: not found\n"))
    } else {
        (126, format!("vsock-sshd: {name}: {error}\n"))
    }
}

/// The size of a terminal, as a client says it.
pub(crate) fn size(columns: u32, rows: u32, width: u32, height: u32) -> Winsize {
    let fit = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
    Winsize {
        ws_row: fit(rows),
        ws_col: fit(columns),
        ws_xpixel: fit(width),
        ws_ypixel: fit(height),
    }
}

/// The signals that SSH has names for (RFC 4254, section 6.10), and those that OpenSSH and asyncssh send.
const SIGNALS: &[(&str, Signal)] = &[
    ("ABRT", Signal::ABORT),
    ("ALRM", Signal::ALARM),
    ("BUS", Signal::BUS),
    ("CHLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("FPE", Signal::FPE),
    ("HUP", Signal::HUP),
    ("ILL", Signal::ILL),
    ("INT", Signal::INT),
    ("KILL", Signal::KILL),
    ("PIPE", Signal::PIPE),
    ("QUIT", Signal::QUIT),
    ("SEGV", Signal::SEGV),
    ("STOP", Signal::STOP),
    ("SYS", Signal::SYS),
    ("TERM", Signal::TERM),
    ("TRAP", Signal::TRAP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("USR1", Signal::USR1),
    ("USR2", Signal::USR2),
    ("WINCH", Signal::WINCH),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
];

/// The signal of a name, without SIG.
pub(crate) fn signal_of(name: &str) -> Option<Signal> {
    SIGNALS.iter().find(|(known, _)| *known == name).map(|&(_, signal)| signal)
}

/// The name of a signal by its number; others have their number.
pub(crate) fn name_of(number: i32) -> String {
    let known = SIGNALS.iter().find(|(_, signal)| signal.as_raw() == number);
    known.map_or_else(|| format!("{number}@vsock"), |(name, _)| (*name).to_owned())
}

/// Changes the size of a terminal.
pub(crate) fn resize(terminal: impl AsFd, size: Winsize) {
    // A terminal that is gone needs none.
    let _ = rustix::termios::tcsetwinsize(terminal, size);
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use crate::output::Open;

    use super::*;

    /// A client, and a program that fills the pipe again as soon as something has been taken out of it.
    struct Refilling {
        pipe: OwnedFd,
        sent: usize,
    }

    impl AsyncWrite for Refilling {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.sent += bytes.len();
            assert!(self.sent <= 2 * limits::LAST_OUTPUT);
            assert_eq!(rustix::io::write(&self.pipe, bytes), Ok(bytes.len()));
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[tokio::test]
    async fn output_after_the_end_of_a_process_is_bounded() {
        let (from, pipe) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        rustix::io::write(&pipe, &[0; 1000]).unwrap();
        let mut client = Refilling { pipe, sent: 0 };
        let (_say_ended, is_ended) = watch::channel(true);
        let from = Descriptor::new(from).unwrap();
        let open = Open::default();
        let output = Output::new(&mut client, &Arc::default(), &open.closed());
        copy_out(&from, output, is_ended).await;
        assert!((limits::LAST_OUTPUT..limits::LAST_OUTPUT + 1000).contains(&client.sent));
    }
}
