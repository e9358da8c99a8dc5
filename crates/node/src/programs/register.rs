//! Which connection the socket of a program is, for those who ask beside it: by its cookie, while it lasts and a while after.
//!
//! A stream carries bytes and nothing else, so what its descriptor cannot tell (its port, how the connection ended) is
//! asked over another one. The key is SO_COOKIE of the program's socket: every holder of the descriptor can read it, the
//! kernel gives each socket its own and never gives it again. A program may name any number, so it counts only beside
//! its uid: a false one can only hurt programs of the same user.

use std::collections::{HashMap, VecDeque};

use rustix::io::Errno;
use vsock_core::CloseReason;
use vsock_core::saved::{Unfit, check};

use crate::flows::{Ended, FlowId, Flows};
use crate::host::program::Socket;

/// How many connections that came to a good end are remembered, and how many that were lost: of a guest with many
/// connections, which go all at once, each program shall hear.
const REMEMBERED: usize = 1024;
const REMEMBERED_LOST: usize = 65_536;

/// What a program is told that asks how its connection ended: ESHUTDOWN stands for a good end, of which AF_VSOCK has no
/// error.
pub(super) fn end_errno(reason: CloseReason) -> Errno {
    match reason {
        CloseReason::Done | CloseReason::Reset | CloseReason::Refused => Errno::SHUTDOWN,
        CloseReason::LinkGone
        | CloseReason::OverCredit
        | CloseReason::ProtocolError
        | CloseReason::TimedOut => Errno::CONNRESET,
    }
}

/// The connections of all programs' sockets whose cookie is known.
#[derive(Debug, Default)]
pub(super) struct Register {
    open: HashMap<Socket, FlowId>,
    ended: HashMap<Socket, Ended>,
    /// The keys of `ended`, the oldest first: of good ends, and of lost connections.
    well: VecDeque<Socket>,
    lost: VecDeque<Socket>,
}

impl Register {
    /// A socket has become the flow with this entry.
    pub(super) fn opened(&mut self, socket: Socket, token: FlowId) {
        if socket.cookie != 0 {
            self.open.insert(socket, token);
        }
    }

    /// A socket is no flow, as the attempt came to nothing: it may be one later.
    pub(super) fn forget(&mut self, socket: Socket) {
        self.open.remove(&socket);
    }

    /// A socket's flow is over.
    pub(super) fn closed(&mut self, socket: Socket, ended: Ended) {
        if self.open.remove(&socket).is_some() {
            self.remember(socket, ended);
        }
    }

    fn remember(&mut self, socket: Socket, ended: Ended) {
        if self.ended.insert(socket, ended).is_some() {
            return;
        }
        let (order, most) = match end_errno(ended.reason) {
            Errno::SHUTDOWN => (&mut self.well, REMEMBERED),
            _ => (&mut self.lost, REMEMBERED_LOST),
        };
        order.push_back(socket);
        if order.len() > most
            && let Some(oldest) = order.pop_front()
        {
            self.ended.remove(&oldest);
        }
    }

    /// The flow of a socket.
    pub(super) fn flow(&self, socket: Socket) -> Option<FlowId> {
        self.open.get(&socket).copied()
    }

    /// How the flow of a socket ended, if it is one of the last.
    pub(super) fn ended(&self, socket: Socket) -> Option<Ended> {
        self.ended.get(&socket).copied()
    }
}

/// How the last connections ended, as plain data: for each kind of end the oldest first.
pub type SavedEnds = Vec<(Socket, Ended)>;

impl Register {
    /// How the last connections ended, as plain data. Those that are open are known by their flows.
    pub(super) fn save(&self) -> SavedEnds {
        let known = |socket: &Socket| Some((*socket, *self.ended.get(socket)?));
        self.well.iter().chain(&self.lost).filter_map(known).collect()
    }

    /// From plain data, and from the flows that are there.
    pub(super) fn restore(saved: SavedEnds, flows: &Flows) -> Result<Self, Unfit> {
        let mut register = Self::default();
        check(saved.len() <= REMEMBERED + REMEMBERED_LOST, Unfit::TooMany)?;
        for (socket, ended) in saved {
            register.remember(socket, ended);
        }
        for (id, flow) in flows.iter() {
            register.opened(flow.holdings.socket, id);
        }
        Ok(register)
    }
}

