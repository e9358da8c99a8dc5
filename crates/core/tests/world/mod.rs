//! Two endpoints, their users, and the links between them, turned by hand.
//!
//! Payload is a serial number (which connection of which side sent it) and a position, so that
//! the far end can check that bytes come in order, once, and from the right connection. Links
//! have room for few packets, as rings have. Optionally a relay stands in the middle and splits
//! packets to small buffers.

mod ending;
mod user;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;
use user::User;
use vsock_core::{
    Address, Admission, ConnectionId, EOM, Endpoint, FlowKey, Instant, Limits, Op, RawHeader,
    Received, Relay, RelayLimits, Shutdown, SocketType, Verdict,
};

/// Packets a link has room for.
const RING: usize = 24;
/// Rounds without an end.
const MANY: usize = 5000;
/// What Linux charges a receive buffer for one unread packet.
const PACKET_COST: u64 = 576;

/// One choice of a schedule: what, and three numbers to choose the rest by.
pub(crate) type Choice = (u8, u8, u8, u16);

#[derive(Clone, Debug)]
struct Packet {
    raw: RawHeader,
    /// The connection that sent it, unless it is a RST.
    serial: Option<u64>,
    /// Position of its first byte.
    position: u64,
}

struct Side {
    endpoint: Endpoint,
    limits: Limits,
    address: u32,
    buf_alloc: u32,
    users: BTreeMap<ConnectionId, User>,
    /// Packets on their way to this side.
    inbound: VecDeque<Packet>,
    /// Packets on their way from this side to the relay.
    outbound: VecDeque<Packet>,
}

pub(crate) struct World {
    sides: [Side; 2],
    relay: Option<Relay>,
    admission: Admission,
    room: u32,
    now: Instant,
    next_serial: u64,
    /// Bytes sent by each connection, and where its messages end.
    sent: BTreeMap<u64, u64>,
    ends: BTreeMap<u64, BTreeSet<u64>>,
    is_resized: bool,
    relay_limits: RelayLimits,
    /// After how many turns everything is handed to a successor; 0: never.
    hand_over_every: u64,
    turns: u64,
    /// Whether address pairs are used again at once. What is under way of an old connection then
    /// breaks a new one now and then, which must be visible; otherwise nothing may break.
    has_few_ports: bool,
    most_wanted: u64,
    pub(crate) delivered: u64,
    pub(crate) reasons: BTreeMap<&'static str, u32>,
}

impl World {
    pub(crate) fn new(
        seed: u64,
        buffers: [u32; 2],
        relay: Option<RelayLimits>,
        room: u32,
        has_few_ports: bool,
    ) -> Self {
        let side = |address: u32, buf_alloc| {
            let limits =
                Limits { buf_alloc, max_connections: 12, max_half_open: 6, ..Limits::default() };
            Side {
                endpoint: Endpoint::new(limits, seed),
                limits,
                address,
                buf_alloc,
                users: BTreeMap::new(),
                inbound: VecDeque::new(),
                outbound: VecDeque::new(),
            }
        };
        Self {
            sides: [side(3, buffers[0]), side(4, buffers[1])],
            relay: relay.map(|limits| Relay::new(limits, seed)),
            admission: Admission::default(),
            room,
            now: Instant(seed % 1000),
            next_serial: 0,
            sent: BTreeMap::new(),
            ends: BTreeMap::new(),
            is_resized: false,
            relay_limits: relay.unwrap_or_default(),
            hand_over_every: 0,
            turns: 0,
            has_few_ports,
            most_wanted: 16 * u64::from(buffers[0].min(buffers[1])),
            delivered: 0,
            reasons: BTreeMap::new(),
        }
    }

    /// The same world, in which successors take over again and again.
    pub(crate) fn handed_over_every(self, turns: u64) -> Self {
        Self { hand_over_every: turns, ..self }
    }

