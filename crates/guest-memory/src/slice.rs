//! Pieces of guest memory, for copies and vectored system calls.
//!
//! Guest memory is written by the guest while we look at it, so a `&[u8]` to it would be a lie to the compiler.
//! All access goes through [`Slice`], a pointer with its length, which can only be copied from, copied to, or handed
//! to a vectored system call. Whoever copies out of a slice decides on the copy, never on the slice: a second look may
//! see other bytes.
//!
//! **What keeps it mapped.** Slices exist only inside a list, [`Slices`], which holds the memory that its pieces lie
//! in. They are neither `Copy` nor `Clone`, so that one is reached by reference only, for no longer than the list
//! has it. A list is scratch that is used again for every batch: between batches it must be [cleared](Slices::clear),
//! or the memory of a guest that is gone stays mapped.
//!
//! ```compile_fail,E0507
//! # use vsock_guest_memory::slice::{Slice, Slices};
//! fn keep(list: &Slices) -> Slice {
//!     list[0] // a piece cannot leave its list
//! }
//! ```
//!
//! ```compile_fail,E0502
//! # use vsock_guest_memory::slice::{Slice, Slices, total};
//! fn clear_too_early(list: &mut Slices) -> usize {
//!     let piece = &list[..1];
//!     list.clear(); // the memory may be unmapped here
//!     total(piece)
//! }
//! ```
//!
//! **Faults.** When a front end shrinks the file behind its memory, a copy takes SIGBUS and continues on zero
//! pages (see `sigbus.rs`); a system call reports EFAULT, which the helpers here turn into
//! [`TransferError::MemoryDead`].

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ops::{Deref, Range};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};

use crate::memory::GuestMemory;

/// The most pieces that one vectored system call takes (`IOV_MAX` of Linux).
const MAX_VECTOR: usize = 1024;

/// A piece of guest memory: pointer and length, laid out as the `iovec` of readv(2).
#[repr(transparent)]
pub struct Slice(libc::iovec);

// SAFETY: a slice names memory shared with another process anyway; nothing about it is bound to a thread,
// and all access through it is by copies that tolerate concurrent change.
unsafe impl Send for Slice {}

impl Slice {
    /// Names `len` bytes at `start`.
    ///
    /// # Safety
    /// The bytes must stay mapped readable and writable for as long as the slice is used, and no Rust
    /// reference to them may exist.
    pub(crate) const unsafe fn new(start: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: start.cast(), iov_len: len })
    }

    /// Number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.iov_len
    }

    /// True when there are no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) const fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// Copies the first bytes out into `to`; returns how many (the shorter of both).
    pub fn copy_to(&self, to: &mut [u8]) -> usize {
        let len = self.len().min(to.len());
        // SAFETY: `len` bytes are mapped at our pointer (type invariant) and `to` is ordinary memory of ours
        // which cannot overlap a shared mapping that no reference points into.
        unsafe { std::ptr::copy_nonoverlapping(self.as_ptr(), to.as_mut_ptr(), len) };
        // The copy is now what decisions are made on: the compiler must not load the original again.
        compiler_fence(Ordering::SeqCst);
        len
    }

    /// As [`copy_to`](Self::copy_to), from the byte at `offset` on (nothing, if that is behind the end).
    pub fn copy_to_from(&self, offset: usize, to: &mut [u8]) -> usize {
        self.split_at(offset).1.copy_to(to)
    }

    /// Copies `from` to the start of the slice; returns how many bytes (the shorter of both).
    pub fn copy_from(&self, from: &[u8]) -> usize {
        let len = self.len().min(from.len());
        // SAFETY: as in `copy_to`, in the other direction.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.as_ptr(), len) };
        len
    }

    /// The same piece again; only for lists that hold its memory, or for less time than its owner does.
    const fn copied(&self) -> Self {
        Self(self.0)
    }

    /// The first `at` bytes (at most all of them), and the rest.
    fn split_at(&self, at: usize) -> (Self, Self) {
        let at = at.min(self.len());
        // SAFETY: both parts lie inside this slice.
        unsafe { (Self::new(self.as_ptr(), at), Self::new(self.as_ptr().add(at), self.len() - at)) }
    }

    /// Drops the first `n` bytes (at most all of them).
    fn advance(&mut self, n: usize) {
        *self = self.split_at(n).1;
    }

    /// Keeps only the first `n` bytes.
    fn truncate(&mut self, n: usize) {
        *self = self.split_at(n).0;
    }
}