#[cfg(test)]
mod tests {
    use vsock_core::{Address, Cid, Port};

    use super::*;

    const NO_ADDRESS: Address = Address { cid: Cid::ANY, port: Port::ANY };

    fn socket(cookie: u64) -> Socket {
        Socket { uid: 1000, cookie }
    }

    fn id(number: u64) -> FlowId {
        FlowId::from_bits(number).unwrap()
    }

    fn ended(reason: CloseReason) -> Ended {
        Ended { ours: NO_ADDRESS, theirs: NO_ADDRESS, reason }
    }

    #[test]
    fn flow_is_found_by_the_cookie_and_the_user() {
        let mut sockets = Register::default();
        sockets.opened(socket(7), id(3));
        assert_eq!(sockets.flow(socket(7)), Some(id(3)));
        assert_eq!(sockets.flow(Socket { uid: 0, cookie: 7 }), None);
        assert_eq!(sockets.flow(Socket { uid: 1001, cookie: 7 }), None);
        // Another user that names the same cookie gets its own flow, and takes nothing away.
        sockets.opened(Socket { uid: 1001, cookie: 7 }, id(4));
        assert_eq!(sockets.flow(socket(7)), Some(id(3)));
        sockets.closed(Socket { uid: 1001, cookie: 7 }, ended(CloseReason::Done));
        assert_eq!(sockets.flow(socket(7)), Some(id(3)));
    }

    #[test]
    fn socket_without_a_cookie_is_never_found() {
        let mut sockets = Register::default();
        sockets.opened(socket(0), id(3));
        assert_eq!((sockets.flow(socket(0)), sockets.open.len()), (None, 0));
    }

    #[test]
    fn end_is_remembered_for_the_last_of_many() {
        let mut sockets = Register::default();
        for cookie in 1..=REMEMBERED as u64 + 1 {
            sockets.opened(socket(cookie), id(1));
            sockets.closed(socket(cookie), ended(CloseReason::Done));
        }
        assert_eq!(sockets.open.len(), 0);
        assert_eq!(sockets.ended(socket(1)), None);
        assert_eq!(
            sockets.ended(socket(2)).map(|end| end_errno(end.reason)),
            Some(Errno::SHUTDOWN)
        );
        assert_eq!(sockets.well.len(), sockets.ended.len());
    }

    #[test]
    fn lost_connections_are_remembered_beside_many_good_ends() {
        let mut sockets = Register::default();
        let most = REMEMBERED_LOST as u64;
        for cookie in 1..=most + 1 {
            sockets.opened(socket(cookie), id(1));
            sockets.closed(socket(cookie), ended(CloseReason::LinkGone));
        }
        for cookie in most + 2..=most + 2 + 2 * REMEMBERED as u64 {
            sockets.opened(socket(cookie), id(1));
            sockets.closed(socket(cookie), ended(CloseReason::Done));
        }
        assert_eq!(sockets.ended(socket(1)), None);
        assert_eq!(
            sockets.ended(socket(2)).map(|end| end_errno(end.reason)),
            Some(Errno::CONNRESET)
        );
        assert_eq!(sockets.ended.len(), REMEMBERED + REMEMBERED_LOST);
    }

    #[test]
    fn ends_are_known_to_a_successor_in_the_order_in_which_they_came() {
        let mut before = Register::default();
        for (cookie, reason) in
            [(3, CloseReason::Done), (2, CloseReason::LinkGone), (1, CloseReason::Done)]
        {
            before.opened(socket(cookie), id(cookie));
            before.closed(socket(cookie), ended(reason));
        }
        let after = Register::restore(before.save(), &Flows::new()).unwrap();
        assert_eq!((&after.well, &after.lost), (&before.well, &before.lost));
        assert_eq!(after.ended, before.ended);
        let many = vec![before.save()[0]; REMEMBERED + REMEMBERED_LOST + 1];
        assert!(Register::restore(many, &Flows::new()).is_err());
    }

    #[test]
    fn attempt_that_came_to_nothing_has_no_end() {
        let mut sockets = Register::default();
        sockets.opened(socket(5), id(1));
        sockets.forget(socket(5));
        assert_eq!((sockets.flow(socket(5)), sockets.ended(socket(5))), (None, None));
    }
}