    /// Endpoints and relay are saved, and successors go on with what was saved.
    fn hand_over(&mut self) {
        let seed = self.turns;
        for side in &mut self.sides {
            let saved = side.endpoint.save(self.now);
            let next = Endpoint::restore(saved.clone(), side.limits, seed, self.now);
            side.endpoint = next.expect("what was saved can be");
            assert_eq!(side.endpoint.save(self.now), saved);
        }
        if let Some(relay) = &mut self.relay {
            let saved = relay.save(self.now);
            let next = Relay::restore(saved.clone(), self.relay_limits, seed, self.now);
            *relay = next.expect("what was saved can be");
            assert_eq!(relay.save(self.now), saved);
        }
    }

    pub(crate) fn turn(&mut self, (what, which, pick, amount): Choice) {
        self.turns += 1;
        if self.hand_over_every > 0 && self.turns.is_multiple_of(self.hand_over_every) {
            self.hand_over();
        }
        let at = usize::from(which % 2);
        let id = self.pick(at, pick);
        match (what % 20, id) {
            (0, _) => self.connect(at, pick, amount),
            (1..=3, _) => self.speak(at),
            (4..=6, _) => self.deliver(at, usize::from(pick % 8) + 1),
            (7..=10, Some(id)) => self.want(at, id, u64::from(amount) * (1 + u64::from(pick % 3))),
            (11..=13, Some(id)) => self.read(at, id, usize::from(pick)),
            (14, Some(id)) => self.shut_down(at, id, u32::from(amount)),
            (15, Some(id)) => self.close(at, id, amount),
            (16, Some(id)) if amount.is_multiple_of(4) => {
                self.sides[at].endpoint.reset(id);
                self.sides[at].users.remove(&id);
            }
            (17, Some(id)) if amount.is_multiple_of(8) => {
                let bytes = 600 + u32::from(amount) * 4;
                self.is_resized = true;
                self.sides[at].buf_alloc = self.sides[at].buf_alloc.max(bytes);
                self.sides[at].endpoint.set_buf_alloc(id, bytes);
            }
            (18, _) if amount.is_multiple_of(64) => self.lose_link(at),
            (19, _) => self.pass_time(Duration::from_millis(u64::from(amount) / 32)),
            _ => self.deliver(at, 1),
        }
        self.hear();
    }

    fn pick(&self, at: usize, pick: u8) -> Option<ConnectionId> {
        let users = &self.sides[at].users;
        users.keys().nth(usize::from(pick) % users.len().max(1)).copied()
    }

    fn connect(&mut self, at: usize, pick: u8, amount: u16) {
        let few = 1024 + u32::from(pick % 6);
        let many = 1024 + u32::try_from(self.next_serial).unwrap();
        let port = if self.has_few_ports { few } else { many };
        let key = FlowKey {
            ours: Address::new(self.sides[at].address, port),
            theirs: Address::new(self.sides[1 - at].address, 22),
        };
        let kind = if pick.is_multiple_of(2) { SocketType::Stream } else { SocketType::SeqPacket };
        let timeout = (amount.is_multiple_of(3)).then_some(Duration::from_millis(300));
        if let Ok(id) = self.sides[at].endpoint.connect(self.now, key, kind, timeout) {
            self.add_user(at, id, key, kind, false);
        }
    }

    fn add_user(
        &mut self,
        at: usize,
        id: ConnectionId,
        key: FlowKey,
        kind: SocketType,
        open: bool,
    ) {
        let serial = self.next_serial;
        self.next_serial += 1;
        let user = User::new(serial, key, kind, open);
        self.sent.insert(serial, 0);
        self.sides[at].users.insert(id, user);
    }

    /// Control packets enter the link while it has room.
    fn speak(&mut self, at: usize) {
        let direct = self.relay.is_none();
        loop {
            let [one, two] = &mut self.sides;
            let (from, to) = if at == 0 { (one, two) } else { (two, one) };
            let link = if direct { &mut to.inbound } else { &mut from.outbound };
            if link.len() >= RING || !from.endpoint.has_packet() {
                return;
            }
            let raw = from.endpoint.next_packet().expect("has_packet said so");
            let serial = (Op::from_wire(raw.op) != Op::Rst).then(|| {
                let ours = |user: &&User| {
                    user.key.ours.port.0 == raw.src_port
                        && user.key.theirs.port.0 == raw.dst_port
                        && !user.theirs.is_both()
                };
                from.users.values().find(ours).map(|user| user.serial)
            });
            link.push_back(Packet { raw, serial: serial.flatten(), position: 0 });
        }
    }

