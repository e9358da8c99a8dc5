//! The encoding of SFTP's third version (draft-ietf-secsh-filexfer-02): numbers, strings and attributes in packets.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;

/// The packet is shorter than it says, or has what no packet has.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads a packet from its beginning on.
#[derive(Clone)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4)?.try_into().map(u32::from_be_bytes).map_err(|_| Malformed)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.take(8)?.try_into().map(u64::from_be_bytes).map_err(|_| Malformed)
    }

    pub(crate) fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(usize::try_from(length).map_err(|_| Malformed)?)
    }

    pub(crate) fn attributes(&mut self) -> Result<Attributes, Malformed> {
        let flags = self.u32()?;
        let mut read = Attributes::default();
        if flags & SIZE != 0 {
            read.size = Some(self.u64()?);
        }
        if flags & OWNERS != 0 {
            read.owners = Some((self.u32()?, self.u32()?));
        }
        if flags & MODE != 0 {
            read.mode = Some(self.u32()?);
        }
        if flags & TIMES != 0 {
            read.times = Some((self.u32()?, self.u32()?));
        }
        if flags & EXTENDED != 0 {
            for _ in 0..self.u32()? {
                self.string()?;
                self.string()?;
            }
        }
        Ok(read)
    }
}

const SIZE: u32 = 1;
const OWNERS: u32 = 2;
const MODE: u32 = 4;
const TIMES: u32 = 8;
const EXTENDED: u32 = 1 << 31;

/// What a client wants a file to be like; what is `None` stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) size: Option<u64>,
    pub(crate) owners: Option<(u32, u32)>,
    pub(crate) mode: Option<u32>,
    pub(crate) times: Option<(u32, u32)>,
}

/// Writes a packet; its length comes first when it is finished.
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(kind: u8, id: u32) -> Writer {
        Writer(vec![0, 0, 0, 0, kind]).u32(id)
    }

    /// A packet without the id of a request.
    pub(crate) fn without_id(kind: u8) -> Writer {
        Writer(vec![0, 0, 0, 0, kind])
    }

    pub(crate) fn u32(mut self, number: u32) -> Writer {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, number: u64) -> Writer {
        self.0.extend(number.to_be_bytes());
        self
    }

    pub(crate) fn string(self, text: &[u8]) -> Writer {
        let mut out = self.u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        out.0.extend(text);
        out
    }

    /// A string of up to `most` bytes, which `fill` writes; it returns how many there are.
    pub(crate) fn filled<E>(
        self,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<(Writer, usize), E> {
        let mut out = self.u32(0);
        let begin = out.0.len();
        out.0.resize(begin + most, 0);
        let length = fill(&mut out.0[begin..])?;
        out.0.truncate(begin + length);
        let head = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
        out.0[begin - 4..begin].copy_from_slice(&head);
        Ok((out, length))
    }

    pub(crate) fn attributes(self, file: &Metadata) -> Writer {
        // Seconds that SFTP cannot say are said as the nearest.
        let seconds = |time: i64| u32::try_from(time.max(0)).unwrap_or(u32::MAX);
        self.u32(SIZE | OWNERS | MODE | TIMES)
            .u64(file.size())
            .u32(file.uid())
            .u32(file.gid())
            .u32(file.mode())
            .u32(seconds(file.atime()))
            .u32(seconds(file.mtime()))
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len() - 4).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_malformed() {
        let whole = Writer::new(3, 7).string(b"name").u32(0x8000_0001).u64(5).u32(0).finish();
        for length in 4..whole.len() {
            let mut reader = Reader(&whole[4..length]);
            let mut read = || -> Result<Attributes, Malformed> {
                reader.byte()?;
                reader.u32()?;
                reader.string()?;
                reader.attributes()
            };
            assert_eq!(read(), Err(Malformed), "{length}");
        }
        let mut reader = Reader(&whole[4..]);
        assert_eq!(
            (reader.byte(), reader.u32(), reader.string()),
            (Ok(3), Ok(7), Ok(&b"name"[..]))
        );
        assert_eq!(reader.attributes().unwrap().size, Some(5));
    }

    #[test]
    fn lengths_and_counts_that_a_packet_does_not_have_are_malformed() {
        assert_eq!(Reader(&[0xff; 4]).string(), Err(Malformed));
        let many = [0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0];
        assert_eq!(Reader(&many).attributes(), Err(Malformed));
    }

    #[test]
    fn filled_string_has_the_length_of_what_was_read() {
        let fill = |place: &mut [u8]| {
            place[..2].copy_from_slice(b"ab");
            Ok::<_, ()>(2)
        };
        let (packet, _) = Writer::without_id(1).filled(100, fill).unwrap();
        assert_eq!(packet.finish(), [0, 0, 0, 7, 1, 0, 0, 0, 2, b'a', b'b']);
    }
}
