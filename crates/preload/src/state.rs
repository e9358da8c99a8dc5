//! Reads and writes a socket's state, which is kept in fields of the kernel (`vsock_client::socket` has the layout).

use core::mem::size_of;

use libc::sockaddr_un;
use vsock_client::name::{self, NAME_LEN};
use vsock_client::{Address, Flags, Options, Socket};

use crate::sys::{Answer, Errno, Fd, now_ns};

/// How many names are tried.
const NAME_ATTEMPTS: u32 = 8;
const UNIX_NAME_LEN: usize = size_of::<libc::sa_family_t>() + NAME_LEN;

/// The state of a socket; `None` if it is not one of ours.
pub(crate) fn load(fd: Fd) -> Option<Socket> {
    let word: u64 = fd.option(libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE).ok()?;
    Socket::unpack(word)
}

/// Keeps the state of a socket.
pub(crate) fn store(fd: Fd, socket: &Socket) -> Answer<()> {
    fd.set_option(libc::SO_MAX_PACING_RATE, &socket.pack())
}

/// Keeps the other side's port; its CID is in the state.
pub(crate) fn store_peer_port(fd: Fd, port: u32) -> Answer<()> {
    fd.set_option(libc::SO_INCOMING_CPU, &port)
}

/// The other side's address.
pub(crate) fn peer(fd: Fd, socket: &Socket) -> Answer<Address> {
    fd.option(libc::SOL_SOCKET, libc::SO_INCOMING_CPU).map(|port| socket.peer(port))
}

/// The socket's options. Most sockets have the defaults, of which nothing is kept.
pub(crate) fn options(fd: Fd, socket: &Socket) -> Options {
    if !socket.flags.has(Flags::OPTIONS) {
        return Options::DEFAULT;
    }
    fd.times().map_or(Options::DEFAULT, Options::from_times)
}

/// Keeps the options. The caller keeps the returned state, which says whether there are any.
///
/// Fails with EPERM for an accepted connection if the node runs as another user: the inode belongs to the creator of the
/// socket.
pub(crate) fn store_options(fd: Fd, socket: Socket, options: &Options) -> Answer<Socket> {
    let socket = socket.with_options(options);
    if socket.flags.has(Flags::OPTIONS) {
        fd.set_times(options.to_times())?;
    }
    Ok(socket)
}

