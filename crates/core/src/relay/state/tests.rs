//! Every state with every input, and the table in the docs.

extern crate std;
use super::*;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::println;

const HALVES: [Shutdown; 4] = [Shutdown::NONE, Shutdown::RCV, Shutdown::SEND, Shutdown::BOTH];
const SIDES: [Side; 2] = [Side::Source, Side::Destination];

fn all_states() -> Vec<State> {
    let mut states = alloc::vec![State::Closed];
    for is_proved in [false, true] {
        for first in HALVES {
            states.push(State::Asked { is_proved, shut: first });
            states.extend(HALVES.map(|second| State::Open { is_proved, shut: [first, second] }));
        }
    }
    states
}

fn all_packets() -> Vec<Packet> {
    let mut packets = alloc::vec![
        Packet::Request,
        Packet::Response,
        Packet::Rst,
        Packet::Rw,
        Packet::RwEmpty,
        Packet::RwOverCredit,
        Packet::RwOverPackets,
        Packet::CreditUpdate,
        Packet::CreditRequest,
        Packet::Unknown,
    ];
    packets.extend(HALVES.map(Packet::Shutdown));
    packets
}

/// Whether a packet carries payload, or is said to. No wildcard: a new packet must be put into
/// `all_packets` as well.
fn is_payload(packet: Packet) -> bool {
    match packet {
        Packet::Rw | Packet::RwEmpty | Packet::RwOverCredit | Packet::RwOverPackets => true,
        Packet::Request
        | Packet::Response
        | Packet::Rst
        | Packet::Shutdown(_)
        | Packet::CreditUpdate
        | Packet::CreditRequest
        | Packet::Unknown => false,
    }
}

fn all_inputs() -> Vec<Input> {
    let mut inputs = alloc::vec![Input::Expired, Input::GivenUp];
    for from in SIDES {
        inputs.push(Input::Gone(from));
        for packet in all_packets() {
            inputs.push(Input::Packet { from, packet, is_proof: true });
            if !is_payload(packet) {
                inputs.push(Input::Packet { from, packet, is_proof: false });
            }
        }
    }
    inputs
}

fn for_all_pairs(check: impl Fn(State, Input, State, Effects)) {
    for state in all_states() {
        for input in all_inputs() {
            let (next, effects) = step(state, input);
            println!("{state:?} + {input:?} -> {next:?} {effects:?}");
            check(state, input, next, effects);
        }
    }
}

/// Whose packet an input is, and what it is.
fn packet_of(input: Input) -> Option<(Side, Packet)> {
    match input {
        Input::Packet { from, packet, .. } => Some((from, packet)),
        Input::Expired | Input::GivenUp | Input::Gone(_) => None,
    }
}

fn shut_by(state: State, side: Side) -> Shutdown {
    match state {
        State::Closed => Shutdown::NONE,
        State::Asked { shut, .. } if side == Side::Source => shut,
        State::Asked { .. } => Shutdown::NONE,
        State::Open { shut, .. } => shut[side.index()],
    }
}

#[test]
fn all_pairs_lead_to_known_states() {
    let known = all_states();
    for_all_pairs(|_, _, next, _| assert!(known.contains(&next)));
}

#[test]
fn trap_14_all_pairs_never_answer_a_reset() {
    for_all_pairs(|state, input, next, effects| {
        if let Some((_, Packet::Rst)) = packet_of(input) {
            assert_ne!(effects.packet, Passing::Answer);
            assert_eq!((next, effects.reset), (State::Closed, Reset::Nobody));
            assert_eq!(effects.packet == Passing::Forward, state != State::Closed);
        }
    });
}

#[test]
fn trap_14_all_stray_packets_are_answered_and_no_others() {
    for_all_pairs(|state, input, next, effects| {
        let is_stray = state == State::Closed
            && packet_of(input)
                .is_some_and(|(_, packet)| !matches!(packet, Packet::Request | Packet::Rst));
        assert_eq!(effects.packet == Passing::Answer, is_stray);
        assert!(!is_stray || next == State::Closed);
    });
}

#[test]
fn all_ends_have_a_reason_and_both_sides_learn_of_them() {
    for_all_pairs(|state, input, next, effects| {
        let is_end = state != State::Closed && next == State::Closed;
        assert_eq!(effects.end.is_some(), is_end);
        assert_eq!(effects.timer == Timer::Off && next == State::Closed, is_end);
        if !is_end {
            assert_eq!(effects.reset, Reset::Nobody);
            return;
        }
        for side in SIDES {
            // A RST goes to it, it sent the packet that ends the flow, it is gone, or it has let go
            // of the addresses by itself.
            let is_told = effects.reset == Reset::Both || effects.reset == Reset::One(side);
            let is_passed_on = effects.packet == Passing::Forward
                && packet_of(input).is_some_and(|it| it.0 != side);
            let has_ended_it = match packet_of(input) {
                Some((from, Packet::Rst | Packet::Request)) => from == side,
                Some(_) => false,
                None => input == Input::Gone(side),
            };
            let is_free = shut_by(state, side.other()).is_both() && effects.again;
            assert!(is_told || is_passed_on || has_ended_it || is_free, "{side:?}");
            assert!(!(is_told && has_ended_it), "{side:?} is told what it knows");
        }
    });
}

