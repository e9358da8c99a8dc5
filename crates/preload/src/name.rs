//! Our address, kept as the abstract name of the Unix socket.
//!
//! A name is given once, and so is an address: by bind, by an attempt to connect that took a port, or by accept. Whoever
//! comes second has the same to say, and finds the name there. It begins with the socket's cookie, or another number where
//! somebody holds that name, to be the only one of its kind. `ss -x` shows it: `@vsock/` and that number, the CID and the
//! port, in hexadecimal digits.

use core::mem::size_of;

use libc::sockaddr_un;
use vsock_client::Address;

use crate::sys::{Answer, Errno, Fd, now_ns};

const PREFIX: &[u8] = b"\0vsock/";
const LEN: usize = PREFIX.len() + 16 + 1 + 8 + 1 + 8;
const CID_AT: usize = PREFIX.len() + 17;
const PORT_AT: usize = CID_AT + 9;
/// How many names are tried.
const ATTEMPTS: u32 = 8;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Gives the socket its address; it keeps the one that it has.
pub(crate) fn give(fd: Fd, ours: Address) -> Answer<()> {
    let cookie = fd.cookie()?;
    for attempt in 0..ATTEMPTS {
        // Names have no owner: another user may hold the one that is ours, but not all that the clock can give.
        let salt = if attempt == 0 { 0 } else { now_ns().rotate_left(attempt * 8) };
        match bind(fd, cookie ^ salt, ours) {
            Ok(()) | Err(Errno(libc::EINVAL)) => return Ok(()),
            Err(Errno(libc::EADDRINUSE)) => {}
            Err(error) => return Err(error),
        }
    }
    Err(Errno(libc::EADDRINUSE))
}

fn bind(fd: Fd, unique: u64, ours: Address) -> Answer<()> {
    let mut name = [b'/'; LEN];
    name[..PREFIX.len()].copy_from_slice(PREFIX);
    write(&mut name[PREFIX.len()..CID_AT - 1], unique);
    write(&mut name[CID_AT..PORT_AT - 1], ours.cid.into());
    write(&mut name[PORT_AT..], ours.port.into());
    // SAFETY: all zeros is a valid sockaddr_un.
    let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
    address.sun_family = u16::try_from(libc::AF_UNIX).unwrap_or(0);
    for (to, from) in address.sun_path.iter_mut().zip(name) {
        *to = from.cast_signed();
    }
    fd.bind_unix(&address, size_of::<libc::sa_family_t>() + LEN)
}

/// The address that a socket was given.
pub(crate) fn of(fd: Fd) -> Option<Address> {
    let (address, len) = fd.unix_name().ok()?;
    if len != size_of::<libc::sa_family_t>() + LEN {
        return None;
    }
    let mut name = [0; LEN];
    for (to, from) in name.iter_mut().zip(address.sun_path) {
        *to = from.cast_unsigned();
    }
    name.starts_with(PREFIX).then_some(())?;
    Some(Address { cid: read(&name[CID_AT..PORT_AT - 1])?, port: read(&name[PORT_AT..])? })
}

fn write(digits: &mut [u8], mut number: u64) {
    for digit in digits.iter_mut().rev() {
        *digit = DIGITS[usize::try_from(number & 15).unwrap_or(0)];
        number >>= 4;
    }
}

fn read(digits: &[u8]) -> Option<u32> {
    digits.iter().try_fold(0, |number: u32, digit| {
        let value = DIGITS.iter().position(|known| known == digit)?;
        Some(number << 4 | u32::try_from(value).ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vsock_client::ANY;

    #[test]
    fn address_given_is_read_back_and_stays() {
        let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC).unwrap();
        assert_eq!(of(fd), None);
        let ours = Address { cid: ANY, port: 0x1234_abcd };
        give(fd, ours).unwrap();
        give(fd, Address { cid: 3, port: 1 }).unwrap();
        assert_eq!(of(fd), Some(ours));
        fd.close();
    }

    #[test]
    fn two_sockets_may_have_the_same_address() {
        let ours = Address { cid: 2, port: 5000 };
        let sockets = [0; 2].map(|_| Fd::unix_socket(libc::SOCK_STREAM).unwrap());
        for fd in sockets {
            give(fd, ours).unwrap();
            assert_eq!(of(fd), Some(ours));
        }
        sockets.into_iter().for_each(Fd::close);
    }

    #[test]
    fn name_that_somebody_else_holds_is_given_in_another_form() {
        let ours = Address { cid: 3, port: 5000 };
        let sockets = [0; 2].map(|_| Fd::unix_socket(libc::SOCK_STREAM).unwrap());
        bind(sockets[0], sockets[1].cookie().unwrap(), ours).unwrap();
        give(sockets[1], ours).unwrap();
        assert_eq!(of(sockets[1]), Some(ours));
        sockets.into_iter().for_each(Fd::close);
    }

    #[test]
    fn name_of_somebody_else_is_no_address() {
        let fd = Fd::unix_socket(libc::SOCK_STREAM | libc::SOCK_CLOEXEC).unwrap();
        // SAFETY: all zeros is a valid sockaddr_un.
        let mut address: sockaddr_un = unsafe { core::mem::zeroed() };
        address.sun_family = u16::try_from(libc::AF_UNIX).unwrap();
        address.sun_path[1] = b'v'.cast_signed();
        fd.bind_unix(&address, size_of::<libc::sa_family_t>() + LEN).unwrap();
        assert_eq!(of(fd), None);
        fd.close();
    }
}
