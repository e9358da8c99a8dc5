//! Carries out socket calls on one of our sockets, whose state the caller has read.
//!
//! `vsock_client::calls` decides what to do and which errno comes first.

pub(crate) mod accept;
pub(crate) mod data;
pub(crate) mod options;

use core::ffi::c_int;

use vsock_client::calls::{self, Direction, Listen, OwnName, Shutdown, listen_message};
use vsock_client::wire::op;
use vsock_client::{Address, Flags, Socket};

use crate::connecting::finish_connect;
use crate::sys::{Answer, Errno, Fd, tick_us};
use crate::{fd_hints, node, send_buffer, setup, state};

/// Send buffer asked for on sockets that keep messages.
const LONGEST_MESSAGE: c_int = 1 << 24;

/// `socket(AF_VSOCK, kind, protocol)`.
pub(crate) fn socket(kind: c_int, protocol: c_int) -> Answer<Fd> {
    let flags = kind & !0xf;
    if flags & !(libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
        return Err(Errno::INVAL);
    }
    let socket = calls::create(kind & 0xf, protocol)?;
    let fd = make(kind, &socket)?;
    if socket.keeps_messages() {
        // A message must fit into the send buffer as a whole. The kernel cuts the size to what its settings allow.
        fd.set_option(libc::SO_SNDBUF, &LONGEST_MESSAGE)?;
    }
    Ok(fd)
}

/// What a program gets for opening /dev/vsock: something to ask for the local CID.
pub(crate) fn open_device(open_flags: c_int) -> Answer<Fd> {
    // Both flags have the same values for open and for socket.
    let flags = open_flags & (libc::O_CLOEXEC | libc::O_NONBLOCK);
    make(libc::SOCK_STREAM | flags, &Socket::DEVICE)
}

fn make(kind: c_int, socket: &Socket) -> Answer<Fd> {
    let fd = Fd::unix_socket(kind)?;
    let is_kept = state::store(fd, socket).map(|()| state::load(fd) == Some(*socket));
    if is_kept != Ok(true) {
        fd.close();
        setup::explain(
            b"this kernel keeps no 64 bits in SO_MAX_PACING_RATE, which Linux does since 5.1",
        );
        return Err(is_kept.err().unwrap_or(Errno(libc::EAFNOSUPPORT)));
    }
    fd_hints::set(fd);
    Ok(fd)
}

/// `bind`.
pub(crate) fn bind(fd: Fd, socket: Socket, address: Address) -> Answer<()> {
    let mut socket = finish_connect(fd, socket)?;
    let request = calls::bind(socket, address)?;
    // Without a switch no CID is local.
    node::attach(fd, &mut socket).map_err(|_| Errno::ADDRNOTAVAIL)?;
    let answer = node::ask(fd, request);
    if let Ok(reply) = answer {
        state::give_name(fd, reply.ours)?;
        socket = calls::bound(socket);
    }
    fd_hints::set(fd);
    state::store(fd, &socket)?;
    answer.map(|_| ())
}

/// `listen`.
pub(crate) fn listen(fd: Fd, socket: Socket, backlog: c_int) -> Answer<()> {
    let socket = finish_connect(fd, socket)?;
    let Listen { is_answered, next } = Listen::new(socket, backlog)?;
    let message = listen_message(next, &state::options(fd, &socket), tick_us());
    if is_answered {
        node::ask_message(fd, op::LISTEN, &message)?;
    } else {
        node::send(fd, &message)?;
    }
    state::store(fd, &next)
}

/// `getsockname`. The first call asks the node for a port that it chose for a connect.
pub(crate) fn our_address(fd: Fd, socket: Socket) -> Answer<Address> {
    let socket = finish_connect(fd, socket)?;
    match OwnName::new(socket, state::name(fd)) {
        OwnName::Known(ours) => Ok(ours),
        OwnName::Ask => {
            let Some(port) = node::our_port(fd) else { return Ok(Address::ANY) };
            // As in the kernel, the CID of a client that did not bind to one stays the wildcard.
            let ours = Address { port, ..Address::ANY };
            state::give_name(fd, ours).map(|()| ours)
        }
    }
}

/// `getpeername`: the address, and whether it is reached through the host.
pub(crate) fn their_address(fd: Fd, socket: Socket) -> Answer<(Address, bool)> {
    let socket = finish_connect(fd, socket)?;
    calls::peer_name(socket)?;
    Ok((state::peer(fd, &socket)?, socket.flags.has(Flags::TO_HOST)))
}

/// `shutdown`.
pub(crate) fn shut_down(fd: Fd, socket: Socket, how: c_int) -> Answer<()> {
    let direction = Direction::new(how)?;
    let socket = finish_connect(fd, socket)?;
    let shutdown = Shutdown::new(socket, direction)?;
    fd.shut_down(shutdown.descriptor.how())?;
    if shutdown.ends_connect {
        send_buffer::restore(fd, &socket)?;
    }
    if shutdown.tells_node {
        // Fails if the connection has ended meanwhile, and then nothing has to be told.
        let _ = node::stop_receiving(fd);
    }
    if direction != Direction::Sending {
        fd_hints::set(fd);
    }
    state::store(fd, &shutdown.next)
}
