//! Every state with every input, and the table in the docs.

extern crate std;
use super::*;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use std::println;

const HALVES: [Shutdown; 4] = [Shutdown::NONE, Shutdown::RCV, Shutdown::SEND, Shutdown::BOTH];

fn all_states() -> Vec<State> {
    let mut states = alloc::vec![State::Closed];
    for first in HALVES {
        states.push(State::Connecting { ours: first });
        if !first.is_both() {
            states.push(State::Offered { theirs: first });
            states.push(State::Closing { theirs: first });
        }
        states.extend(HALVES.map(|theirs| State::Open { ours: first, theirs }));
    }
    states
}

fn all_inputs() -> Vec<Input> {
    let mut inputs = alloc::vec![
        Input::Request,
        Input::RequestRepeated,
        Input::Response,
        Input::Rst,
        Input::Rw,
        Input::RwOverCredit,
        Input::Garbled,
        Input::CreditUpdate,
        Input::CreditRequest,
        Input::Invalid,
        Input::Unknown,
        Input::Connect,
        Input::Accept,
        Input::Refuse,
        Input::Drained,
        Input::Close,
        Input::Reset,
        Input::Expired,
        Input::LinkGone,
    ];
    for flags in HALVES {
        inputs.push(Input::ShutDown(flags));
        inputs.push(Input::Shutdown { flags, unread: false });
        inputs.push(Input::Shutdown { flags, unread: true });
    }
    inputs
}

