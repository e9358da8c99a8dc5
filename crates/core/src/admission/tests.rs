//! The default rules, the order of reasons, and the index against a walk through the table.

extern crate std;
use super::rules::{ALL_PORTS, Compiled, Relation, Who, default_rules};
use super::*;
use crate::address::Address;
use crate::ids::Key;
use alloc::format;
use proptest::prelude::*;

const LAB: GroupId = GroupId(0);
const WEB: GroupId = GroupId(1);
const PORT: Port = Port(5000);
const ALPHA: Party<'static> = guest(3, &[LAB]);
const BETA: Party<'static> = guest(4, &[WEB, LAB]);
const GAMMA: Party<'static> = guest(5, &[]);

const fn guest(cid: u32, groups: &'static [GroupId]) -> Party<'static> {
    Party::Guest { cid: Cid(cid), groups, is_leaving: false }
}

fn connect<'a>(from: Party<'a>, to: Party<'a>) -> Attempt<'a> {
    Attempt::connect(from, to, PORT, SocketType::Stream)
}

/// Which rule allows it, or why it is refused.
fn outcome(attempt: &Attempt<'_>) -> Result<String, Refusal> {
    let admission = Admission::default();
    match admission.decide(attempt) {
        Decision::Allow { rule, .. } => Ok(admission.rule(rule).unwrap().name.clone()),
        Decision::Refuse { reason, .. } => Err(reason),
    }
}

fn listener(kind: SocketType, backlog: u32, waiting: u32) -> Answerer {
    let binding = Key::from_bits(0).unwrap();
    Answerer::Listener(Listener { binding, address: Address::new(2, 5000), kind, backlog, waiting })
}

#[test]
fn default_rules_let_host_and_guests_talk_and_guests_of_one_group() {
    let allowed = |name: &str| Ok(String::from(name));
    for act in [Act::Connect, Act::Send] {
        let outcome = |from, to| {
            let kind = if act == Act::Send { SocketType::Datagram } else { SocketType::Stream };
            outcome(&Attempt { act, kind, ..connect(from, to) })
        };
        assert_eq!(outcome(Party::PROGRAM, GAMMA), allowed("host"));
        assert_eq!(outcome(GAMMA, Party::PROGRAM), allowed("host"));
        assert_eq!(outcome(ALPHA, BETA), allowed("group"));
        assert_eq!(outcome(BETA, ALPHA), allowed("group"));
        assert_eq!(outcome(ALPHA, GAMMA), Err(Refusal::NoSharedGroup));
        assert_eq!(outcome(GAMMA, guest(6, &[])), Err(Refusal::NoSharedGroup));
        assert_eq!(outcome(GAMMA, GAMMA), allowed("self"));
        assert_eq!(outcome(Party::PROGRAM, Party::PROGRAM), allowed("self"));
        assert_eq!(outcome(Party::PROGRAM, Party::Beyond), allowed("host"));
        assert_eq!(outcome(Party::Beyond, Party::PROGRAM), allowed("host"));
    }
}

#[test]
fn default_rules_keep_ports_below_1024_for_programs_with_the_right() {
    let bind = |may_use_privileged, port| {
        let program = Party::Program(Program { user: None, may_use_privileged });
        let attempt = Attempt { act: Act::Bind, port: Port(port), ..connect(program, program) };
        outcome(&attempt).is_ok()
    };
    assert!(!bind(false, 0) && !bind(false, 1023));
    assert!(bind(false, 1024) && bind(false, u32::MAX));
    assert!(bind(true, 0) && bind(true, 1023));
    let listen =
        Attempt { act: Act::Listen, port: Port(22), ..connect(Party::PROGRAM, Party::PROGRAM) };
    assert!(outcome(&listen).is_ok(), "the port was granted when it was bound");
}

#[test]
fn refused_for_what_the_kernel_finds_first() {
    let nobody = Party::Nobody(Cid(9));
    let unknown = Attempt { is_kind_known: false, ..connect(Party::PROGRAM, nobody) };
    assert_eq!(outcome(&unknown), Err(Refusal::TypeNotKnown));
    assert_eq!(outcome(&connect(Party::PROGRAM, nobody)), Err(Refusal::NoRoute));
    let hypervisor = Party::Nobody(Cid::HYPERVISOR);
    let attempt = Attempt { is_kind_known: false, ..connect(Party::PROGRAM, hypervisor) };
    assert_eq!(outcome(&attempt), Err(Refusal::NoHypervisor));
    let datagram = Attempt { kind: SocketType::Datagram, ..unknown };
    assert_eq!(outcome(&datagram), Err(Refusal::NotConnectible));
    assert_eq!(outcome(&Attempt { act: Act::Listen, ..datagram }), Err(Refusal::NotConnectible));
    let bind = Attempt { act: Act::Bind, port: Port(22), ..connect(Party::PROGRAM, nobody) };
    assert_eq!(outcome(&bind), Err(Refusal::NotLocal));
}

#[test]
fn leaving_guest_begins_nothing_and_nothing_begins_with_it() {
    let leaving = Party::Guest { cid: Cid(3), groups: &[LAB], is_leaving: true };
    for (from, to) in [(leaving, BETA), (BETA, leaving), (leaving, Party::PROGRAM)] {
        assert_eq!(outcome(&connect(from, to)), Err(Refusal::Leaving));
    }
}

#[test]
fn answerer_must_be_there_and_have_the_type_and_room() {
    let to = |answerer, kind| {
        let attempt = connect(GAMMA, Party::PROGRAM);
        outcome(&Attempt { answerer, kind, ..attempt }).err()
    };
    let (stream, seqpacket) = (SocketType::Stream, SocketType::SeqPacket);
    assert_eq!(to(listener(stream, 0, 0), stream), None);
    assert_eq!(to(listener(stream, 3, 3), stream), None);
    assert_eq!(to(listener(stream, 3, 4), stream), Some(Refusal::QueueFull));
    assert_eq!(to(listener(seqpacket, 3, 4), stream), Some(Refusal::ListenerType));
    assert_eq!(to(Answerer::Hybrid, stream), None);
    assert_eq!(to(Answerer::Hybrid, seqpacket), Some(Refusal::NoListener));
    assert_eq!(to(Answerer::Nobody, stream), Some(Refusal::NoListener));
    assert_eq!(to(Answerer::Receiver, SocketType::Stream), None);
}

#[test]
fn who_may_not_connect_does_not_learn_who_listens() {
    let mut rules = default_rules();
    rules.retain(|rule| rule.name != "host");
    let admission = Admission::new(rules);
    for answerer in [Answerer::Nobody, listener(SocketType::Stream, 1, 0)] {
        let attempt = Attempt { answerer, ..connect(GAMMA, Party::PROGRAM) };
        let refused = Decision::Refuse { reason: Refusal::NoRule, rule: None };
        assert_eq!(admission.decide(&attempt), refused);
    }
}

#[test]
fn answer_to_another_program_depends_on_who_answers_and_on_no_rule() {
    let admission = Admission::new(Vec::new());
    let answer = |answerer| {
        let asked = connect(Party::PROGRAM, Party::PROGRAM);
        admission.decide_answer(&Attempt { answerer, ..asked })
    };
    assert_eq!(answer(listener(SocketType::Stream, 1, 0)), Ok(FlowLimits::default()));
    assert_eq!(answer(listener(SocketType::Stream, 1, 2)), Err(Refusal::QueueFull));
    assert_eq!(answer(listener(SocketType::SeqPacket, 1, 0)), Err(Refusal::ListenerType));
    assert_eq!(answer(Answerer::Nobody), Err(Refusal::NoListener));
}

#[test]
fn refusals_are_counted_by_reason() {
    let mut admission = Admission::default();
    for _ in 0..3 {
        assert_eq!(admission.refuse(Refusal::QueueFull).reason(), Refusal::QueueFull);
    }
    let _ = admission.refuse(Refusal::Leaving);
    assert_eq!(admission.refusals().of(Refusal::QueueFull), 3);
    let counted: Vec<_> = admission.refusals().named().filter(|(_, count)| *count > 0).collect();
    assert_eq!(counted, [("refused_leaving", 1), ("refused_queue_full", 3)]);
    let saved = admission.refusals().save();
    let mut successor = Admission::default();
    successor.set_refusals(RefusalCounts::restore(&saved).unwrap());
    assert!(RefusalCounts::restore(&alloc::vec![(Refusal::Leaving, u64::MAX)]).is_err());
    assert_eq!(successor.refusals(), admission.refusals());
}

#[test]
fn reasons_have_names_and_texts_of_their_own() {
    for (at, reason) in Refusal::ALL.iter().enumerate() {
        for other in &Refusal::ALL[..at] {
            assert!(reason.name() != other.name() && reason.text() != other.text());
        }
    }
}

#[test]
fn explanation_names_the_rule_and_the_shared_group() {
    let mut admission = Admission::default();
    let (lab, web) = (admission.group("lab"), admission.group("web"));
    assert_eq!((admission.group("lab"), admission.group_name(web)), (lab, "web"));
    let explain = |from, to| admission.explain(&connect(from, to));
    let shared = explain(ALPHA, BETA);
    assert_eq!((shared.is_allowed, shared.rule.as_str()), (true, "group"));
    assert_eq!(shared.shared_group.as_deref(), Some("lab"));
    let strangers = explain(ALPHA, GAMMA);
    assert_eq!((strangers.is_allowed, strangers.rule.as_str()), (false, "default"));
    assert_eq!((strangers.shared_group, strangers.refusal), (None, Some(Refusal::NoSharedGroup)));
    assert_eq!(explain(ALPHA, Party::Nobody(Cid(9))).rule, "");
}

#[test]
fn other_rules_are_in_force_at_once() {
    let mut admission = Admission::default();
    let rule = Rule {
        name: "alpha to gamma".into(),
        acts: alloc::vec![Act::Connect],
        from: Who::Guest(Cid(3)),
        to: Who::Guest(Cid(5)),
        relation: Relation::Any,
        ports: 5000..=5000,
        kind: None,
        action: Action::Allow(FlowLimits { buffer: 4096 }),
    };
    let mut rules = default_rules();
    rules.insert(0, rule);
    admission.set_rules(rules);
    let limits = admission.decide(&connect(ALPHA, GAMMA)).limits();
    assert_eq!(limits, Ok(FlowLimits { buffer: 4096 }));
    let other_port = Attempt { port: Port(5001), ..connect(ALPHA, GAMMA) };
    assert_eq!(admission.decide(&other_port).limits(), Err(Refusal::NoSharedGroup));
}

/// Whether a rule says something about an attempt, read as the rule is written.
fn matches(rule: &Rule, attempt: &Attempt<'_>) -> bool {
    // By rule, so that a new kind of `Who` or `Relation` is missed here, and then in `any_who` or `any_rule`.
    let is = |who: Who, party: &Party<'_>| match who {
        Who::Anyone => true,
        Who::Programs => matches!(party, Party::Program(_)),
        Who::UnprivilegedPrograms => {
            matches!(party, Party::Program(program) if !program.may_use_privileged)
        }
        Who::User(user) => matches!(party, Party::Program(program) if program.user == Some(user)),
        Who::Guests => matches!(party, Party::Guest { .. }),
        Who::Guest(wanted) => matches!(party, Party::Guest { cid, .. } if *cid == wanted),
        Who::Group(wanted) => party.groups().contains(&wanted),
    };
    let related = match rule.relation {
        Relation::Any => true,
        Relation::Same => match (attempt.from, attempt.to) {
            (Party::Program(_), Party::Program(_)) => true,
            (Party::Guest { cid: one, .. }, Party::Guest { cid: other, .. }) => one == other,
            _ => false,
        },
        Relation::SharedGroup => {
            attempt.from.groups().iter().any(|group| attempt.to.groups().contains(group))
        }
    };
    related
        && rule.acts.contains(&attempt.act)
        && is(rule.from, &attempt.from)
        && is(rule.to, &attempt.to)
        && rule.ports.contains(&attempt.port.0)
        && (rule.kind.is_none() || rule.kind == Some(attempt.kind))
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![Just(Act::Connect), Just(Act::Send), Just(Act::Bind), Just(Act::Listen)]
}

