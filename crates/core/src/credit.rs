//! placeholder
/// What may be sent now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Bytes of payload.
    pub bytes: u32,
    /// Packets.
    pub packets: u32,
}
