//! A socket's own address, kept as the abstract name of its Unix socket.
//!
//! `vsock/`, a number that makes the name the only one of its kind (the socket's cookie, unless that name is taken), the
//! CID and the port, in hexadecimal digits with `/` between them. `ss -x` shows it as `@vsock/…`.

use crate::Address;

const PREFIX: &[u8] = b"\0vsock/";
const UNIQUE_AT: usize = PREFIX.len();
const CID_AT: usize = UNIQUE_AT + 16 + 1;
const PORT_AT: usize = CID_AT + 8 + 1;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// Bytes in a name, its leading NUL included.
pub const NAME_LEN: usize = PORT_AT + 8;

/// The name for a socket with this address.
#[must_use]
pub fn encode(unique: u64, ours: Address) -> [u8; NAME_LEN] {
    let mut name = [b'/'; NAME_LEN];
    name[..UNIQUE_AT].copy_from_slice(PREFIX);
    write(&mut name[UNIQUE_AT..CID_AT - 1], unique);
    write(&mut name[CID_AT..PORT_AT - 1], ours.cid.into());
    write(&mut name[PORT_AT..], ours.port.into());
    name
}

/// The address in a name; `None` if it is the name of something else.
#[must_use]
pub fn decode(name: &[u8; NAME_LEN]) -> Option<Address> {
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

    const OURS: Address = Address { cid: u32::MAX, port: 0x1234_abcd };

    #[test]
    fn name_is_as_the_specification_says_and_is_read_back() {
        let name = encode(0x0123_4567_89ab_cdef, OURS);
        assert_eq!(&name, b"\0vsock/0123456789abcdef/ffffffff/1234abcd");
        assert_eq!(decode(&name), Some(OURS));
    }

    #[test]
    fn name_of_something_else_is_no_address() {
        let mut name = encode(7, OURS);
        name[1] = b'w';
        assert_eq!(decode(&name), None);
        name = encode(7, OURS);
        name[NAME_LEN - 1] = b'x';
        assert_eq!(decode(&name), None);
    }
}
