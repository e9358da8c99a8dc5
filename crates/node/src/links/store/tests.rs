use proptest::collection::vec;
use proptest::prelude::*;
use vsock_core::saved::Unfit;
use vsock_core::{Address, Cid, FlowKey, Header, Op, RawHeader, Shutdown, SocketType};

use super::*;

const RECEIVER: u32 = 9;

/// A packet of a sender's flow, with so much consumed.
fn packet(sender: u32, port: u32, op: Op, fwd_cnt: u32) -> Header {
    let key = FlowKey { ours: Address::new(sender, port), theirs: Address::new(RECEIVER, 22) };
    let mut header = Header::outbound(key, SocketType::Stream, op);
    header.fwd_cnt = fwd_cnt;
    header
}

fn push(store: &mut Store, mut header: Header, payload: &[u8]) -> bool {
    header.len = u32::try_from(payload.len()).unwrap();
    store.push(Stored::new(header, payload.to_vec()))
}

fn control(store: &mut Store, op: Op, fwd_cnt: u32) {
    assert!(push(store, packet(3, 1, op, fwd_cnt), &[]));
}

/// The next packet that fits so much room, and its payload.
fn send(store: &mut Store, room: u32) -> Option<(Header, Vec<u8>)> {
    let stored = store.front()?;
    let piece = stored.next_piece(room);
    let payload = stored.take(piece.len as usize).to_vec();
    store.sent(payload.len());
    Some((piece, payload))
}

/// All that waits: sender, operation and `fwd_cnt`.
fn drain(store: &mut Store) -> Vec<(u32, Op, u32)> {
    let next = || send(store, u32::MAX).map(|(it, _)| (it.src.cid.0, it.op, it.fwd_cnt));
    std::iter::from_fn(next).collect()
}

#[test]
fn packet_behind_a_flood_of_another_sender_goes_after_one_turn_of_that() {
    let mut store = Store::default();
    for port in 0..10_000 {
        assert!(push(&mut store, packet(3, port, Op::Request, 0), &[]));
    }
    for port in 0..50 {
        assert!(push(&mut store, packet(4, port, Op::Request, 0), &[]));
    }
    let senders: Vec<u32> = drain(&mut store).iter().map(|it| it.0).collect();
    assert_eq!(senders.len(), 10_050);
    let of_turn = usize::try_from(TURN).unwrap() / PACKET_COST;
    assert_eq!((senders[of_turn - 1], senders[of_turn], senders[2 * of_turn]), (3, 4, 3));
}

#[test]
fn senders_get_the_same_bytes_however_long_their_packets_are() {
    let mut store = Store::default();
    for _ in 0..40 {
        assert!(push(&mut store, packet(3, 1, Op::Rw, 0), &[0; 65_536]));
    }
    for _ in 0..10_000 {
        assert!(push(&mut store, packet(4, 1, Op::Rw, 0), &[0; 100]));
    }
    let (mut spent, mut most_apart) = ([0usize; 2], 0);
    while spent.iter().sum::<usize>() < 2_000_000 {
        // The first receives in buffers that take a whole packet.
        let (header, payload) = send(&mut store, u32::MAX).unwrap();
        spent[header.src.cid.0 as usize - 3] += payload.len() + PACKET_COST;
        most_apart = most_apart.max(spent[0].abs_diff(spent[1]));
    }
    assert!(most_apart <= 65_536 + 2 * usize::try_from(TURN).unwrap(), "{most_apart}");
}

#[test]
fn sender_that_has_nothing_meanwhile_skips_its_turns_all_the_same() {
    let mut store = Store::default();
    assert!(push(&mut store, packet(3, 1, Op::Rw, 0), &[0; 65_536]));
    for _ in 0..10_000 {
        assert!(push(&mut store, packet(4, 1, Op::Rw, 0), &[0; 100]));
    }
    assert_eq!(send(&mut store, u32::MAX).unwrap().0.src.cid, Cid(3));
    assert!(push(&mut store, packet(3, 1, Op::Rw, 0), &[0; 65_536]));
    let waits = std::iter::from_fn(|| send(&mut store, u32::MAX))
        .take_while(|(header, _)| header.src.cid == Cid(4))
        .map(|(_, payload)| payload.len() + PACKET_COST);
    assert!(waits.sum::<usize>() >= 65_536 - usize::try_from(TURN).unwrap());
}

#[test]
fn news_of_credit_travel_in_the_last_packet_of_their_flow_and_never_before_it() {
    let mut store = Store::default();
    control(&mut store, Op::Response, 0);
    assert!(push(&mut store, packet(3, 1, Op::Rw, 5), b"payload"));
    assert!(push(&mut store, packet(3, 2, Op::Rw, 0), b"of another flow"));
    let before = store.bytes();
    (6..1000).for_each(|fwd_cnt| control(&mut store, Op::CreditUpdate, fwd_cnt));
    assert_eq!(store.bytes(), before);
    assert_eq!(drain(&mut store), [(3, Op::Response, 0), (3, Op::Rw, 999), (3, Op::Rw, 0)]);
    control(&mut store, Op::CreditUpdate, 1000);
    assert_eq!(drain(&mut store), [(3, Op::CreditUpdate, 1000)]);
}

