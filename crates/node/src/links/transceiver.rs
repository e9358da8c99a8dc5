//! Where every packet of a link passes, once on its way in and once on its way out.
//!
//! What is to be known of all packets is known here and nowhere else: they are counted here.

use vsock_guest_memory::slice::Slices;
use vsock_virtio::link::{Inbound, Link, LinkError, OutboundBuffer};

/// The packets that went over a link since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets from the other side.
    pub packets_in: u64,
    /// Packets to the other side.
    pub packets_out: u64,
    /// Bytes behind the headers of packets from the other side.
    pub bytes_in: u64,
    /// Bytes behind the headers of packets to the other side.
    pub bytes_out: u64,
}

impl Traffic {
    /// Packets both ways.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets_in + self.packets_out
    }
}

/// A link whose packets are counted.
pub(super) struct Transceiver {
    link: Link,
    traffic: Traffic,
}

impl Transceiver {
    pub(super) fn new(link: Link) -> Self {
        Self::counting_on(link, Traffic::default())
    }

    /// A link over which so much went before.
    pub(super) fn counting_on(link: Link, traffic: Traffic) -> Self {
        Self { link, traffic }
    }

    /// The link, for all but its packets.
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The same, to change it.
    pub(super) fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// The next packet from the other side; see [`Link::next_inbound`].
    #[inline]
    pub(super) fn receive(&mut self, slices: &mut Slices) -> Result<Option<Inbound>, LinkError> {
        let inbound = self.link.next_inbound(slices)?;
        if let Some(inbound) = &inbound {
            self.traffic.packets_in += 1;
            self.traffic.bytes_in += u64::from(inbound.payload_len);
        }
        Ok(inbound)
    }

    /// Room for the next packet; see [`Link::next_buffer`].
    #[inline]
    pub(super) fn reserve(
        &mut self,
        slices: &mut Slices,
    ) -> Result<Option<OutboundBuffer>, LinkError> {
        self.link.next_buffer(slices)
    }

    /// Sends the packet in a buffer whose payload is written already; see [`Link::send`].
    #[inline]
    pub(super) fn transmit(
        &mut self,
        buffer: &OutboundBuffer,
        slices: &Slices,
        header: &[u8; vsock_core::HEADER_LEN],
        len: u32,
    ) {
        self.traffic.packets_out += 1;
        self.traffic.bytes_out += u64::from(len);
        self.link.send(buffer, slices, header, len);
    }
}
