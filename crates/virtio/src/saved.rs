//! Descriptors beside saved state.
//!
//! Saved state is plain data (see `vsock_core::saved`), and descriptors are none. They travel beside it, in one list, as
//! SCM_RIGHTS carries them; the data has places in this list. [`SavedFds`] makes the list, [`Fds`] gives its descriptors
//! out again, each once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use vsock_core::saved::{Unfit, check};

/// The place of a descriptor in the list beside the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedFd(pub u32);

/// The descriptors of what is being saved.
#[derive(Debug, Default)]
pub struct SavedFds<'a> {
    /// Descriptors of the list before these.
    before: u32,
    fds: Vec<BorrowedFd<'a>>,
}

impl<'a> SavedFds<'a> {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The part of a list that follows its first `before` descriptors.
    #[must_use]
    pub fn following(before: usize) -> Self {
        Self { before: u32::try_from(before).unwrap_or(u32::MAX), fds: Vec::new() }
    }

    /// Adds a descriptor; its place.
    pub fn add(&mut self, fd: &'a impl AsFd) -> SavedFd {
        self.add_borrowed(fd.as_fd())
    }

    /// The same of one that is borrowed already.
    pub fn add_borrowed(&mut self, fd: BorrowedFd<'a>) -> SavedFd {
        // A process has fewer descriptors than that.
        let place = self.before.saturating_add(u32::try_from(self.fds.len()).unwrap_or(u32::MAX));
        self.fds.push(fd);
        SavedFd(place)
    }

    /// The list, with descriptors of its own.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn duplicate(&self) -> io::Result<Vec<OwnedFd>> {
        self.fds.iter().map(BorrowedFd::try_clone_to_owned).collect()
    }
}

/// The descriptors of what is being restored.
#[derive(Debug)]
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// All that came beside the data.
    #[must_use]
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Some).collect())
    }

    /// Takes out the descriptor at a place.
    ///
    /// # Errors
    /// [`Unfit::Descriptor`]: there is none, or it has been taken.
    pub fn take(&mut self, SavedFd(place): SavedFd) -> Result<OwnedFd, Unfit> {
        let found = usize::try_from(place).ok().and_then(|place| self.0.get_mut(place));
        found.and_then(Option::take).ok_or(Unfit::Descriptor)
    }

    /// All has been restored.
    ///
    /// # Errors
    /// [`Unfit::Descriptor`]: one is left that the data did not name.
    pub fn finish(self) -> Result<(), Unfit> {
        check(self.0.iter().all(Option::is_none), Unfit::Descriptor)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptor_is_taken_once_and_all_are() {
        let (one, other) = UnixStream::pair().unwrap();
        let mut first = SavedFds::new();
        let place = first.add(&one);
        let mut second = SavedFds::following(1);
        let behind = second.add(&other);
        let mut list = first.duplicate().unwrap();
        list.extend(second.duplicate().unwrap());
        let mut fds = Fds::new(list);
        assert!(fds.take(place).is_ok());
        assert_eq!(fds.take(place).err(), Some(Unfit::Descriptor));
        assert_eq!(fds.take(SavedFd(2)).err(), Some(Unfit::Descriptor));
        assert!(fds.take(behind).is_ok());
        assert_eq!(fds.finish(), Ok(()));
        let fds = Fds::new(first.duplicate().unwrap());
        assert_eq!(fds.finish(), Err(Unfit::Descriptor));
    }
}