#[test]
fn control_packets_of_a_flow_wait_once_each_behind_its_payload() {
    let mut store = Store::default();
    for round in 0..1000 {
        control(&mut store, Op::CreditUpdate, 4 * round);
        control(&mut store, Op::CreditRequest, 4 * round + 1);
        let mut shutdown = packet(3, 1, Op::Shutdown, 4 * round + 2);
        shutdown.flags = if round % 2 == 0 { Shutdown::RCV } else { Shutdown::SEND }.flags();
        assert!(push(&mut store, shutdown, &[]));
    }
    let (request, _) = send(&mut store, u32::MAX).unwrap();
    assert_eq!(request.op, Op::CreditRequest);
    let (shutdown, _) = send(&mut store, u32::MAX).unwrap();
    assert_eq!((shutdown.op, shutdown.flags), (Op::Shutdown, Shutdown::BOTH.flags()));
    assert_eq!(shutdown.fwd_cnt, 3998);
    assert!(store.is_empty());
}

#[test]
fn question_behind_payload_is_not_the_one_before_it() {
    let mut store = Store::default();
    control(&mut store, Op::CreditRequest, 0);
    assert!(push(&mut store, packet(3, 1, Op::Rw, 0), b"payload"));
    control(&mut store, Op::CreditRequest, 1);
    control(&mut store, Op::CreditRequest, 2);
    let ops = [(3, Op::CreditRequest, 0), (3, Op::Rw, 0), (3, Op::CreditRequest, 2)];
    assert_eq!(drain(&mut store), ops);
}

#[test]
fn what_follows_a_reset_belongs_to_another_connection() {
    let mut store = Store::default();
    for _ in 0..2 {
        control(&mut store, Op::Request, 0);
        control(&mut store, Op::Request, 0);
        control(&mut store, Op::Rst, 0);
    }
    control(&mut store, Op::Request, 0);
    let mut other = packet(3, 1, Op::Request, 0);
    other.kind = SocketType::SeqPacket;
    assert!(push(&mut store, other, &[]));
    let ops: Vec<Op> = drain(&mut store).into_iter().map(|it| it.1).collect();
    use Op::{Request, Rst};
    assert_eq!(ops, [Request, Rst, Request, Rst, Request, Request]);
}

/// Stores packets of a sender until it may not.
fn fill(store: &mut Store, sender: u32) -> usize {
    let before = store.bytes();
    while push(store, packet(sender, 1, Op::Rw, 0), &[0; 65_536]) {}
    store.bytes() - before
}

#[test]
fn senders_that_store_all_they_may_leave_a_part_for_the_next() {
    let mut store = Store::default();
    let mut left = LIMIT;
    for sender in 3..9 {
        let own = fill(&mut store, sender);
        assert!(own <= left / 3 && own > left / 3 - 70_000, "{own} of {left}");
        left -= own;
    }
    assert!(push(&mut store, packet(9, 1, Op::Request, 0), &[]));
    // What ends a connection has more room, but not all of the memory.
    let before = store.bytes();
    while push(&mut store, packet(3, 1, Op::Rst, 0), &[]) {}
    assert!(store.bytes() > before + LIMIT / 20 && store.bytes() <= LIMIT);
}

/// A packet that a guest may send on one of its flows.
fn any_packet() -> impl Strategy<Value = (u32, u32, Op, u32, Vec<u8>)> {
    let op = prop_oneof![
        Just(Op::Request),
        Just(Op::Response),
        Just(Op::Rst),
        Just(Op::Shutdown),
        Just(Op::Rw),
        Just(Op::CreditUpdate),
        Just(Op::CreditRequest),
    ];
    (3..6u32, 1..3u32, op, 0..4u32, vec(any::<u8>(), 1..40))
}

/// What the receiver of a flow knows between one packet that may not be passed and the next.
#[derive(Debug, Default, PartialEq, Eq)]
struct Stretch {
    /// The packet with which it begins.
    begins: Option<(Op, Vec<u8>)>,
    shut: u32,
    is_asked: bool,
    is_requested: bool,
    /// `buf_alloc` and `fwd_cnt` at its end.
    credit: (u32, u32),
}

/// A flow as its receiver sees it.
#[derive(Debug, PartialEq, Eq)]
struct Seen(Vec<Stretch>);

impl Default for Seen {
    fn default() -> Self {
        Self(vec![Stretch::default()])
    }
}

