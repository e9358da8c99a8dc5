use super::*;

const ANY: u32 = u32::MAX;

fn ports() -> Ports {
    Ports::new(Cid::HOST, 7)
}

fn bind(ports: &mut Ports, cid: u32, port: u32) -> Result<Binding, BindError> {
    ports.bind(Address::new(cid, port))
}

fn port_of(ports: &Ports, binding: Binding) -> u32 {
    ports.address(binding).unwrap().port.0
}

#[test]
fn trap_22_wildcard_conflicts_with_every_cid() {
    for (first, second) in [(ANY, ANY), (ANY, 2), (2, ANY), (2, 2)] {
        let mut ports = ports();
        bind(&mut ports, first, 5000).unwrap();
        assert_eq!(bind(&mut ports, second, 5000), Err(BindError::InUse));
        assert!(bind(&mut ports, second, 5001).is_ok());
    }
}

#[test]
fn trap_22_two_explicit_cids_share_a_port() {
    let mut ports = ports();
    let old = bind(&mut ports, 2, 5000).unwrap();
    ports.set_local(Cid(9));
    let new = bind(&mut ports, 9, 5000).unwrap();
    for binding in [old, new] {
        ports.listen(binding, SocketType::Stream, 0).unwrap();
    }
    assert_eq!(ports.lookup(Address::new(2, 5000)).unwrap().binding, old);
    assert_eq!(ports.lookup(Address::new(9, 5000)).unwrap().binding, new);
}

#[test]
fn trap_22_one_port_space_for_both_types() {
    let mut ports = ports();
    let binding = bind(&mut ports, ANY, 5000).unwrap();
    ports.listen(binding, SocketType::Stream, 0).unwrap();
    assert_eq!(bind(&mut ports, ANY, 5000), Err(BindError::InUse));
    assert_eq!(ports.lookup(Address::new(2, 5000)).unwrap().kind, SocketType::Stream);
}

#[test]
fn loopback_cid_is_ours_and_apart_from_our_own_number() {
    let mut ports = ports();
    let own = bind(&mut ports, 2, 5000).unwrap();
    let local = bind(&mut ports, 1, 5000).unwrap();
    for binding in [own, local] {
        ports.listen(binding, SocketType::Stream, 0).unwrap();
    }
    assert_eq!(ports.lookup(Address::new(1, 5000)).unwrap().binding, local);
    assert_eq!(ports.lookup(Address::new(2, 5000)).unwrap().binding, own);
}

#[test]
fn holder_of_a_port_need_not_listen() {
    let mut ports = ports();
    let binding = bind(&mut ports, ANY, 5000).unwrap();
    assert_eq!(ports.holder(Address::new(2, 5000)), Some(binding));
    assert_eq!(ports.holder(Address::new(2, 5001)), None);
    ports.release(binding);
    assert_eq!(ports.holder(Address::new(2, 5000)), None);
}

#[test]
fn foreign_cid_is_not_local() {
    for cid in [0, 3] {
        assert_eq!(bind(&mut ports(), cid, 5000), Err(BindError::NotLocal));
    }
}

#[test]
fn trap_23_ephemeral_ports_are_consecutive_and_skip_what_is_taken() {
    let mut ports = ports();
    let first = bind(&mut ports, ANY, ANY).unwrap();
    let start = port_of(&ports, first);
    assert_eq!(start, 1024 + 7);
    bind(&mut ports, ANY, start + 1).unwrap();
    let second = bind(&mut ports, ANY, ANY).unwrap();
    assert_eq!(port_of(&ports, second), start + 2);
}

#[test]
fn trap_23_ephemeral_port_is_never_the_wildcard_nor_privileged() {
    let mut ports = ports();
    ports.next_ephemeral = u32::MAX - 1;
    let last = bind(&mut ports, ANY, ANY).unwrap();
    let wrapped = bind(&mut ports, ANY, ANY).unwrap();
    assert_eq!((port_of(&ports, last), port_of(&ports, wrapped)), (u32::MAX - 1, 1024));
    for seed in [0, u64::MAX, u64::from(u32::MAX), u64::from(u32::MAX) - 1024, 1 << 40] {
        let mut ports = Ports::new(Cid::HOST, seed);
        let binding = bind(&mut ports, ANY, ANY).unwrap();
        let port = ports.address(binding).unwrap().port;
        assert!(!port.is_privileged() && port != Port::ANY, "{port}");
    }
}

#[test]
fn trap_23_ephemeral_gives_up_after_24_tries() {
    for (taken, expected) in [(23, true), (24, false)] {
        let mut ports = ports();
        for port in 1031..1031 + taken {
            bind(&mut ports, ANY, port).unwrap();
        }
        assert_eq!(bind(&mut ports, ANY, ANY).is_ok(), expected);
    }
    let mut ports = ports();
    for port in 1031..1031 + 24 {
        bind(&mut ports, ANY, port).unwrap();
    }
    assert_eq!(bind(&mut ports, ANY, ANY), Err(BindError::Exhausted));
    assert!(bind(&mut ports, ANY, ANY).is_ok(), "the next try goes on from there");
}

#[test]
fn trap_24_binding_is_kept_until_released() {
    let mut ports = ports();
    let binding = bind(&mut ports, ANY, 5000).unwrap();
    ports.set_local(Cid(9));
    assert_eq!(bind(&mut ports, ANY, 5000), Err(BindError::InUse));
    ports.release(binding);
    ports.release(binding);
    let again = bind(&mut ports, ANY, 5000).unwrap();
    assert_ne!(again, binding);
    assert_eq!(ports.address(binding), None);
    ports.release(binding);
    assert!(ports.address(again).is_some(), "a stale binding frees nothing");
}

#[test]
fn trap_20_backlog_admits_one_more() {
    for backlog in [0, 1, 5] {
        let mut ports = ports();
        let binding = bind(&mut ports, ANY, 5000).unwrap();
        assert!(!ports.admit(binding), "bound is not listening");
        ports.listen(binding, SocketType::Stream, backlog).unwrap();
        for _ in 0..=backlog {
            assert!(ports.admit(binding));
        }
        assert!(!ports.admit(binding));
        ports.accepted(binding);
        assert!(ports.admit(binding));
        assert!(!ports.admit(binding));
        ports.listen(binding, SocketType::Stream, backlog + 1).unwrap();
        assert!(ports.admit(binding));
    }
}

#[test]
fn trap_21_listen_needs_a_binding() {
    let mut ports = ports();
    let binding = bind(&mut ports, ANY, 5000).unwrap();
    assert_eq!(ports.listen(binding, SocketType::Datagram, 0), Err(ListenError::NotConnectible));
    assert_eq!(ports.lookup(Address::new(2, 5000)), None, "bound, but nobody listens");
    ports.release(binding);
    assert_eq!(ports.listen(binding, SocketType::Stream, 0), Err(ListenError::NotBound));
}

#[test]
fn listeners_are_listed_with_who_waits() {
    let mut ports = ports();
    let low = bind(&mut ports, ANY, 5000).unwrap();
    bind(&mut ports, ANY, 5001).unwrap();
    let high = bind(&mut ports, 2, 5002).unwrap();
    ports.listen(high, SocketType::SeqPacket, 3).unwrap();
    ports.listen(low, SocketType::Stream, 0).unwrap();
    assert!(ports.admit(high));
    let seen: Vec<_> = ports.listeners().map(|it| (it.address, it.kind, it.waiting)).collect();
    assert_eq!(
        seen,
        [
            (Address::new(ANY, 5000), SocketType::Stream, 0),
            (Address::new(2, 5002), SocketType::SeqPacket, 1)
        ]
    );
}
