//! Who may begin what: one decision at every beginning, and the reasons of refusals.
//!
//! Connections begin between programs and guests in either direction, between two guests, and over
//! the node's link to itself. Datagrams are sent, programs bind ports, sockets start to listen. The
//! shell describes each of these as an [`Attempt`] and calls [`Admission::decide`], which looks at
//! three things in turn:
//!
//! 1. facts about both ends: somebody has this address, is not about to leave, and has said that
//!    it knows the socket type;
//! 2. the rules ([`rules`]): the first that matches decides;
//! 3. who would answer, if that is known here: a listener with room in its queue.
//!
//! A connection of the node to itself passes twice: [`Admission::decide`] where it is asked for, and
//! [`Admission::decide_answer`], which is the third step alone, where it is answered.
//!
//! A [`Decision`] allows the attempt, and names the rule and the limits of the flow, or it has the
//! [`Refusal`]. A failure after the decision, such as a queue that cannot take the connection, is a
//! refusal, too. [`Admission::refuse`] counts a refusal and returns a [`Refused`], which
//! [`Endpoint::refuse`](crate::Endpoint::refuse) requires. So each refusal has a reason and is
//! counted.

mod refusal;
pub mod rules;

use crate::address::{Cid, Port, SocketType};
use crate::ports::Listener;
use alloc::string::String;
use alloc::vec::Vec;
pub use refusal::{Refusal, RefusalCounts, SavedRefusals};
use rules::{Action, Compiled, Rule, RuleId};

/// A group of guests; [`Admission::group`] gives each name its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(u32);

/// What begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    /// A connection.
    Connect,
    /// A datagram.
    Send,
    /// A program takes a port.
    Bind,
    /// A program's socket takes connections.
    Listen,
}

/// What is known of a program on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Program {
    /// Whose it is, if the kernel tells.
    pub user: Option<u32>,
    /// It may bind ports below 1024.
    pub may_use_privileged: bool,
}

/// One end of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party<'a> {
    /// A program on this node.
    Program(Program),
    /// A guest of this node.
    Guest {
        /// Its CID.
        cid: Cid,
        /// Its groups.
        groups: &'a [GroupId],
        /// It is about to be removed.
        is_leaving: bool,
    },
    /// Whoever is behind the link by which a userspace guest reaches all others.
    Beyond,
    /// Nobody here has this CID.
    Nobody(Cid),
}

impl Party<'_> {
    /// A program of this node, of which nothing else is known: who it is does not matter when it is asked.
    pub const PROGRAM: Self = Self::Program(Program { user: None, may_use_privileged: false });

    const fn groups(&self) -> &[GroupId] {
        match self {
            Self::Guest { groups, .. } => groups,
            Self::Program(_) | Self::Beyond | Self::Nobody(_) => &[],
        }
    }

    const fn is_leaving(&self) -> bool {
        matches!(self, Self::Guest { is_leaving: true, .. })
    }

    /// Whether both are the same end.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Program(_), Self::Program(_)) => true,
            (Self::Guest { cid, .. }, Self::Guest { cid: other, .. }) => cid == other,
            (Self::Program(_) | Self::Guest { .. } | Self::Beyond | Self::Nobody(_), _) => false,
        }
    }

    /// A group that both are in.
    fn shared_group(&self, other: &Self) -> Option<GroupId> {
        self.groups().iter().find(|group| other.groups().contains(group)).copied()
    }
}

/// Who would answer at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answerer {
    /// Only the other side knows, and answers for itself.
    Unknown,
    /// A listener here.
    Listener(Listener),
    /// No listener, but perhaps a program on the hybrid socket of the guest that asks.
    Hybrid,
    /// A program that receives datagrams there.
    Receiver,
    /// Nobody.
    Nobody,
}

/// Who wants to begin what.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// What begins.
    pub act: Act,
    /// Who asks.
    pub from: Party<'a>,
    /// Who is asked. For `Bind` and `Listen`: whose address it is to be.
    pub to: Party<'a>,
    /// The port that is asked for.
    pub port: Port,
    /// The socket type.
    pub kind: SocketType,
    /// The side that is asked has said that it knows the socket type.
    pub is_kind_known: bool,
    /// Who would answer.
    pub answerer: Answerer,
}

impl<'a> Attempt<'a> {
    /// A connection to a side that knows every socket type and answers for itself.
    #[must_use]
    pub const fn connect(from: Party<'a>, to: Party<'a>, port: Port, kind: SocketType) -> Self {
        Self {
            act: Act::Connect,
            from,
            to,
            port,
            kind,
            is_kind_known: true,
            answerer: Answerer::Unknown,
        }
    }
}

/// What a flow may have once it has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowLimits {
    /// The largest receive buffer that its program may ask for.
    pub buffer: u32,
}

impl Default for FlowLimits {
    fn default() -> Self {
        Self { buffer: 16 << 20 }
    }
}

/// The answer to an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Decision {
    /// It may begin.
    Allow {
        /// The rule that says so.
        rule: RuleId,
        /// What it may have.
        limits: FlowLimits,
    },
    /// It may not.
    Refuse {
        /// Why.
        reason: Refusal,
        /// The rule that says so, if one does.
        rule: Option<RuleId>,
    },
}

impl Decision {
    /// The limits, if it may begin.
    ///
    /// # Errors
    /// The reason, if not.
    pub const fn limits(self) -> Result<FlowLimits, Refusal> {
        match self {
            Self::Allow { limits, .. } => Ok(limits),
            Self::Refuse { reason, .. } => Err(reason),
        }
    }
}

/// A refusal that has been counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Refused(Refusal);

impl Refused {
    /// Why.
    #[must_use]
    pub const fn reason(self) -> Refusal {
        self.0
    }
}

