//! One decision about a connection, with few rules and with many: what it costs must not grow with the rules.

use vsock_core::admission::rules::{Action, Relation, Rule, Who, default_rules};
use vsock_core::admission::{Act, Admission, Attempt, FlowLimits, Party};
use vsock_core::{Cid, Port, SocketType};

use crate::{PACKETS, Path, broken};

/// Guests that the rules name, one after the other.
const GUESTS: u32 = 100;

/// Decisions about connections of guests to ports, each of which a rule of its own allows.
pub(crate) struct Decide {
    admission: Admission,
    rules: u32,
    next: u32,
}

impl Decide {
    pub(crate) fn new(rules: u32) -> Self {
        let rule = |number: u32| Rule {
            name: String::from("bench"),
            acts: vec![Act::Connect],
            from: Who::Guest(Cid(3 + number % GUESTS)),
            to: Who::Programs,
            relation: Relation::Any,
            ports: 1024 + number..=1024 + number,
            kind: None,
            action: Action::Allow(FlowLimits::default()),
        };
        let table = (0..rules).map(rule).chain(default_rules()).collect();
        Self { admission: Admission::new(table), rules, next: 0 }
    }
}

impl Path for Decide {
    fn step(&mut self) {
        for _ in 0..PACKETS {
            self.next = (self.next + 7) % self.rules;
            let cid = Cid(3 + self.next % GUESTS);
            let guest = Party::Guest { cid, groups: &[], is_leaving: false };
            let port = Port(1024 + self.next);
            let attempt = Attempt::connect(guest, Party::PROGRAM, port, SocketType::Stream);
            if std::hint::black_box(self.admission.decide(&attempt)).limits().is_err() {
                broken("refused");
            }
        }
    }
}
