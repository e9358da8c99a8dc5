//! Reads and writes a program's `struct sockaddr_vm`.

use core::ffi::c_void;
use core::mem::size_of;

use libc::{sockaddr_vm, socklen_t};
use vsock_client::Address;

use crate::sys::{Answer, Errno};

/// Bytes in a sockaddr_vm.
pub(crate) const LEN: socklen_t = 16;
/// Bytes in a sockaddr_storage: no system call takes a longer address, nor a negative length.
pub(crate) const LONGEST: socklen_t = 128;
const FLAG_TO_HOST: u8 = 1;

const _: () = assert!(size_of::<sockaddr_vm>() == LEN as usize);

/// The family of the address that a program passes; `None` if there is none.
///
/// # Safety
/// `at` is null or points to `len` readable bytes.
pub(crate) unsafe fn family(at: *const c_void, len: socklen_t) -> Option<i32> {
    if at.is_null() || len < 2 {
        return None;
    }
    // SAFETY: two bytes are readable, says the caller.
    Some(i32::from(unsafe { at.cast::<u16>().read_unaligned() }))
}

/// Whether the kernel refuses an address of this length before it checks anything else.
pub(crate) fn is_too_long(len: socklen_t) -> bool {
    len > LONGEST
}

/// Reads the address that a program passes: EFAULT, or EINVAL for all other faults, as in the kernel.
///
/// # Safety
/// `at` is null or points to `len` readable bytes.
pub(crate) unsafe fn read(at: *const c_void, len: socklen_t) -> Answer<Address> {
    if at.is_null() && len > 0 {
        return Err(Errno(libc::EFAULT));
    }
    if len < LEN {
        return Err(Errno(libc::EINVAL));
    }
    // SAFETY: `len` bytes are readable, and that is enough for one.
    let address = unsafe { at.cast::<sockaddr_vm>().read_unaligned() };
    let flags = address.svm_zero[0]; // named svm_flags since Linux 5.11
    if i32::from(address.svm_family) != libc::AF_VSOCK || flags & !FLAG_TO_HOST != 0 {
        return Err(Errno(libc::EINVAL));
    }
    Ok(Address { cid: address.svm_cid, port: address.svm_port })
}

/// Whether an address that `read` has accepted has VMADDR_FLAG_TO_HOST.
///
/// # Safety
/// `at` points to `LEN` readable bytes.
pub(crate) unsafe fn is_to_host(at: *const c_void) -> bool {
    // SAFETY: that is what the caller vouches for.
    let address = unsafe { at.cast::<sockaddr_vm>().read_unaligned() };
    address.svm_zero[0] & FLAG_TO_HOST != 0
}

/// Writes an address into a program's buffer, cut to its size; `len` becomes the full length.
///
/// # Safety
/// `len` is null or valid; `at` has room for `*len` bytes.
pub(crate) unsafe fn write(address: Address, at: *mut c_void, len: *mut socklen_t) -> Answer<()> {
    // SAFETY: the caller vouches for the same.
    unsafe { write_flagged(address, false, at, len) }
}

/// Writes an address as `write` does, with VMADDR_FLAG_TO_HOST if it is reached through the host.
///
/// # Safety
/// As of `write`.
pub(crate) unsafe fn write_flagged(
    address: Address,
    to_host: bool,
    at: *mut c_void,
    len: *mut socklen_t,
) -> Answer<()> {
    if at.is_null() || len.is_null() {
        return Err(Errno(libc::EFAULT));
    }
    // SAFETY: all zeros is a valid sockaddr_vm.
    let mut value: sockaddr_vm = unsafe { core::mem::zeroed() };
    value.svm_family = u16::try_from(libc::AF_VSOCK).unwrap_or(0);
    value.svm_cid = address.cid;
    value.svm_port = address.port;
    value.svm_zero[0] = if to_host { FLAG_TO_HOST } else { 0 };
    // SAFETY: the caller vouches for both pointers; no more than `*len` bytes are written.
    unsafe {
        if *len > i32::MAX as socklen_t {
            return Err(Errno(libc::EINVAL));
        }
        let room = (*len).min(LEN) as usize;
        at.cast::<u8>().copy_from_nonoverlapping((&raw const value).cast(), room);
        *len = LEN;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(family: u16, port: u32, cid: u32, flags: u8) -> [u8; 20] {
        let mut bytes = [0xee; 20];
        bytes[0..2].copy_from_slice(&family.to_ne_bytes());
        bytes[4..8].copy_from_slice(&port.to_ne_bytes());
        bytes[8..12].copy_from_slice(&cid.to_ne_bytes());
        bytes[12] = flags;
        bytes
    }

    fn read_all(bytes: &[u8]) -> Answer<Address> {
        // SAFETY: a slice is readable to its end.
        unsafe { read(bytes.as_ptr().cast(), socklen_t::try_from(bytes.len()).unwrap()) }
    }

    #[test]
    fn address_longer_than_needed_is_read() {
        assert_eq!(read_all(&bytes(40, 5000, 3, 1)), Ok(Address { cid: 3, port: 5000 }));
    }

    #[test]
    fn short_foreign_or_unknown_address_is_invalid() {
        let good = bytes(40, 5000, 3, 0);
        assert_eq!(read_all(&good[..15]), Err(Errno(libc::EINVAL)));
        assert_eq!(read_all(&bytes(1, 5000, 3, 0)), Err(Errno(libc::EINVAL)));
        assert_eq!(read_all(&bytes(40, 5000, 3, 2)), Err(Errno(libc::EINVAL)));
    }

    #[test]
    fn written_address_is_cut_to_the_room_and_tells_its_length() {
        let mut room = [0xee; 16];
        let mut len = 10;
        let address = Address { cid: 3, port: 0x0102_0304 };
        // SAFETY: `len` is no more than the room.
        unsafe { write(address, room.as_mut_ptr().cast(), &raw mut len) }.unwrap();
        assert_eq!(len, 16);
        assert_eq!(room[4..8], 0x0102_0304u32.to_ne_bytes());
        assert_eq!(room[10..], [0xee; 6]);
    }
}