impl std::fmt::Debug for Slice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slice({:p}, {})", self.as_ptr(), self.len())
    }
}

/// One slice, for as long as the memory is borrowed.
#[derive(Debug)]
pub struct Piece<'m> {
    slice: Slice,
    memory: PhantomData<&'m GuestMemory>,
}

impl<'m> Piece<'m> {
    /// A slice of `_memory`.
    pub(crate) fn new(_memory: &'m GuestMemory, slice: Slice) -> Self {
        Self { slice, memory: PhantomData }
    }
}

impl Deref for Piece<'_> {
    type Target = Slice;

    fn deref(&self) -> &Slice {
        &self.slice
    }
}

/// Pieces of guest memory in a row, and a hold on the memory they lie in.
#[derive(Debug, Default)]
pub struct Slices {
    pieces: Vec<Slice>,
    /// The memory of all pieces: mostly one.
    held: Vec<Arc<GuestMemory>>,
}

impl Deref for Slices {
    type Target = [Slice];

    #[inline]
    fn deref(&self) -> &[Slice] {
        &self.pieces
    }
}

impl Slices {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self { pieces: Vec::new(), held: Vec::new() }
    }

    /// An empty list with room for `capacity` pieces.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self { pieces: Vec::with_capacity(capacity), held: Vec::with_capacity(1) }
    }

    /// Removes all pieces and lets go of their memory.
    #[inline]
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.held.clear();
    }

    /// Keeps only the first `len` pieces. Their memory stays held, with that of the others: for use inside a batch.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.pieces.truncate(len);
    }

    /// Holds `memory` until the list is cleared.
    #[inline]
    pub(crate) fn hold(&mut self, memory: &Arc<GuestMemory>) {
        if !self.held.last().is_some_and(|held| Arc::ptr_eq(held, memory)) {
            self.held.push(Arc::clone(memory));
        }
    }

    /// Adds a piece of memory that is held.
    #[inline]
    pub(crate) fn push(&mut self, piece: Slice) {
        self.pieces.push(piece);
    }

    /// Appends the pieces in a range of another list, shortened to `len` bytes in all.
    pub fn gather(&mut self, from: &Self, range: Range<usize>, len: usize) {
        for memory in &from.held {
            self.hold(memory);
        }
        let mut left = len;
        for piece in &from.pieces[range] {
            if left == 0 {
                break;
            }
            let mut piece = piece.copied();
            piece.truncate(left);
            left -= piece.len();
            self.pieces.push(piece);
        }
    }

    /// Shortens the pieces in `range` to `len` bytes in all; returns the range of those that are left.
    pub fn shorten(&mut self, range: Range<usize>, len: usize) -> Range<usize> {
        let mut left = len;
        for index in range.clone() {
            if left == 0 {
                return range.start..index;
            }
            self.pieces[index].truncate(left);
            left -= self.pieces[index].len();
        }
        range
    }

    /// Drops the first `n` bytes of the pieces in `range`; returns the range of those that are left.
    pub fn advance(&mut self, range: Range<usize>, n: usize) -> Range<usize> {
        let mut left = n;
        for index in range.clone() {
            let len = self.pieces[index].len();
            if left < len {
                self.pieces[index].advance(left);
                return index..range.end;
            }
            left -= len;
        }
        range.end..range.end
    }

    /// Cuts the pieces from `start` on behind `at` bytes, in two where that is inside a piece; returns the number of
    /// the first piece behind the cut.
    pub fn cut(&mut self, start: usize, at: usize) -> usize {
        let mut left = at;
        let mut index = start;
        while left > 0 && index < self.pieces.len() {
            let (part, rest) = self.pieces[index].split_at(left);
            left -= part.len();
            if !rest.is_empty() {
                self.pieces[index] = part;
                self.pieces.insert(index + 1, rest);
            }
            index += 1;
        }
        index
    }
}

/// Number of bytes in all pieces.
#[must_use]
pub fn total(pieces: &[Slice]) -> usize {
    pieces.iter().map(Slice::len).sum()
}

/// Copies guest memory into `to` until one side ends; returns how many bytes.
pub fn copy_out(pieces: &[Slice], to: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        if done == to.len() {
            break;
        }
        done += piece.copy_to(&mut to[done..]);
    }
    done
}