    fn want(&mut self, at: usize, id: ConnectionId, bytes: u64) {
        let most = self.most_wanted;
        let Some(user) = self.sides[at].users.get_mut(&id) else { return };
        if user.is_connected && !user.ours.contains(Shutdown::SEND) {
            // Small windows take many rounds.
            user.to_send += bytes % most;
            if user.message_left == 0 {
                user.message_left = user.to_send;
            }
        }
        self.send(at, id);
    }

    /// Sends what the window and the link allow.
    fn send(&mut self, at: usize, id: ConnectionId) {
        let direct = self.relay.is_none();
        let now = self.now;
        let [one, two] = &mut self.sides;
        let (from, to) = if at == 0 { (one, two) } else { (two, one) };
        let link = if direct { &mut to.inbound } else { &mut from.outbound };
        let Some(user) = from.users.get_mut(&id) else { return };
        if !user.is_connected || user.theirs.contains(Shutdown::RCV) {
            user.to_send = 0;
            return;
        }
        while user.to_send > 0 && link.len() < RING {
            let window = from.endpoint.window(id);
            // Sizes of all kinds, from single bytes to whole packets.
            let most = [65536, 3732, 700, 129, 5][user.packets % 5];
            let left = user.to_send.min(user.message_left.max(1)).min(most);
            let len = u32::try_from(left).unwrap().min(window.bytes);
            if len == 0 || window.packets == 0 {
                from.endpoint.wants_to_send(now, id);
                user.is_waiting = true;
                return;
            }
            let is_end = u64::from(len) == user.message_left;
            let flags = if is_end && user.kind == SocketType::SeqPacket { EOM } else { 0 };
            let header = from.endpoint.data_header(id, len, flags).expect("within the window");
            link.push_back(Packet {
                raw: header.raw(),
                serial: Some(user.serial),
                position: user.sent,
            });
            user.packets += 1;
            user.sent += u64::from(len);
            user.to_send -= u64::from(len);
            user.message_left = user.message_left.saturating_sub(u64::from(len));
            if flags != 0 {
                self.ends.entry(user.serial).or_default().insert(user.sent);
            }
            if user.message_left == 0 {
                user.message_left = user.to_send;
            }
            self.sent.insert(user.serial, user.sent);
        }
    }

    fn read(&mut self, at: usize, id: ConnectionId, packets: usize) {
        let side = &mut self.sides[at];
        let Some(user) = side.users.get_mut(&id) else { return };
        for _ in 0..packets {
            let Some(len) = user.unread.pop_front() else { return };
            if user.kind == SocketType::Stream && len > 1 {
                // Streams are read in any portions.
                side.endpoint.consumed(id, len / 2, 0);
                side.endpoint.consumed(id, len - len / 2, 1);
            } else {
                side.endpoint.consumed(id, len, 1);
            }
        }
    }

    fn shut_down(&mut self, at: usize, id: ConnectionId, flags: u32) {
        let side = &mut self.sides[at];
        let Some(user) = side.users.get_mut(&id) else { return };
        let how = Shutdown::from_flags(flags);
        user.ours = user.ours.with(how);
        if how.contains(Shutdown::SEND) {
            user.to_send = 0;
        }
        side.endpoint.shut_down(self.now, id, how);
        if how.contains(Shutdown::RCV) {
            self.read(at, id, usize::MAX);
        }
    }

    /// A user who has sent what it wanted may go; its connection lives on.
    fn close(&mut self, at: usize, id: ConnectionId, amount: u16) {
        let side = &mut self.sides[at];
        let is_done = side.users.get(&id).is_some_and(|user| user.to_send == 0);
        if is_done || amount.is_multiple_of(4) {
            side.endpoint.close(self.now, id);
            if let Some(user) = side.users.get_mut(&id) {
                user.to_send = 0;
                user.ours = Shutdown::BOTH;
            }
        }
    }

