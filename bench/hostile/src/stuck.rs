//! A page that does not come: whoever touches it waits, with the locks it holds, until the attack lets go.
//!
//! userfaultfd(2) for faults inside system calls needs root.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::null_mut;

use rustix::event::epoll;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap_anonymous, userfaultfd};

/// `UFFDIO_API` and its structure.
const API: Opcode = opcode::read_write::<[u64; 3]>(0xaa, 0x3f);
const API_VERSION: u64 = 0xaa;
/// `UFFDIO_REGISTER` and its structure: start, length, mode, ioctls.
const REGISTER: Opcode = opcode::read_write::<[u64; 4]>(0xaa, 0x00);
const MODE_MISSING: u64 = 1;

const PAGE: usize = 4096;

/// The page; it is never unmapped, as the process ends with the attack.
pub(crate) struct StuckPage(*mut u8);

// SAFETY: the page belongs to this value alone, which does not care on which thread it is touched.
unsafe impl Send for StuckPage {}

impl StuckPage {
    /// The page, and what keeps it from coming: dropped, all who wait go on with zeros.
    pub(crate) fn new() -> io::Result<(Self, OwnedFd)> {
        // SAFETY: a new mapping at a place of the kernel's choice disturbs nothing.
        let page = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap_anonymous(null_mut(), PAGE, access, MapFlags::PRIVATE)?
        };
        // SAFETY: what it observes is one page that only this file touches; the structures are those of the requests.
        let faults = unsafe {
            let faults = userfaultfd(UserfaultfdFlags::CLOEXEC)?;
            ioctl(faults.as_fd(), Updater::<API, _>::new(&mut [API_VERSION, 0, 0]))?;
            let mut range = [page.expose_provenance() as u64, PAGE as u64, MODE_MISSING, 0];
            ioctl(faults.as_fd(), Updater::<REGISTER, _>::new(&mut range))?;
            faults
        };
        Ok((Self(page.cast()), faults))
    }

    /// Writes the page to a descriptor.
    pub(crate) fn write_to(&self, fd: impl AsFd) -> io::Result<usize> {
        // SAFETY: the page is mapped for good and nobody writes it; its bytes are zeros once they come.
        let bytes = unsafe { std::slice::from_raw_parts(self.0, PAGE) };
        Ok(rustix::io::write(fd, bytes)?)
    }

    /// Waits for an event of an epoll set, which is to be written into the page.
    pub(crate) fn wait_for(&mut self, set: impl AsFd) -> io::Result<usize> {
        // SAFETY: the page is mapped for good, large and aligned enough for one event, and borrowed by nobody else.
        let events = unsafe {
            std::slice::from_raw_parts_mut(self.0.cast::<MaybeUninit<epoll::Event>>(), 1)
        };
        let (events, _) = epoll::wait(set, events, None)?;
        Ok(events.len())
    }
}