/// Copies `from` into guest memory until one side ends; returns how many bytes.
pub fn copy_in(pieces: &[Slice], from: &[u8]) -> usize {
    let mut done = 0;
    for piece in pieces {
        if done == from.len() {
            break;
        }
        done += piece.copy_from(&from[done..]);
    }
    done
}

/// Copies guest memory to guest memory until one side ends, with one memory copy per overlap of pieces;
/// returns how many bytes. Pieces may overlap each other: a guest that offers such buffers gets what it asks for.
pub fn copy(to: &[Slice], from: &[Slice]) -> usize {
    let mut done = 0;
    let mut targets = to.iter().map(Slice::copied);
    let mut target = targets.next();
    for source in from {
        let mut source = source.copied();
        while !source.is_empty() {
            let Some(room) = target.as_mut() else { return done };
            let len = room.len().min(source.len());
            // SAFETY: `len` bytes are mapped at both pointers (type invariant); `copy` allows overlap.
            unsafe { std::ptr::copy(source.as_ptr(), room.as_ptr(), len) };
            done += len;
            source.advance(len);
            room.advance(len);
            if room.is_empty() {
                target = targets.next();
            }
        }
    }
    done
}

/// Why a transfer between an fd and guest memory moved nothing.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The memory is no longer backed by its file (EFAULT): the front end broke its promise.
    #[error("guest memory is not backed by its file any more")]
    MemoryDead,
    /// The fd said no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The result of a system call as bytes moved; EINTR is left to `retry`.
fn transferred(result: isize) -> Result<usize, TransferError> {
    usize::try_from(result).map_err(|_| {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EFAULT) {
            TransferError::MemoryDead
        } else {
            error.into()
        }
    })
}