/// Gives the socket its address, unless it has one.
///
/// A Unix socket gets a name once, and a VSOCK socket its address: by bind, by an attempt to connect that took a port, or by
/// accept. A later caller would give the same address.
pub(crate) fn give_name(fd: Fd, ours: Address) -> Answer<()> {
    let cookie = fd.cookie()?;
    for attempt in 0..NAME_ATTEMPTS {
        // Abstract names have no owner: another user may hold this one, but not all that the clock can give.
        let salt = if attempt == 0 { 0 } else { now_ns().rotate_left(attempt * 8) };
        match bind_name(fd, cookie ^ salt, ours) {
            Ok(()) | Err(Errno(libc::EINVAL)) => return Ok(()),
            Err(Errno(libc::EADDRINUSE)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno(libc::EADDRINUSE))
}

fn bind_name(fd: Fd, unique: u64, ours: Address) -> Answer<()> {
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = u16::try_from(libc::AF_UNIX).unwrap_or(0);
    for (to, from) in address.sun_path.iter_mut().zip(name::encode(unique, ours)) {
        *to = from.cast_signed();
    }
    fd.bind_unix(&address, UNIX_NAME_LEN)
}

/// The address that the socket has.
pub(crate) fn name(fd: Fd) -> Option<Address> {
    let (address, len) = fd.unix_name().ok()?;
    if len != UNIX_NAME_LEN {
        return None;
    }
    let mut name = [0; NAME_LEN];
    for (to, from) in name.iter_mut().zip(address.sun_path) {
        *to = from.cast_unsigned();
    }
    name::decode(&name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsock_client::{ANY, State};

    fn socket() -> Fd {
        Fd::unix_socket(libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC).unwrap()
    }

    #[test]
    fn state_is_seen_through_a_copy_of_the_descriptor_and_written_through_it() {
        let fd = socket();
        store(fd, &Socket::SEQPACKET).unwrap();
        // SAFETY: dup of a descriptor of ours.
        let copy = Fd(unsafe { libc::dup(fd.0) });
        let bound = Socket::SEQPACKET.in_state(State::Bound);
        store(copy, &bound).unwrap();
        assert_eq!(load(fd), Some(bound));
        copy.close();
        fd.close();
    }

    #[test]
    fn all_bits_of_a_state_are_kept() {
        let fd = socket();
        let flags = Flags::ATTACHED.with(Flags::END_TOLD);
        let full = Socket::DEVICE.with(flags).with_error(Errno(255)).with_peer_cid(ANY);
        store(fd, &full).unwrap();
        assert_eq!(load(fd), Some(full));
        fd.close();
    }

    #[test]
    fn socket_without_a_state_is_not_ours() {
        let fd = socket();
        assert_eq!(load(fd), None);
        fd.set_option(libc::SO_MAX_PACING_RATE, &1_000_000u64).unwrap();
        assert_eq!(load(fd), None);
        fd.close();
        assert_eq!(load(Fd(-1)), None);
    }

    #[test]
    fn address_of_the_other_side_is_read_back() {
        let fd = socket();
        let theirs = Address { cid: 0xffff_fffe, port: 0xffff_fffd };
        store_peer_port(fd, theirs.port).unwrap();
        store(fd, &Socket::STREAM.with_peer_cid(theirs.cid)).unwrap();
        assert_eq!(peer(fd, &load(fd).unwrap()), Ok(theirs));
        fd.close();
    }

    #[test]
    fn options_kept_are_read_back() {
        let fd = socket();
        let most = (1 << 29) - 1;
        let table = [
            Options { size: 1 << 33, min: 3, max: 1 << 40, connect_ticks: 250 },
            Options { size: 0, min: 0, max: u64::MAX, connect_ticks: most },
            Options { size: u64::MAX, min: most, max: 0, connect_ticks: 1 },
            Options::DEFAULT,
        ];
        for kept in table {
            let socket = store_options(fd, Socket::STREAM, &kept).unwrap();
            assert_eq!(options(fd, &socket), kept);
        }
        fd.close();
    }

    #[test]
    fn address_given_is_read_back_and_stays() {
        let fd = socket();
        assert_eq!(name(fd), None);
        let ours = Address { cid: ANY, port: 0x1234_abcd };
        give_name(fd, ours).unwrap();
        give_name(fd, Address { cid: 3, port: 1 }).unwrap();
        assert_eq!(name(fd), Some(ours));
        fd.close();
    }

    #[test]
    fn two_sockets_may_have_the_same_address() {
        let ours = Address { cid: 2, port: 5000 };
        let sockets = [0; 2].map(|_| socket());
        for fd in sockets {
            give_name(fd, ours).unwrap();
            assert_eq!(name(fd), Some(ours));
        }
        sockets.into_iter().for_each(Fd::close);
    }

    #[test]
    fn name_that_somebody_else_holds_is_given_in_another_form() {
        let ours = Address { cid: 3, port: 5000 };
        let sockets = [0; 2].map(|_| socket());
        bind_name(sockets[0], sockets[1].cookie().unwrap(), ours).unwrap();
        give_name(sockets[1], ours).unwrap();
        assert_eq!(name(sockets[1]), Some(ours));
        sockets.into_iter().for_each(Fd::close);
    }

    #[test]
    fn name_of_somebody_else_is_no_address() {
        let fd = socket();
        // SAFETY: all zeros is a valid sockaddr_un.
        let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
        address.sun_family = u16::try_from(libc::AF_UNIX).unwrap();
        address.sun_path[1] = b'v'.cast_signed();
        fd.bind_unix(&address, UNIX_NAME_LEN).unwrap();
        assert_eq!(name(fd), None);
        fd.close();
    }
}
