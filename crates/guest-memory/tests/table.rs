//! The memory table: what it refuses, how it translates, how tables share mappings.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

mod support;

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use rustix::fs::{SealFlags, fcntl_add_seals};
use support::{HIGH, LOW, REGION_LEN, memfd, memory, read, region, write};
use vsock_guest_memory::slice::{self, Slice, Slices, TransferError};
use vsock_guest_memory::{GuestMemory, MAX_REGIONS, MemoryError, MemoryPolicy, Region};

const PAGE: u64 = 4096;

fn map(regions: Vec<Region>) -> Result<Arc<GuestMemory>, MemoryError> {
    GuestMemory::map(regions, MemoryPolicy::RecordSeals)
}

fn lens(pieces: &[Slice]) -> Vec<usize> {
    pieces.iter().map(Slice::len).collect()
}

#[test]
fn region_larger_than_its_file_is_refused() {
    let short = Region { file: memfd(PAGE), ..region(0, 2 * PAGE) };
    let error = map(vec![short]).unwrap_err();
    assert!(matches!(error, MemoryError::FileTooSmall { need: 8192, size: 4096, .. }), "{error}");
    let shifted = Region { offset: 1, ..region(0, PAGE) };
    assert!(matches!(map(vec![shifted]), Err(MemoryError::FileTooSmall { .. })));
}

#[test]
fn region_that_wraps_is_refused() {
    let at_end = Region { guest: u64::MAX - PAGE + 1, ..region(0, 2 * PAGE) };
    assert!(matches!(map(vec![at_end]), Err(MemoryError::Overflow { .. })));
    let user = Region { user: u64::MAX, ..region(0, PAGE) };
    assert!(matches!(map(vec![user]), Err(MemoryError::Overflow { .. })));
    let offset = Region { offset: u64::MAX, ..region(0, PAGE) };
    assert!(matches!(map(vec![offset]), Err(MemoryError::Overflow { .. })));
    let empty = Region { len: 0, ..region(0, PAGE) };
    assert!(matches!(map(vec![empty]), Err(MemoryError::Empty { .. })));
}

#[test]
fn regions_that_overlap_are_refused() {
    let guest = Region { user: 0, ..region(PAGE, 2 * PAGE) };
    assert!(matches!(map(vec![region(0, 2 * PAGE), guest]), Err(MemoryError::Overlap { .. })));
    let user = Region { user: (1 << 40) + PAGE, ..region(1 << 30, PAGE) };
    assert!(matches!(map(vec![region(0, 2 * PAGE), user]), Err(MemoryError::Overlap { .. })));
    assert!(map(vec![region(PAGE, PAGE), region(0, PAGE)]).is_ok());
}

#[test]
fn regions_above_the_limit_are_refused() {
    let many = |n: usize| (0..n as u64).map(|i| region(i * PAGE, PAGE)).collect::<Vec<_>>();
    assert!(matches!(map(many(MAX_REGIONS + 1)), Err(MemoryError::TooManyRegions)));
    let full = map(many(MAX_REGIONS)).unwrap();
    // Each lies behind the one before, and is a piece of its own.
    let mut pieces = Slices::new();
    full.slice(0, MAX_REGIONS as u32 * PAGE as u32, &mut pieces).unwrap();
    assert_eq!(pieces.len(), MAX_REGIONS);
    let one_more = region(1 << 30, PAGE);
    let added = full.with_region_added(one_more, MemoryPolicy::RecordSeals);
    assert!(matches!(added, Err(MemoryError::TooManyRegions)));
}

#[test]
fn file_that_is_no_memory_is_refused() {
    let device = Region { file: File::open("/dev/zero").unwrap(), ..region(0, PAGE) };
    assert!(matches!(map(vec![device]), Err(MemoryError::NotAFile { .. })));
}