/// Repeats a system call that a signal interrupted.
fn retry(mut call: impl FnMut() -> isize) -> Result<usize, TransferError> {
    loop {
        match transferred(call()) {
            Err(TransferError::Io(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// The pieces as a vector for the kernel, and how many it may be told of at once.
fn vector(pieces: &[Slice]) -> (*const libc::iovec, libc::c_int) {
    let count = pieces.len().min(MAX_VECTOR);
    // `Slice` is a transparent `iovec`, so a run of them is the vector that the kernel wants.
    (pieces.as_ptr().cast(), libc::c_int::try_from(count).unwrap_or(0))
}

/// readv(2) into guest memory (at most the first 1024 pieces). 0 is end of file.
///
/// # Errors
/// What readv says; EFAULT as [`TransferError::MemoryDead`].
pub fn readv(fd: BorrowedFd<'_>, pieces: &[Slice]) -> Result<usize, TransferError> {
    let (pointer, count) = vector(pieces);
    // SAFETY: the vector names mapped guest memory (type invariant of `Slice`); the kernel checks every access.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), pointer, count) })
}

/// writev(2) from guest memory (at most the first 1024 pieces).
///
/// # Errors
/// What writev says; EFAULT as [`TransferError::MemoryDead`].
pub fn writev(fd: BorrowedFd<'_>, pieces: &[Slice]) -> Result<usize, TransferError> {
    let (pointer, count) = vector(pieces);
    // SAFETY: as in `readv`.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), pointer, count) })
}

/// A message header over the pieces.
fn message(pieces: &[Slice]) -> libc::msghdr {
    // SAFETY: all-zero is a valid `msghdr`: no name, no vector, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    message
}

/// Sends all the pieces as one message (sendmsg(2)), without SIGPIPE and without waiting. `flags` are added.
///
/// A guest may cut its packets into more pieces than one call takes; those are copied together first, as a part
/// of a message would be another message. How many bytes that are is up to the caller, who has a turn's worth: a
/// packet of more than 64 KiB never gets this far.
///
/// # Errors
/// What sendmsg says; EFAULT as [`TransferError::MemoryDead`].
pub fn sendmsg(fd: BorrowedFd<'_>, pieces: &[Slice], flags: i32) -> Result<usize, TransferError> {
    if let Some(mut bytes) = bounce(pieces) {
        copy_out(pieces, &mut bytes);
        let pointer = bytes.as_mut_ptr();
        // SAFETY: the slice names the vector, which outlives the call; nothing else refers to it meanwhile.
        let whole = unsafe { Slice::new(pointer, bytes.len()) };
        return sendmsg(fd, &[whole], flags);
    }
    let message = message(pieces);
    let flags = flags | libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the header lives through the call and its vector names mapped guest memory.
    retry(|| unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, flags) })
}

/// Memory for all the bytes of pieces that are too many for one call; `None` when they are not.
fn bounce(pieces: &[Slice]) -> Option<Vec<u8>> {
    (pieces.len() > MAX_VECTOR).then(|| vec![0; total(pieces)])
}

/// What [`recvmsg`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes written to the pieces.
    pub len: usize,
    /// The message was longer than the pieces and its rest is lost.
    pub truncated: bool,
    /// Descriptors came with it. A Unix stream ends a read behind them, whatever else is there.
    pub had_descriptors: bool,
}

/// Receives one message into all the pieces (recvmsg(2)), without waiting. `flags` are added. More pieces than one
/// call takes are filled by way of memory of our own. Descriptors that come with it are closed by the kernel, on this thread.
///
/// # Errors
/// What recvmsg says; EFAULT as [`TransferError::MemoryDead`].
pub fn recvmsg(
    fd: BorrowedFd<'_>,
    pieces: &[Slice],
    flags: i32,
) -> Result<Received, TransferError> {
    receive(fd, pieces, flags, None)
}

/// The same, but descriptors that come with the message are added to `descriptors`, as many as the process may have.
///
/// # Errors
/// As [`recvmsg`].
pub fn recvmsg_with_descriptors(
    fd: BorrowedFd<'_>,
    pieces: &[Slice],
    flags: i32,
    descriptors: &mut Vec<OwnedFd>,
) -> Result<Received, TransferError> {
    receive(fd, pieces, flags | libc::MSG_CMSG_CLOEXEC, Some(descriptors))
}

fn receive(
    fd: BorrowedFd<'_>,
    pieces: &[Slice],
    flags: i32,
    descriptors: Option<&mut Vec<OwnedFd>>,
) -> Result<Received, TransferError> {
    if let Some(mut bytes) = bounce(pieces) {
        let pointer = bytes.as_mut_ptr();
        // SAFETY: the slice names the vector, which outlives the call; nothing else refers to it meanwhile.
        let whole = unsafe { Slice::new(pointer, bytes.len()) };
        let received = receive(fd, &[whole], flags, descriptors)?;
        copy_in(pieces, &bytes[..received.len.min(bytes.len())]);
        return Ok(received);
    }
    let mut message = message(pieces);
    let mut control = Control([MaybeUninit::uninit(); CONTROL_LEN]);
    if descriptors.is_some() {
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_LEN;
    }
    let flags = flags | libc::MSG_DONTWAIT;
    // SAFETY: the header lives through the call, its vector names mapped guest memory, and its control data is ours.
    let len = retry(|| unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags) })?;
    let mut had_descriptors = message.msg_flags & libc::MSG_CTRUNC != 0;
    if let Some(descriptors) = descriptors {
        had_descriptors |= take_descriptors(&message, descriptors);
    }
    Ok(Received { len, truncated: message.msg_flags & libc::MSG_TRUNC != 0, had_descriptors })
}

/// The most descriptors that one message carries (`SCM_MAX_FD` of Linux).
const MAX_DESCRIPTORS: u32 = 253;

/// Control data of a message that carries as many, each an int of 4 bytes.
// SAFETY: it computes a number.
const CONTROL_LEN: usize = unsafe { libc::CMSG_SPACE(MAX_DESCRIPTORS * 4) } as usize;

/// Room for control data, aligned as its headers are.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; CONTROL_LEN]);

/// Takes the descriptors out of a message that was received; whether there were any.
fn take_descriptors(message: &libc::msghdr, to: &mut Vec<OwnedFd>) -> bool {
    let before = to.len();
    // SAFETY: the kernel has written headers and their data up to `msg_controllen`, within the control data that the caller
    // owns; the macros stay within that. Each number is a new descriptor that nobody else knows.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(head) = header.as_ref() {
            if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let len = head.cmsg_len - libc::CMSG_LEN(0) as usize;
                let numbers = libc::CMSG_DATA(head).cast::<libc::c_int>();
                let fds = (0..len / size_of::<libc::c_int>())
                    .map(|at| OwnedFd::from_raw_fd(numbers.add(at).read_unaligned()));
                to.extend(fds);
            }
            header = libc::CMSG_NXTHDR(message, head);
        }
    }
    to.len() > before
}