fn any_kind() -> impl Strategy<Value = SocketType> {
    prop_oneof![Just(SocketType::Stream), Just(SocketType::SeqPacket), Just(SocketType::Datagram)]
}

fn any_who() -> impl Strategy<Value = Who> {
    prop_oneof![
        Just(Who::Anyone),
        Just(Who::Programs),
        Just(Who::UnprivilegedPrograms),
        (1000u32..1003).prop_map(Who::User),
        Just(Who::Guests),
        (3u32..7).prop_map(|cid| Who::Guest(Cid(cid))),
        (0u32..3).prop_map(|group| Who::Group(GroupId(group))),
    ]
}

fn any_port() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..12, Just(u32::MAX), Just(u32::MAX - 1), Just(1023), Just(1024)]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let relation =
        prop_oneof![Just(Relation::Any), Just(Relation::Same), Just(Relation::SharedGroup)];
    let ports = prop_oneof![
        Just(ALL_PORTS),
        (any_port(), any_port()).prop_map(|(from, to)| from..=to), // empty ones, too
    ];
    let acts = prop::collection::vec(any_act(), 1..4);
    (acts, any_who(), any_who(), relation, ports, prop::option::of(any_kind())).prop_map(
        |(acts, from, to, relation, ports, kind)| Rule {
            name: String::new(),
            acts,
            from,
            to,
            relation,
            ports,
            kind,
            action: Action::Refuse(Refusal::Denied),
        },
    )
}