/// Which rule decides about two ends, and why, for people who ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Whether it may begin.
    pub is_allowed: bool,
    /// The name of the rule that decided; empty: none did.
    pub rule: String,
    /// A group that both are in.
    pub shared_group: Option<String>,
    /// Why not.
    pub refusal: Option<Refusal>,
}

/// Who may begin what on one node.
#[derive(Debug)]
pub struct Admission {
    rules: Compiled,
    /// The names of groups, by number. A name keeps its number; only the operator gives names, so
    /// there are few.
    groups: Vec<String>,
    counts: RefusalCounts,
}

impl Default for Admission {
    fn default() -> Self {
        Self::new(rules::default_rules())
    }
}

impl Admission {
    /// With these rules, the first that matches first.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { rules: Compiled::new(rules), groups: Vec::new(), counts: RefusalCounts::default() }
    }

    /// Replaces the rules. What has begun goes on.
    pub fn set_rules(&mut self, rules: Vec<Rule>) {
        self.rules = Compiled::new(rules);
    }

    /// The number of a group.
    pub fn group(&mut self, name: &str) -> GroupId {
        let place = self.groups.iter().position(|known| known == name).unwrap_or_else(|| {
            self.groups.push(name.into());
            self.groups.len() - 1
        });
        GroupId(u32::try_from(place).unwrap_or(u32::MAX))
    }

    /// The name of a group.
    #[must_use]
    pub fn group_name(&self, group: GroupId) -> &str {
        usize::try_from(group.0).ok().and_then(|at| self.groups.get(at)).map_or("", String::as_str)
    }

    /// Whether this may begin.
    pub fn decide(&self, attempt: &Attempt<'_>) -> Decision {
        if let Err(reason) = check_ends(attempt) {
            return Decision::Refuse { reason, rule: None };
        }
        let Some((id, rule)) = self.rules.first_match(attempt) else {
            return Decision::Refuse { reason: Refusal::NoRule, rule: None };
        };
        match rule.action {
            Action::Refuse(reason) => Decision::Refuse { reason, rule: Some(id) },
            Action::Allow(limits) => match check_answerer(attempt) {
                Ok(()) => Decision::Allow { rule: id, limits },
                Err(reason) => Decision::Refuse { reason, rule: None },
            },
        }
    }

    /// Whether somebody would take what a program of this node asks another for. That it may ask was
    /// decided when it did, and who it is is not known where it is answered. The answering side has
    /// the usual limits; those of a rule are the asking side's.
    ///
    /// # Errors
    /// Why nobody would.
    pub fn decide_answer(&self, attempt: &Attempt<'_>) -> Result<FlowLimits, Refusal> {
        check_answerer(attempt).map(|()| FlowLimits::default())
    }

    /// Counts a refusal.
    pub fn refuse(&mut self, reason: Refusal) -> Refused {
        self.counts.count(reason);
        Refused(reason)
    }

    /// Counts on from what a predecessor has counted.
    pub fn set_refusals(&mut self, counts: RefusalCounts) {
        self.counts = counts;
    }

    /// How many attempts were refused, by reason.
    #[must_use]
    pub const fn refusals(&self) -> &RefusalCounts {
        &self.counts
    }

    /// A rule in force.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<&Rule> {
        self.rules.get(id)
    }

    /// What would be decided about an attempt, and why.
    #[must_use]
    pub fn explain(&self, attempt: &Attempt<'_>) -> Explanation {
        let (is_allowed, rule, refusal) = match self.decide(attempt) {
            Decision::Allow { rule, .. } => (true, Some(rule), None),
            Decision::Refuse { rule, reason } => (false, rule, Some(reason)),
        };
        let shared = attempt.from.shared_group(&attempt.to);
        Explanation {
            is_allowed,
            rule: rule
                .and_then(|id| self.rule(id))
                .map(|rule| rule.name.clone())
                .unwrap_or_default(),
            shared_group: shared.map(|group| self.group_name(group).into()),
            refusal,
        }
    }
}

/// What follows from the ends alone, in the order in which Linux finds it out.
fn check_ends(attempt: &Attempt<'_>) -> Result<(), Refusal> {
    let Attempt { act, from, to, kind, is_kind_known, .. } = attempt;
    match act {
        Act::Connect | Act::Listen if *kind == SocketType::Datagram => {
            return Err(Refusal::NotConnectible);
        }
        Act::Bind if matches!(to, Party::Nobody(_)) => return Err(Refusal::NotLocal),
        Act::Connect if *to == Party::Nobody(Cid::HYPERVISOR) => return Err(Refusal::NoHypervisor),
        Act::Connect | Act::Listen | Act::Bind | Act::Send => {}
    }
    if from.is_leaving() || to.is_leaving() {
        return Err(Refusal::Leaving);
    }
    if !is_kind_known {
        return Err(Refusal::TypeNotKnown);
    }
    if matches!(to, Party::Nobody(_)) {
        return Err(Refusal::NoRoute);
    }
    Ok(())
}

/// Whether somebody here would take it.
fn check_answerer(attempt: &Attempt<'_>) -> Result<(), Refusal> {
    match attempt.answerer {
        Answerer::Unknown | Answerer::Receiver => Ok(()),
        Answerer::Listener(listener) if listener.kind != attempt.kind => Err(Refusal::ListenerType),
        Answerer::Listener(listener) if !listener.has_room() => Err(Refusal::QueueFull),
        Answerer::Listener(_) => Ok(()),
        Answerer::Hybrid if attempt.kind == SocketType::Stream => Ok(()),
        Answerer::Hybrid | Answerer::Nobody => Err(Refusal::NoListener),
    }
}

#[cfg(test)]
mod tests;
