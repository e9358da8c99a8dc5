//! A caller without unsafe code cannot reach memory that is not mapped any more: what it still has of guest memory
//! keeps it mapped, and no longer.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vsock_guest_memory::slice::{Slices, copy, copy_in, copy_out, recvmsg, sendmsg};
use vsock_guest_memory::{GuestMemory, sealed_memory};

const BASE: u64 = 1 << 20;

/// Memory whose mapping can be told from all others by its name.
fn memory(name: &str) -> Arc<GuestMemory> {
    sealed_memory(name, BASE, 1 << 16).unwrap().1
}

fn is_mapped(name: &str) -> bool {
    std::fs::read_to_string("/proc/self/maps").unwrap().contains(&format!("memfd:{name} "))
}

/// A list with one piece, and nothing else that knows its memory.
fn list(name: &str, text: &[u8]) -> Slices {
    let memory = memory(name);
    let mut list = Slices::new();
    memory.slice(BASE, u32::try_from(text.len()).unwrap(), &mut list).unwrap();
    copy_in(&list, text);
    list
}

fn bytes(list: &Slices) -> Vec<u8> {
    let mut bytes = vec![0; 16];
    let len = copy_out(list, &mut bytes);
    bytes.truncate(len);
    bytes
}

#[test]
fn pieces_of_dropped_memory_can_be_used_until_their_list_is_cleared() {
    let mut list = list("dropped", b"still here");
    assert_eq!(bytes(&list), b"still here");
    copy_in(&list, b"and changed");
    let (one, mut other) = UnixStream::pair().unwrap();
    assert_eq!(sendmsg(one.as_fd(), &list, 0).unwrap(), 10);
    let mut sent = [0; 10];
    other.read_exact(&mut sent).unwrap();
    assert_eq!(&sent, b"and change");
    assert!(is_mapped("dropped"));
    list.truncate(0);
    assert!(is_mapped("dropped"), "inside a batch");
    list.clear();
    assert!(!is_mapped("dropped"));
}

#[test]
fn gathered_pieces_hold_the_memory_of_the_list_they_came_from() {
    let mut gathered = Slices::new();
    for (name, text) in [("first", b"one, "), ("second", b"two, ")] {
        let list = list(name, text);
        gathered.gather(&list, 0..1, 4);
    }
    assert!(is_mapped("first") && is_mapped("second"));
    assert_eq!(bytes(&gathered), b"one,two,");
    let target = list("target", &[0; 8]);
    assert_eq!(copy(&target, &gathered), 8);
    drop(gathered);
    assert!(!is_mapped("first") && !is_mapped("second"));
    assert_eq!(bytes(&target), b"one,two,");
}

#[test]
fn read_into_pieces_of_dropped_memory_writes_no_memory_of_others() {
    let mut list = list("read into", &[0; 4]);
    let neighbour = memory("neighbour");
    let (one, other) = UnixStream::pair().unwrap();
    rustix::io::write(&other, b"abcdefgh").unwrap();
    assert_eq!(recvmsg(one.as_fd(), &list, 0).unwrap().len, 4);
    assert_eq!(bytes(&list), b"abcd");
    list.clear();
    neighbour.slice(BASE, 4, &mut list).unwrap();
    assert_eq!(bytes(&list), [0; 4]);
}