#[test]
fn policy_tells_sealed_from_unsealed_files() {
    let open = region(0, PAGE);
    let strict = GuestMemory::map(vec![open], MemoryPolicy::RequireSeals);
    assert!(matches!(strict, Err(MemoryError::Unsealed { .. })));
    let sealed = region(0, PAGE);
    fcntl_add_seals(&sealed.file, SealFlags::SHRINK).unwrap();
    let strict = GuestMemory::map(vec![sealed], MemoryPolicy::RequireSeals).unwrap();
    assert!(strict.is_sealed());
    assert!(!map(vec![region(0, PAGE)]).unwrap().is_sealed());
}

#[test]
fn bytes_at_an_unaligned_offset_are_those_of_the_file() {
    let file = memfd(4 * PAGE);
    rustix::io::pwrite(&file, b"here", PAGE + 100).unwrap();
    let memory = map(vec![Region { offset: PAGE + 100, file, ..region(LOW, PAGE) }]).unwrap();
    assert_eq!(read(&memory, LOW, 4), b"here");
}

#[test]
fn buffer_across_a_border_is_split() {
    let memory = memory();
    let border = LOW + REGION_LEN;
    let mut pieces = Slices::new();
    memory.slice(border - 3, 10, &mut pieces).unwrap();
    assert_eq!(lens(&pieces), [3, 7]);
    write(&memory, border - 3, b"0123456789");
    assert_eq!(read(&memory, border, 7), b"3456789");
    assert_eq!(read(&memory, border - 3, 3), b"012");
}

#[test]
fn buffer_outside_is_refused_and_leaves_no_pieces() {
    let memory = memory();
    let end = LOW + 2 * REGION_LEN;
    let mut pieces = Slices::new();
    for (at, len) in [(end, 1), (end - 1, 2), (LOW - 1, 2), (0, 1), (u64::MAX, 2), (HIGH, u32::MAX)]
    {
        assert!(memory.slice(at, len, &mut pieces).is_err(), "{at:#x} {len}");
        assert!(pieces.is_empty());
    }
    memory.slice(end - 1, 1, &mut pieces).unwrap();
    memory.slice(12345, 0, &mut pieces).unwrap();
    assert_eq!(lens(&pieces), [1]);
}

#[test]
fn area_is_whole_and_aligned_or_refused() {
    let memory = memory();
    assert!(memory.check_area(LOW + 16, 64, 16).is_ok());
    assert!(memory.check_area(LOW + 8, 64, 16).is_err());
    assert!(memory.check_area(LOW + REGION_LEN - 16, 32, 16).is_err());
    assert!(memory.check_area(LOW, u64::MAX, 1).is_err());
    assert!(memory.check_area(u64::MAX, 1, 1).is_err());
    assert_eq!(memory.piece(LOW + 16, 64).unwrap().len(), 64);
}

#[test]
fn pinned_elements_are_those_of_the_memory_and_hold_it() {
    let memory = memory();
    write(&memory, LOW + 4, &[1, 0, 2, 0, 3, 0, 4, 0]);
    let pinned = memory.pin::<AtomicU16>(LOW + 4, 4).unwrap();
    assert!(memory.pin::<AtomicU16>(LOW + 5, 4).is_err());
    assert!(memory.pin::<[AtomicU64; 2]>(LOW + 4, 1).is_err());
    assert!(memory.pin::<AtomicU32>(LOW + REGION_LEN - 4, 2).is_err());
    drop(Arc::into_inner(memory));
    let values: Vec<_> = (0..6).map(|at| u16::from_le(pinned.at(at).load(Relaxed))).collect();
    assert_eq!(values, [1, 2, 3, 4, 1, 2], "indexed modulo their number");
}

#[test]
#[should_panic(expected = "3 elements")]
fn elements_that_no_mask_can_index_cannot_be_pinned() {
    let _ = memory().pin::<AtomicU16>(LOW, 3);
}