impl Seen {
    /// Takes a packet; `goes_on`: its payload continues that of the last.
    fn take(&mut self, header: &Header, payload: &[u8], goes_on: bool) {
        if let (true, Some(Stretch { begins: Some((_, before)), .. })) =
            (goes_on, self.0.last_mut())
        {
            before.extend_from_slice(payload);
        } else if matches!(header.op, Op::Rw | Op::Response | Op::Rst) {
            let begins = Some((header.op, payload.to_vec()));
            self.0.push(Stretch { begins, ..Stretch::default() });
        }
        let now = self.0.last_mut().unwrap();
        now.shut |= if header.op == Op::Shutdown { header.flags } else { 0 };
        now.is_asked |= header.op == Op::CreditRequest;
        now.is_requested |= header.op == Op::Request;
        now.credit = (header.buf_alloc, header.fwd_cnt);
    }
}

proptest! {
    /// A receiver that gets the merged packets knows the same, at each packet that may not be passed, as one that gets
    /// them all.
    #[test]
    fn receiver_learns_in_order_what_each_flow_has_said(
        steps in vec((any_packet(), 0..3u32, 1..50u32), 1..200),
    ) {
        let mut store = Store::default();
        let (mut sent, mut got) = (BTreeMap::new(), BTreeMap::new());
        let (mut pushed, mut out) = (0u32, 0u32);
        let mut take = |store: &mut Store, room: u32| -> Result<bool, TestCaseError> {
            let Some(stored) = store.front() else { return Ok(false) };
            let goes_on = stored.sent > 0;
            let (header, payload) = send(store, room).unwrap();
            out += u32::from(!goes_on);
            let seen: &mut Seen = got.entry((header.src.cid, header.src.port)).or_default();
            let before = seen.0.last().map_or(0, |stretch| stretch.credit.1);
            prop_assert!(header.fwd_cnt >= before, "credit went back");
            seen.take(&header, &payload, goes_on);
            Ok(true)
        };
        for (clock, ((sender, port, op, flags, payload), packets, room)) in (0..).zip(steps) {
            let payload = if op == Op::Rw { payload } else { Vec::new() };
            let mut header = packet(sender, port, op, clock);
            header.flags = if op == Op::Shutdown { flags } else { 0 };
            header.buf_alloc = clock / 2;
            let seen: &mut Seen = sent.entry((header.src.cid, header.src.port)).or_default();
            seen.take(&header, &payload, false);
            prop_assert!(push(&mut store, header, &payload));
            pushed += 1;
            for _ in 0..packets {
                take(&mut store, room)?;
            }
            // A successor merges the same.
            store = Store::restore(store.save()).unwrap();
        }
        while take(&mut store, u32::MAX)? {}
        prop_assert_eq!(sent, got);
        prop_assert!(out <= pushed);
        prop_assert_eq!((store.bytes(), store.queues.len(), store.turns.len()), (0, 0, 0));
    }
}

fn two_senders() -> Store {
    let mut store = Store::default();
    assert!(push(&mut store, packet(3, 1, Op::Rw, 0), b"bytes"));
    assert!(push(&mut store, packet(4, 1, Op::Request, 0), &[]));
    assert_eq!(store.front().unwrap().take(2), b"by");
    store.sent(2);
    control(&mut store, Op::Rst, 0);
    store
}

#[test]
fn packets_wait_on_in_a_restored_store() {
    let before = two_senders();
    let mut after = Store::restore(before.save()).unwrap();
    assert_eq!((after.bytes(), after.save()), (before.bytes(), before.save()));
    let (piece, payload) = send(&mut after, 9).unwrap();
    assert_eq!((piece.len, payload.as_slice()), (3, b"tes".as_slice()));
    assert_eq!(drain(&mut after), [(3, Op::Rst, 0), (4, Op::Request, 0)]);
}

#[test]
fn packets_that_cannot_be_are_not_restored() {
    let spoiled = |spoil: &dyn Fn(&mut Vec<SavedSender>)| {
        let mut saved = two_senders().save();
        spoil(&mut saved);
        Store::restore(saved).err()
    };
    assert_eq!(spoiled(&|_| {}), None);
    assert_eq!(spoiled(&|it| it[0].packets[0].sent = 5), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].packets[0].payload.push(0)), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].packets[0].header.kind = 9), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].packets[0].header.src_cid = 4), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].packets.clear()), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].left = TURN + 1), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it[0].left = -70_000), Some(Unfit::Queue));
    assert_eq!(spoiled(&|it| it.push(it[0].clone())), Some(Unfit::Queue));
    let many = |it: &mut Vec<SavedSender>| {
        let big = SavedPacket {
            header: RawHeader { len: 65_536, ..it[0].packets[0].header },
            payload: vec![0; 65_536],
            sent: 0,
        };
        it[0].packets.resize(LIMIT / 65_536 + 1, big);
    };
    assert_eq!(spoiled(&many), Some(Unfit::TooMany));
}
