//! Who is on the other side of a link, and which of its packets are for us.
//!
//! The address in a packet is the sender's claim. A guest must name its own CID, as an answer would go to whomever it
//! names instead; while it does not know that it has a new one, the old one stands for it.

use vsock_core::{Cid, Header, Malformed, RawHeader, SocketType};

/// What is on the other side of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// We are the device of the guest with this CID.
    Guest(Cid),
    /// We are the driver; all others are behind this link.
    Uplink,
    /// We ourselves: both ends of its connections are here.
    Loopback,
}

impl Role {
    /// The guest's CID; `None` if there is no guest behind the link.
    #[must_use]
    pub fn guest(self) -> Option<Cid> {
        match self {
            Self::Guest(cid) => Some(cid),
            Self::Uplink | Self::Loopback => None,
        }
    }

    /// The CID for records and listings.
    #[must_use]
    pub fn label(self) -> Cid {
        match self {
            Self::Guest(cid) => cid,
            Self::Uplink => Cid::HOST,
            Self::Loopback => Cid::LOCAL,
        }
    }
}

/// What packets from a guest's earlier CID are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FormerCid {
    /// Late: their connections are over.
    Dropped(Cid),
    /// The guest's, which does not know its new CID yet.
    Meant(Cid),
}

/// What a packet is, by its header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sorted {
    /// For a connection of ours.
    Ours(Header),
    /// For somebody else.
    Foreign(Header),
    /// Part of a datagram, for whomever.
    Datagram,
    /// Its sender names a source that it is not.
    Spoofed,
    /// From the CID that its sender had before, for connections that are over.
    Late,
    /// It cannot be used.
    Malformed,
}

/// The addresses of a link's two sides.
#[derive(Debug)]
pub(super) struct Filter {
    role: Role,
    /// Our CID.
    local: Cid,
    /// Other CIDs by which the other side reaches us.
    aliases: Vec<Cid>,
    /// The guest's CID before it was given another.
    former: Option<FormerCid>,
    /// Both sides have negotiated datagrams.
    takes_datagrams: bool,
}

impl Filter {
    pub(super) fn new(role: Role, local: Cid) -> Self {
        Self { role, local, aliases: Vec::new(), former: None, takes_datagrams: false }
    }

    pub(super) fn role(&self) -> Role {
        self.role
    }

    pub(super) fn set_local(&mut self, local: Cid) {
        self.local = local;
    }

    pub(super) fn set_aliases(&mut self, aliases: Vec<Cid>) {
        self.aliases = aliases;
    }

    pub(super) fn takes_datagrams(&self) -> bool {
        self.takes_datagrams
    }

    pub(super) fn set_takes_datagrams(&mut self, takes: bool) {
        self.takes_datagrams = takes;
    }

    /// Gives the guest another CID; `former`: what its packets from the one before are.
    pub(super) fn set_cid(&mut self, cid: Cid, former: Option<FormerCid>) {
        self.role = Role::Guest(cid);
        // Twice changed before it knew of the first: the oldest is what it still sends.
        self.former = match (self.former, former) {
            (Some(FormerCid::Meant(oldest)), Some(FormerCid::Meant(_))) => {
                Some(FormerCid::Meant(oldest))
            }
            (_, former) => former,
        };
    }

    /// What packets from the guest's earlier CID are.
    pub(super) fn former(&self) -> Option<FormerCid> {
        self.former
    }

    /// The guest has been given its CID by a predecessor.
    pub(super) fn set_former(&mut self, former: Option<FormerCid>) {
        self.former = former;
    }

    /// The guest knows its CID.
    pub(super) fn forget_former(&mut self) {
        self.former = None;
    }

    /// Whether the other side means us by `cid`.
    pub(super) fn is_ours(&self, cid: Cid) -> bool {
        cid == self.local || self.role == Role::Loopback || self.aliases.contains(&cid)
    }

    /// What the packet is that came with `payload_len` bytes. The source of one that came under an earlier CID that is
    /// still meant is put right.
    #[inline]
    pub(super) fn sort(&self, raw: &mut RawHeader, payload_len: u32) -> Sorted {
        if let Role::Guest(cid) = self.role {
            match self.former {
                Some(FormerCid::Meant(old)) if raw.src_cid == u64::from(old.0) => {
                    raw.src_cid = cid.0.into();
                }
                Some(FormerCid::Dropped(old)) if raw.src_cid == u64::from(old.0) => {
                    return Sorted::Late;
                }
                Some(FormerCid::Meant(_) | FormerCid::Dropped(_)) | None => {}
            }
            if raw.src_cid != u64::from(cid.0) {
                return Sorted::Spoofed;
            }
        }
        if raw.kind == SocketType::Datagram.to_wire() && self.takes_datagrams {
            return Sorted::Datagram;
        }
        let checked = raw.check().and_then(|header| {
            if header.len <= payload_len { Ok(header) } else { Err(Malformed::Length) }
        });
        match checked {
            Ok(header) if self.is_ours(header.dst.cid) => Sorted::Ours(header),
            Ok(header) => Sorted::Foreign(header),
            Err(_) => Sorted::Malformed,
        }
    }
}