#[test]
fn user_address_becomes_guest_address() {
    let memory = memory();
    assert_eq!(memory.user_to_guest(LOW + (1 << 40) + 5), Some(LOW + 5));
    assert_eq!(memory.user_to_guest(HIGH + (1 << 40) + REGION_LEN), None);
    assert_eq!(memory.user_to_guest(0), None);
}

#[test]
fn table_with_a_region_removed_shares_the_rest() {
    let old = memory();
    write(&old, LOW, b"kept");
    let user = HIGH + (1 << 40);
    let unknown = old.with_region_removed(HIGH, user, REGION_LEN + 1);
    assert!(matches!(unknown, Err(MemoryError::Unknown { .. })));
    let new = old.with_region_removed(HIGH, user, REGION_LEN).unwrap();
    let added = new.with_region_added(region(HIGH, PAGE), MemoryPolicy::RecordSeals).unwrap();
    drop(Arc::into_inner(old).unwrap());
    assert_eq!(read(&new, LOW, 4), b"kept");
    assert!(new.slice(HIGH, 1, &mut Slices::new()).is_err());
    assert_eq!(read(&added, HIGH, 4), [0; 4]);
}

#[test]
fn table_mapped_again_from_its_regions_is_the_same_memory() {
    let file = memfd(REGION_LEN);
    let odd = Region { offset: 100, file, ..region(LOW, REGION_LEN - 100) };
    let before = map(vec![region(HIGH, PAGE), odd]).unwrap();
    let regions = before.regions().map(|it| Region {
        guest: it.guest,
        user: it.user,
        len: it.len,
        offset: it.offset,
        file: it.file.try_clone_to_owned().unwrap().into(),
    });
    let after = map(regions.collect()).unwrap();
    for at in [HIGH, LOW + 7] {
        write(&before, at, b"the same");
        assert_eq!(read(&after, at, 8), b"the same");
        assert_eq!(after.user_to_guest(at + (1 << 40)), Some(at));
    }
}

#[test]
fn copy_between_pieces_of_any_size_keeps_the_bytes() {
    let memory = memory();
    let text: Vec<u8> = (0..100).collect();
    write(&memory, LOW, &text);
    let cut = |base: u64, cuts: &[u32]| {
        let mut pieces = Slices::new();
        let mut at = base;
        for len in cuts {
            memory.slice(at, *len, &mut pieces).unwrap();
            at += u64::from(*len);
        }
        pieces
    };
    let from = cut(LOW, &[1, 30, 7, 62]);
    let to = cut(HIGH, &[44, 2, 50]);
    assert_eq!(slice::copy(&to, &from), 96);
    assert_eq!(read(&memory, HIGH, 97), [&text[..96], &[0]].concat());
}

#[test]
fn ranges_of_pieces_are_cut_at_both_ends() {
    let memory = memory();
    let pieces = || {
        let mut pieces = Slices::new();
        for len in [10, 20, 30] {
            memory.slice(LOW, len, &mut pieces).unwrap();
        }
        pieces
    };
    assert_eq!(pieces().shorten(0..3, 0), 0..0);
    assert_eq!(pieces().shorten(0..3, 10), 0..1);
    assert_eq!(pieces().shorten(0..3, 99), 0..3);
    assert_eq!(pieces().advance(0..3, 10), 1..3);
    assert_eq!(pieces().advance(0..3, 60), 3..3);
    let mut list = pieces();
    let range = list.advance(0..3, 15);
    let range = list.shorten(range, 20);
    assert_eq!((range.clone(), lens(&list[range])), (1..3, vec![15, 5]));
    let mut list = pieces();
    assert_eq!((list.cut(1, 20), list.cut(1, 5)), (2, 2));
    assert_eq!(lens(&list), [10, 5, 15, 30]);
    assert_eq!(list.cut(3, 99), 4);
    let mut gathered = Slices::new();
    gathered.gather(&list, 1..4, 25);
    assert_eq!(lens(&gathered), [5, 15, 5]);
}

