//! Invariant: a program's first words are a request, a line, unfinished or refused, and stay what they are when more
//! comes behind them; nothing they announce is longer than what is ever read for it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vsock_node::fuzzing::{NotALine, hybrid_line, request};

fuzz_target!(|bytes: &[u8]| {
    if let Some(head) = bytes.first_chunk::<32>()
        && let Some(extra) = request(head)
    {
        assert_eq!(head[0], 1, "another version");
        // Operation 9 is SEND, with a datagram behind it.
        let most = if head[1] == 9 { 17 * 4096 - 24 } else { 4096 };
        assert!(extra <= most, "{extra} bytes behind operation {}", head[1]);
    }
    let mut seen = Ok(None);
    for end in 0..=bytes.len().min(80) {
        let line = hybrid_line(&bytes[..end]);
        match seen {
            Ok(None) => {}
            decided => assert_eq!(line, decided, "{:?}", &bytes[..end]),
        }
        match line {
            Ok(None) => assert!(end < 64 && !bytes[..end].contains(&b'\n')),
            Ok(Some((_, len))) => assert_eq!(bytes[len - 1], b'\n'),
            Err(NotALine) => {}
        }
        seen = line;
    }
});