fn any_party() -> impl Strategy<Value = Party<'static>> {
    const GROUPS: [&[GroupId]; 5] =
        [&[], &[GroupId(0)], &[GroupId(1)], &[GroupId(0), GroupId(2)], &[GroupId(2), GroupId(1)]];
    prop_oneof![
        (prop::option::of(1000u32..1003), any::<bool>()).prop_map(|(user, may_use_privileged)| {
            Party::Program(Program { user, may_use_privileged })
        }),
        (3u32..7).prop_map(|cid| guest(cid, GROUPS[cid as usize - 3])),
        (3u32..7).prop_map(|cid| guest(cid, GROUPS[4])),
        Just(Party::Beyond),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// The index finds the rule that a walk through the table finds first.
    #[test]
    fn index_finds_what_a_walk_through_the_table_finds(
        rules in prop::collection::vec(any_rule(), 0..30),
        attempts in prop::collection::vec(
            (any_act(), any_party(), any_party(), any_port(), any_kind()),
            1..30,
        ),
    ) {
        let compiled = Compiled::new(rules.clone());
        for (act, from, to, port, kind) in attempts {
            let attempt = Attempt { act, ..Attempt::connect(from, to, Port(port), kind) };
            let wanted = rules.iter().position(|rule| matches(rule, &attempt));
            let found = compiled.first_match(&attempt).map(|(id, _)| id.0 as usize);
            prop_assert_eq!(found, wanted, "{:?}", attempt);
        }
    }
}

#[test]
fn each_of_many_rules_is_found() {
    let rule = |number: u32| Rule {
        name: format!("{number}"),
        acts: alloc::vec![Act::Connect],
        from: Who::Guest(Cid(3 + number % 100)),
        to: Who::Programs,
        relation: Relation::Any,
        ports: number..=number,
        kind: None,
        action: Action::Allow(FlowLimits::default()),
    };
    let compiled = Compiled::new((0..10_000).map(rule).collect());
    for number in (0..10_000).step_by(7) {
        let from = guest(3 + number % 100, &[]);
        let attempt = Attempt::connect(from, Party::PROGRAM, Port(number), SocketType::Stream);
        assert_eq!(compiled.first_match(&attempt).map(|(id, _)| id.0), Some(number));
    }
}
