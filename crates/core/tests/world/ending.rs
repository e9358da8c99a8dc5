//! What endpoints tell their users, and the end of a schedule.

use super::{MANY, RING, Side, User, World};
use std::time::Duration;
use vsock_core::{CloseReason, Event, Refusal, Shutdown};

impl World {
    /// What endpoints tell their users.
    pub(super) fn hear(&mut self) {
        for at in 0..2 {
            while let Some(event) = self.sides[at].endpoint.next_event() {
                self.hear_one(at, event);
            }
        }
    }

    fn hear_one(&mut self, at: usize, event: Event) {
        let side = &mut self.sides[at];
        match event {
            Event::Offered { id, key, kind } => match id.to_bits() % 16 {
                7 => {
                    let refused = self.admission.refuse(Refusal::NoListener);
                    side.endpoint.refuse(id, refused);
                }
                11 => {} // nobody answers: the offer times out
                _ => {
                    side.endpoint.accept(id);
                    self.add_user(at, id, key, kind, true);
                }
            },
            Event::Connected { id } => side.users.get_mut(&id).unwrap().is_connected = true,
            Event::Writable { id } => {
                side.users.get_mut(&id).unwrap().is_waiting = false;
                self.send(at, id);
            }
            Event::TheirsShutDown { id, flags } => {
                let user = side.users.get_mut(&id).unwrap();
                user.theirs = flags;
                if flags.contains(Shutdown::SEND) {
                    user.check_complete(&self.sent);
                }
                if flags.contains(Shutdown::RCV) {
                    user.to_send = 0;
                }
            }
            Event::Closed { id, reason } => {
                // An offer that nobody answered has no user.
                let Some(user) = side.users.remove(&id) else { return };
                // An attempt with a smaller buffer may be served by the answer to an earlier one.
                let is_over = reason == CloseReason::OverCredit;
                assert!(!is_over || (self.is_resized && self.has_few_ports), "{user:?}");
                let is_broken = reason == CloseReason::ProtocolError;
                assert!(!is_broken || self.has_few_ports, "{user:?}");
                let name = match reason {
                    CloseReason::Refused => "refused",
                    CloseReason::TimedOut => "timed out",
                    CloseReason::ProtocolError => "protocol error",
                    CloseReason::Reset => "reset",
                    CloseReason::Done => "done",
                    CloseReason::OverCredit => "over credit",
                    CloseReason::LinkGone => "link gone",
                };
                *self.reasons.entry(name).or_default() += 1;
                if reason == CloseReason::Done && user.ours.is_none() {
                    user.check_complete(&self.sent);
                }
            }
        }
    }

    /// Everybody reads and sends until nothing moves any more; time passes meanwhile.
    fn run(&mut self, seconds: u64) {
        for _ in 0..seconds * 4 {
            for round in 0..MANY {
                for at in 0..2 {
                    let ids: Vec<_> = self.sides[at].users.keys().copied().collect();
                    for id in ids {
                        self.read(at, id, usize::MAX);
                        if !self.sides[at].users.get(&id).is_some_and(|user| user.is_waiting) {
                            self.send(at, id);
                        }
                        self.hear();
                    }
                    self.speak(at);
                    self.deliver(at, 2 * RING);
                    self.hear();
                }
                if self.is_quiet() {
                    break;
                }
                assert!(round < MANY - 1, "packets go round and round: {}", self.describe());
            }
            self.pass_time(Duration::from_millis(250));
            self.hear();
        }
    }

    fn describe(&self) -> String {
        let side =
            |side: &Side| format!("{:?}\n{:?}\n{:?}\n", side.users, side.inbound, side.outbound);
        self.sides.iter().map(side).collect()
    }

    fn is_quiet(&self) -> bool {
        let is_quiet = |side: &Side| {
            let has_read = |user: &User| user.unread.is_empty();
            let can_send = |user: &User| user.to_send > 0 && !user.is_waiting && user.is_connected;
            !side.endpoint.has_packet()
                && side.inbound.is_empty()
                && side.outbound.is_empty()
                && !side.users.values().any(can_send)
                && side.users.values().all(has_read)
        };
        self.sides.iter().all(is_quiet)
    }

    /// The schedule is over: whoever waits must get on, and then everything must end.
    pub(crate) fn finish(&mut self) {
        self.run(40);
        for side in &self.sides {
            for info in side.endpoint.connections() {
                assert!(!info.is_stalled, "waits for ever: {info:?}");
            }
            for user in side.users.values() {
                assert_eq!(user.to_send, 0, "could not be sent: {user:?}");
                assert!(user.is_connected, "still connecting: {user:?}");
            }
        }
        for at in 0..2 {
            for id in self.sides[at].users.keys().copied().collect::<Vec<_>>() {
                self.close(at, id, 0);
            }
            self.hear();
        }
        self.run(80);
        let is_strict = !self.has_few_ports;
        for side in &mut self.sides {
            let stats = side.endpoint.stats();
            assert_eq!(stats.connections, 0);
            assert!(side.users.is_empty(), "{:?}", side.users);
            assert!(!is_strict || stats.impossible_credit + stats.forgotten == 0, "{stats:?}");
        }
        if let Some(relay) = &self.relay {
            let stats = relay.stats();
            assert_eq!((stats.flows, stats.over_packets), (0, 0));
            let broken = stats.over_credit + stats.protocol_errors + stats.impossible_credit;
            assert!(!is_strict || broken + stats.forgotten == 0, "{stats:?}");
        }
    }
}