#[test]
fn all_states_that_wait_for_an_answer_have_a_timer() {
    let waits = |state: State| state.is_asked() || state.name() == "closing";
    for_all_pairs(|state, input, next, effects| {
        if waits(next) && !waits(state) {
            assert!(matches!(effects.timer, Timer::Answer | Timer::Close));
        } else if waits(next) {
            assert!(matches!(effects.timer, Timer::Keep | Timer::Close));
        }
        if state != State::Closed && input == Input::Expired {
            assert_eq!((next, effects.reset), (State::Closed, Reset::Both));
        }
    });
}

#[test]
fn all_shut_directions_stay_shut_while_the_flow_lives() {
    for_all_pairs(|state, _, next, _| {
        for side in SIDES {
            assert!(next == State::Closed || shut_by(next, side).contains(shut_by(state, side)));
        }
    });
}

#[test]
fn all_payload_that_passes_is_of_an_open_flow_and_a_side_that_sends() {
    for_all_pairs(|state, input, next, effects| {
        let Some((from, packet)) = packet_of(input) else { return };
        if is_payload(packet) && effects.packet == Passing::Forward {
            assert_eq!(packet, Packet::Rw);
            assert!(matches!(state, State::Open { .. }) && matches!(next, State::Open { .. }));
            assert!(!shut_by(state, from).contains(Shutdown::SEND));
        }
    });
}

#[test]
fn trap_04_asked_destination_may_say_response_and_reset_only() {
    for_all_pairs(|state, input, next, effects| {
        let Some((Side::Destination, packet)) = packet_of(input) else { return };
        let is_allowed =
            matches!(packet, Packet::Response | Packet::Rst | Packet::Request | Packet::Unknown);
        if state.is_asked() && !is_allowed {
            assert_eq!((next, effects.reset), (State::Closed, Reset::Both));
            assert_eq!(effects.end, Some(End::ProtocolError));
        }
    });
}

#[test]
fn trap_19_all_requests_are_passed_on_or_begin_anew() {
    for_all_pairs(|state, input, next, effects| {
        let Some((from, Packet::Request)) = packet_of(input) else { return };
        let is_unused = matches!(
            state,
            State::Closed
                | State::Asked { is_proved: false, .. }
                | State::Open { is_proved: false, .. }
        );
        if effects.packet == Passing::Forward {
            assert!(is_unused && from == Side::Source || state == State::Closed);
            assert!(next != State::Closed);
        } else {
            assert_eq!(
                (next, effects.end, effects.again),
                (State::Closed, Some(End::Forgotten), true)
            );
        }
    });
}

#[test]
fn proof_counts_of_the_source_alone() {
    for_all_pairs(|state, input, next, _| {
        let proved = |state| {
            matches!(
                state,
                State::Asked { is_proved: true, .. } | State::Open { is_proved: true, .. }
            )
        };
        if next != State::Closed && state != State::Closed {
            let comes = matches!(input, Input::Packet { from: Side::Source, is_proof: true, .. });
            assert_eq!(proved(next), proved(state) || comes);
        }
    });
}

fn bits(of: Shutdown) -> &'static str {
    match of.flags() {
        0 => "–",
        1 => "RCV",
        2 => "SEND",
        _ => "both",
    }
}

fn show(state: State) -> String {
    match state {
        State::Open { shut: [source, destination], .. }
            if !source.is_none() || !destination.is_none() =>
        {
            format!("{} ({}, {})", state.name(), bits(source), bits(destination))
        }
        State::Asked { shut, .. } if !shut.is_none() => format!("connecting ({})", bits(shut)),
        State::Closed | State::Asked { .. } | State::Open { .. } => String::from(state.name()),
    }
}

fn cell(state: State, input: Input) -> String {
    let (next, effects) = step(state, input);
    let mut parts = Vec::new();
    if show(next) != show(state) {
        parts.push(format!("**{}**", show(next)));
    }
    match effects.packet {
        Passing::Drop => {}
        Passing::Forward => parts.push("pass".into()),
        Passing::Answer => parts.push("answer RST".into()),
    }
    match effects.reset {
        Reset::Nobody => {}
        Reset::One(Side::Source) => parts.push("RST to source".into()),
        Reset::One(Side::Destination) => parts.push("RST to destination".into()),
        Reset::Both => parts.push("RST to both".into()),
    }
    if let Some(end) = effects.end {
        parts.push(format!("count: {end:?}"));
    }
    if effects.again {
        parts.push("then as closed".into());
    }
    if parts.is_empty() { "·".into() } else { parts.join(", ") }
}

