//! Bytes that know their place in a stream, so that loss, repetition and disorder show.

/// The byte at `offset`.
fn byte(offset: u64) -> u8 {
    let mixed = offset.wrapping_mul(31) ^ (offset >> 8).wrapping_mul(17) ^ (offset >> 16);
    mixed.to_le_bytes()[0]
}

/// Fills `to` with the bytes from `offset` on.
pub(crate) fn fill(to: &mut [u8], offset: u64) {
    for (place, byte_of) in to.iter_mut().zip(offset..) {
        *place = byte(byte_of);
    }
}

/// Whether `bytes` are those from `offset` on.
pub(crate) fn matches(bytes: &[u8], offset: u64) -> bool {
    bytes.iter().zip(offset..).all(|(found, place)| *found == byte(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_moved_by_a_packet_do_not_match() {
        let mut bytes = vec![0; 70_000];
        fill(&mut bytes, 5);
        assert!(matches(&bytes, 5));
        for shift in [1, 44, 64, 3732, 4096, 65_536] {
            assert!(!matches(&bytes[shift..], 5), "{shift}");
        }
    }
}