    /// The link of one side is gone. The other side hears of it before the link comes back.
    fn lose_link(&mut self, at: usize) {
        let cid = vsock_core::Cid(self.sides[at].address);
        for side in &mut self.sides {
            side.inbound
                .retain(|packet| self.relay.is_some() && packet.raw.dst_cid != u64::from(cid.0));
            side.outbound.retain(|packet| packet.raw.src_cid != u64::from(cid.0));
        }
        self.sides[at].endpoint.reset_all();
        let Some(relay) = &mut self.relay else {
            return self.sides[1 - at].endpoint.reset_all();
        };
        relay.remove_guest(cid, |_, _| false);
        while !self.sides[1 - at].outbound.is_empty() {
            self.relay_one(1 - at);
        }
        self.relay_one(at);
        self.deliver(1 - at, self.sides[1 - at].inbound.len());
        self.sides[at].inbound.clear();
    }

    fn pass_time(&mut self, wait: Duration) {
        self.now = self.now + wait;
        for side in &mut self.sides {
            side.endpoint.expire(self.now);
        }
        if let Some(relay) = &mut self.relay {
            relay.expire(self.now);
        }
    }

    /// Packets go from the links to `at`, and through the relay on their way.
    fn deliver(&mut self, at: usize, count: usize) {
        for _ in 0..count {
            self.relay_one(1 - at);
            let Some(packet) = self.sides[at].inbound.pop_front() else { continue };
            self.arrive(at, &packet);
            self.hear();
        }
    }

    fn relay_one(&mut self, from: usize) {
        let Some(relay) = &mut self.relay else { return };
        if let Some(packet) = self.sides[from].outbound.pop_front() {
            let header = packet.raw.check().expect("endpoints make good headers");
            let verdict = relay.receive(self.now, &header, || Ok(()));
            Self::take_control(relay, &mut self.sides);
            if let Verdict::Forward(header) = verdict {
                let mut offset = 0;
                loop {
                    let piece = header.piece(offset, self.room);
                    let position = packet.position + u64::from(offset);
                    let raw = piece.raw();
                    self.sides[1 - from].inbound.push_back(Packet { raw, position, ..packet });
                    offset += piece.len;
                    if offset >= header.len {
                        break;
                    }
                }
            }
        }
        Self::take_control(relay, &mut self.sides);
    }

    fn take_control(relay: &mut Relay, sides: &mut [Side; 2]) {
        while let Some(cid) = relay.next_ready() {
            let Some(side) = sides.iter_mut().find(|side| side.address == cid.0) else { continue };
            while let Some(raw) = relay.next_packet(cid) {
                side.inbound.push_back(Packet { raw, serial: None, position: 0 });
            }
        }
    }

    fn arrive(&mut self, at: usize, packet: &Packet) {
        let side = &mut self.sides[at];
        let header = packet.raw.check().expect("good headers stay good");
        let Received::Data(id) = side.endpoint.receive(self.now, &header) else { return };
        let user = side.users.get_mut(&id).expect("data comes for connections with a user");
        assert_eq!(user.position_of(packet), user.received, "in order, and once");
        user.received += u64::from(header.len);
        user.unread.push_back(header.len);
        self.delivered += u64::from(header.len);
        let unread: u64 = user.unread.iter().copied().map(u64::from).sum();
        let buffer = u64::from(side.buf_alloc);
        assert!(unread <= buffer, "{unread} unread in {buffer}");
        let packets = u64::try_from(user.unread.len()).unwrap();
        let is_linux_content = packets * PACKET_COST <= buffer || packets == 1;
        assert!(is_linux_content || self.is_resized || self.relay.is_some(), "{packets} unread");
        if user.kind == SocketType::SeqPacket {
            let ends = self.ends.get(&packet.serial.unwrap());
            let is_end = ends.is_some_and(|ends| ends.contains(&user.received));
            assert_eq!(header.flags & EOM != 0, is_end, "message boundaries are kept");
        }
    }
}