/// More pieces than one system call takes, over three bytes each of every four.
fn many_pieces(memory: &Arc<GuestMemory>) -> Slices {
    let mut pieces = Slices::new();
    for n in 0..2000 {
        memory.slice(LOW + n * 4, 3, &mut pieces).unwrap();
    }
    pieces
}

#[test]
fn message_in_more_pieces_than_a_call_takes_is_still_one() {
    let memory = memory();
    let text: Vec<u8> = (0..8000_u32).map(|n| n as u8).collect();
    write(&memory, LOW, &text);
    let expected: Vec<u8> = text.chunks(4).flat_map(|four| &four[..3]).copied().collect();
    let (one, other) = UnixDatagram::pair().unwrap();
    assert_eq!(slice::sendmsg(one.as_fd(), &many_pieces(&memory), 0).unwrap(), 6000);
    let mut got = vec![0; 9000];
    assert_eq!(other.recv(&mut got).unwrap(), 6000);
    assert_eq!(got[..6000], expected);

    write(&memory, LOW, &[0; 8000]);
    other.send(&expected).unwrap();
    let received = slice::recvmsg(one.as_fd(), &many_pieces(&memory), 0).unwrap();
    assert_eq!((received.len, received.truncated), (6000, false));
    let kept = read(&memory, LOW, 8000);
    assert!(kept.chunks(4).zip(text.chunks(4)).all(|(k, t)| k[..3] == t[..3] && k[3] == 0));
}

#[test]
fn fd_with_nothing_to_give_or_no_room_would_block() {
    let memory = memory();
    let (one, _other) = UnixDatagram::pair().unwrap();
    let pieces = many_pieces(&memory);
    let would_block =
        |error| matches!(error, TransferError::Io(error) if error.kind() == ErrorKind::WouldBlock);
    assert!(would_block(slice::recvmsg(one.as_fd(), &pieces[..10], 0).unwrap_err()));
    assert!(would_block(slice::recvmsg(one.as_fd(), &pieces, 0).unwrap_err()));
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
    assert!(would_block(slice::readv(reader.as_fd(), &pieces).unwrap_err()));
    assert_eq!(slice::writev(writer.as_fd(), &pieces).unwrap(), 1024 * 3, "the first 1024 pieces");
    assert_eq!(slice::readv(reader.as_fd(), &pieces).unwrap(), 1024 * 3);
}

#[test]
fn message_longer_than_the_pieces_is_marked_truncated() {
    let memory = memory();
    let (one, other) = UnixDatagram::pair().unwrap();
    other.send(&[1; 100]).unwrap();
    let received = slice::recvmsg(one.as_fd(), &many_pieces(&memory)[..2], 0).unwrap();
    assert_eq!((received.len, received.truncated), (6, true));
}

#[test]
fn descriptors_that_come_with_a_message_are_taken_whichever_way_its_bytes_go() {
    let memory = memory();
    let (one, other) = UnixDatagram::pair().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    let fds = [file.as_fd(); 253];
    for pieces in [&many_pieces(&memory)[..2], &many_pieces(&memory)] {
        let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
        let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
        control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds));
        let flags = rustix::net::SendFlags::empty();
        rustix::net::sendmsg(&other, &[std::io::IoSlice::new(b"x")], &mut control, flags).unwrap();
        other.send(b"y").unwrap();
        let mut got = Vec::new();
        let mut receive = || slice::recvmsg_with_descriptors(one.as_fd(), pieces, 0, &mut got);
        assert!(receive().unwrap().had_descriptors);
        assert!(!receive().unwrap().had_descriptors);
        assert_eq!(got.len(), 253);
        let flags = |fd| rustix::io::fcntl_getfd(fd).unwrap();
        assert!(got.iter().all(|fd| flags(fd).contains(rustix::io::FdFlags::CLOEXEC)));
    }
}