/// Whether an input is a packet. No wildcard: a new input must be put into `all_inputs` as well.
fn is_packet(input: Input) -> bool {
    match input {
        Input::Request
        | Input::RequestRepeated
        | Input::Response
        | Input::Rst
        | Input::Shutdown { .. }
        | Input::Rw
        | Input::RwOverCredit
        | Input::Garbled
        | Input::CreditUpdate
        | Input::CreditRequest
        | Input::Invalid
        | Input::Unknown => true,
        Input::Connect
        | Input::Accept
        | Input::Refuse
        | Input::ShutDown(_)
        | Input::Drained
        | Input::Close
        | Input::Reset
        | Input::Expired
        | Input::LinkGone => false,
    }
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

#[test]
fn all_pairs_lead_to_known_states() {
    let known = all_states();
    for_all_pairs(|_, _, next, _| assert!(known.contains(&next)));
}

#[test]
fn trap_14_all_pairs_never_answer_a_reset() {
    for_all_pairs(|_, input, next, effects| {
        if input == Input::Rst {
            assert_eq!(effects.say, Say::Nothing);
            assert_eq!(next, State::Closed);
        }
    });
}

#[test]
fn trap_14_all_stray_packets_are_answered_with_a_reset() {
    for_all_pairs(|state, input, next, effects| {
        if state == State::Closed && is_packet(input) {
            if matches!(input, Input::Request | Input::RequestRepeated) {
                assert_eq!(effects.tell, Tell::Offered);
            } else if input == Input::Rst {
                assert_eq!(effects, QUIET);
            } else {
                assert_eq!((next, effects.say), (State::Closed, Say::Reset));
            }
        }
    });
}

#[test]
fn all_ends_are_told_unless_our_user_ordered_them() {
    for_all_pairs(|state, input, next, effects| {
        let is_end = state != State::Closed && next == State::Closed;
        let is_told = matches!(effects.tell, Tell::Closed(_));
        let is_ordered = matches!(input, Input::Reset | Input::Refuse);
        assert_eq!(is_told, is_end && !is_ordered);
        assert_eq!(effects.timer == Timer::Off && next == State::Closed, is_end);
    });
}

#[test]
fn all_states_that_wait_for_an_answer_have_a_timer() {
    let waits = |state| !matches!(state, State::Closed | State::Open { .. });
    for_all_pairs(|state, _, next, effects| {
        if waits(next) && !waits(state) {
            assert!(matches!(effects.timer, Timer::Connect | Timer::Close));
        } else if waits(next) {
            assert_eq!(effects.timer, Timer::Keep);
        }
        if waits(state) {
            assert_eq!(step(state, Input::Expired).0, State::Closed);
        }
    });
}

#[test]
fn all_ends_of_the_link_are_silent() {
    for_all_pairs(|_, input, next, effects| {
        if input == Input::LinkGone {
            assert_eq!((next, effects.say), (State::Closed, Say::Nothing));
        }
    });
}

#[test]
fn all_shut_directions_stay_shut() {
    for_all_pairs(|state, _, next, _| {
        if let (State::Open { ours: a, theirs: b }, State::Open { ours: c, theirs: d }) =
            (state, next)
        {
            assert!(c.contains(a) && d.contains(b));
        }
    });
}

#[test]
fn all_payload_goes_to_an_open_connection() {
    for_all_pairs(|state, input, next, effects| match effects.payload {
        Payload::Skip => {}
        Payload::Deliver => {
            assert!(matches!(state, State::Open { .. }) && input == Input::Rw);
            assert_eq!(state, next);
        }
        Payload::Discard => assert!(input == Input::Rw && state == next),
    });
}

#[test]
fn trap_04_connecting_anything_but_response_is_a_protocol_error() {
    for_all_pairs(|state, input, next, effects| {
        let is_attempt = matches!(state, State::Connecting { .. });
        let is_answer = matches!(input, Input::Response | Input::Rst | Input::Invalid);
        if is_attempt && is_packet(input) && !is_answer {
            assert_eq!(next, State::Closed);
            assert_eq!(effects.say, Say::Reset);
            assert_eq!(effects.tell, Tell::Closed(CloseReason::ProtocolError));
        }
    });
}

#[test]
fn trap_04_offered_says_nothing_before_response() {
    for_all_pairs(|state, input, next, effects| {
        if matches!(state, State::Offered { .. }) {
            match effects.say {
                Say::Nothing => {}
                Say::Response => assert_eq!(input, Input::Accept),
                Say::Reset => assert_eq!(next, State::Closed),
                Say::Request | Say::Shutdown(_) | Say::CreditUpdate => panic!("{effects:?}"),
            }
        }
    });
}

#[test]
fn draining_says_nothing_but_the_last_reset() {
    for_all_pairs(|state, _, next, effects| {
        let is_draining = matches!(state, State::Open { theirs, .. } if theirs.is_both());
        if is_draining && effects.say != Say::Nothing {
            assert_eq!((next, effects.say), (State::Closed, Say::Reset));
        }
    });
}

fn show(state: State) -> String {
    let bits = |of: Shutdown| match of.flags() {
        0 => "–",
        1 => "RCV",
        2 => "SEND",
        _ => "both",
    };
    match state {
        State::Open { ours, theirs } if !ours.is_none() || !theirs.is_none() => {
            format!("{} ({}, {})", state.name(), bits(ours), bits(theirs))
        }
        State::Offered { theirs } | State::Closing { theirs } if !theirs.is_none() => {
            format!("{} ({})", state.name(), bits(theirs))
        }
        State::Connecting { ours } if !ours.is_none() => {
            format!("connecting ({})", bits(ours))
        }
        State::Closed
        | State::Offered { .. }
        | State::Connecting { .. }
        | State::Open { .. }
        | State::Closing { .. } => String::from(state.name()),
    }
}

fn cell(state: State, input: Input) -> String {
    let (next, effects) = step(state, input);
    let mut parts = Vec::new();
    if next != state {
        parts.push(format!("**{}**", show(next)));
    }
    match effects.say {
        Say::Nothing => {}
        Say::Request => parts.push("REQUEST".into()),
        Say::Response => parts.push("RESPONSE".into()),
        Say::Reset => parts.push("RST".into()),
        Say::Shutdown(flags) => parts.push(format!("SHUTDOWN({})", flags.flags())),
        Say::CreditUpdate => parts.push("CREDIT_UPDATE".into()),
    }
    match effects.tell {
        Tell::Nothing => {}
        Tell::Offered => parts.push("tell: offered".into()),
        Tell::Connected => parts.push("tell: connected".into()),
        Tell::TheirsShutDown(flags) => parts.push(format!("tell: shut {}", flags.flags())),
        Tell::Closed(reason) => parts.push(format!("tell: {reason:?}")),
    }
    match effects.payload {
        Payload::Skip => {}
        Payload::Deliver => parts.push("deliver".into()),
        Payload::Discard => parts.push("discard".into()),
    }
    if effects.again {
        parts.push("then as closed".into());
    }
    if parts.is_empty() { "·".into() } else { parts.join(", ") }
}

/// A table with states as columns, or as rows.
fn table(states: &[(String, State)], inputs: &[(&str, Input)], states_are_rows: bool) -> String {
    let state_names: Vec<&str> = states.iter().map(|(name, _)| name.as_str()).collect();
    let input_names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
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
    let shutdown = |flags, unread| Input::Shutdown { flags, unread };
    let main = [
        State::Closed,
        State::Offered { theirs: none },
        State::Connecting { ours: none },
        State::Open { ours: none, theirs: none },
        State::Open { ours: none, theirs: Shutdown::BOTH },
        State::Closing { theirs: none },
    ]
    .map(|state| (String::from(state.name()), state));
    let rows = [
        ("REQUEST", Input::Request),
        ("REQUEST again", Input::RequestRepeated),
        ("RESPONSE", Input::Response),
        ("RST", Input::Rst),
        ("SHUTDOWN(RCV)", shutdown(Shutdown::RCV, false)),
        ("SHUTDOWN(SEND)", shutdown(Shutdown::SEND, false)),
        ("SHUTDOWN(both)", shutdown(Shutdown::BOTH, false)),
        ("SHUTDOWN(both), data unread", shutdown(Shutdown::BOTH, true)),
        ("RW", Input::Rw),
        ("RW beyond credit", Input::RwOverCredit),
        ("RW of wrong length", Input::Garbled),
        ("CREDIT_UPDATE", Input::CreditUpdate),
        ("CREDIT_REQUEST", Input::CreditRequest),
        ("INVALID", Input::Invalid),
        ("unknown op", Input::Unknown),
        ("*connect*", Input::Connect),
        ("*accept*", Input::Accept),
        ("*refuse*", Input::Refuse),
        ("*shut down SEND*", Input::ShutDown(Shutdown::SEND)),
        ("*drained*", Input::Drained),
        ("*close*", Input::Close),
        ("*reset*", Input::Reset),
        ("*timer*", Input::Expired),
        ("*link gone*", Input::LinkGone),
    ];
    let halves: Vec<(String, State)> = all_states()
        .into_iter()
        .filter(|state| matches!(state, State::Open { .. }))
        .map(|state| (show(state), state))
        .collect();
    let half_rows = [
        rows[3], rows[4], rows[5], rows[6], rows[7], rows[8], rows[12], rows[18], rows[19],
        rows[20],
    ];
    let intro = "# States of a connection\n\n\
        Printed from `crates/core/src/state.rs` by its tests; \
        `UPDATE_DOCS=1 cargo test -p vsock-core state` writes it anew.\n\n\
        A row is what happens: a packet from the peer, or *something on our side*. A cell says \
        the **next state** if it is another one, the packet to send, what our user is told, and \
        what becomes of payload. A dot: nothing at all.\n\n";
    let second = "\n## Open, by the directions that are shut\n\n\
        In brackets: shut by us, shut by the peer.\n\n";
    format!("{intro}{}{second}{}", table(&main, &rows, false), table(&halves, &half_rows, true))
}

#[test]
fn document_of_the_states_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/internals/state-machine.md");
    let wanted = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "run UPDATE_DOCS=1 cargo test -p vsock-core state");
}