/// A table with the states as columns, or as rows.
fn table(states: &[State], inputs: &[(String, Input)], states_are_rows: bool) -> String {
    let states: Vec<(String, State)> = states.iter().map(|state| (show(*state), *state)).collect();
    let state_names: Vec<&str> = states.iter().map(|(name, _)| name.as_str()).collect();
    let input_names: Vec<&str> = inputs.iter().map(|(name, _)| name.as_str()).collect();
    let (rows, columns) =
        if states_are_rows { (state_names, input_names) } else { (input_names, state_names) };
    let mut out =
        format!("| | {} |\n|{}\n", columns.join(" | "), " --- |".repeat(columns.len() + 1));
    for (row, name) in rows.iter().enumerate() {
        out += &format!("| {name} |");
        for column in 0..columns.len() {
            let (state, input) = if states_are_rows { (row, column) } else { (column, row) };
            out += &format!(" {} |", cell(states[state].1, inputs[input].1));
        }
        out += "\n";
    }
    out
}

fn document() -> String {
    let none = Shutdown::NONE;
    let states = [
        State::Closed,
        State::Asked { is_proved: false, shut: none },
        State::Open { is_proved: true, shut: [none, none] },
        State::Open { is_proved: true, shut: [Shutdown::SEND, none] },
        State::Open { is_proved: true, shut: [Shutdown::BOTH, none] },
    ];
    let packets = [
        ("REQUEST", Packet::Request),
        ("RESPONSE", Packet::Response),
        ("RST", Packet::Rst),
        ("SHUTDOWN(RCV)", Packet::Shutdown(Shutdown::RCV)),
        ("SHUTDOWN(SEND)", Packet::Shutdown(Shutdown::SEND)),
        ("SHUTDOWN(both)", Packet::Shutdown(Shutdown::BOTH)),
        ("RW", Packet::Rw),
        ("RW, empty, ends no message", Packet::RwEmpty),
        ("RW beyond credit", Packet::RwOverCredit),
        ("RW, too many packets", Packet::RwOverPackets),
        ("CREDIT_UPDATE", Packet::CreditUpdate),
        ("CREDIT_REQUEST", Packet::CreditRequest),
        ("INVALID, unknown op", Packet::Unknown),
    ];
    let of = |from: Side| {
        let is_proof = |packet| is_payload(packet);
        packets
            .map(|(name, packet)| {
                (name.into(), Input::Packet { from, packet, is_proof: is_proof(packet) })
            })
            .to_vec()
    };
    let rest: Vec<(String, Input)> = alloc::vec![
        ("*timer*".into(), Input::Expired),
        ("*cannot be passed on*".into(), Input::GivenUp),
        ("*source is gone*".into(), Input::Gone(Side::Source)),
        ("*destination is gone*".into(), Input::Gone(Side::Destination)),
    ];
    let unused = [
        State::Asked { is_proved: false, shut: none },
        State::Asked { is_proved: false, shut: Shutdown::BOTH },
        State::Open { is_proved: false, shut: [none, none] },
        State::Open { is_proved: false, shut: [Shutdown::BOTH, none] },
    ];
    let request = |from| Input::Packet { from, packet: Packet::Request, is_proof: false };
    let requests: Vec<(String, Input)> = alloc::vec![
        ("REQUEST of the source".into(), request(Side::Source)),
        ("REQUEST of the destination".into(), request(Side::Destination)),
    ];
    let halves: Vec<State> = all_states()
        .into_iter()
        .filter(|state| matches!(state, State::Open { is_proved: true, .. }))
        .collect();
    let ends: Vec<(String, Input)> = [Shutdown::RCV, Shutdown::SEND, Shutdown::BOTH]
        .into_iter()
        .map(|flags| {
            let input = Input::Packet {
                from: Side::Source,
                packet: Packet::Shutdown(flags),
                is_proof: false,
            };
            (format!("SHUTDOWN({}) of the source", bits(flags)), input)
        })
        .collect();
    format!(
        "# States of a flow between two guests\n\n\
        Printed from `crates/core/src/relay/state.rs` by its tests; \
        `UPDATE_DOCS=1 cargo test -p vsock-core relay::state` writes it anew.\n\n\
        The relay passes the packets of two guests to each other and follows what they say. A row is \
        what happens: a packet, or *something else*. A cell says the **next state** if it is another \
        one, whether the packet is passed on, who gets a RST from the relay, and what is counted. A \
        dot: nothing at all. In brackets: directions shut by the source, by the destination.\n\n\
        ## A packet of the source\n\n{}\n\
        ## A packet of the destination\n\n{}\n\
        ## Something else\n\n{}\n\
        ## REQUEST while the source has not used the flow\n\n\
        The tables above are of a flow that its source has used: RW came from it, or a `fwd_cnt` \
        that is not zero.\n\n{}\n\
        ## SHUTDOWN, by the directions that are shut\n\n\
        That of the destination is its mirror image.\n\n{}",
        table(&states, &of(Side::Source), false),
        table(&states, &of(Side::Destination), false),
        table(&states, &rest, false),
        table(&unused, &requests, false),
        table(&halves, &ends, true),
    )
}

#[test]
fn document_of_the_relay_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/internals/relay-states.md");
    let wanted = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "run UPDATE_DOCS=1 cargo test -p vsock-core relay::state");
}
