//! The rules: a table that says who may begin what with whom, on which ports and with which socket
//! types. The first rule that matches decides.
//!
//! Rules are data: a configuration can be compiled into them, and an explanation can name them.
//! [`Compiled`] is an index of them, with which a decision costs about the same with ten rules and
//! with ten thousand:
//!
//! - Each party fits a few descriptions ([`Who`]): anyone, a guest, this guest, one of that group, a
//!   program, one of that user.
//!   Rules are filed under the two descriptions that they name and under the relation that they
//!   require. A decision looks only into files whose descriptions fit.
//! - Rules in one file differ in ports and types only. The file cuts the range of ports where a
//!   rule begins or ends, and keeps the first rule of each type for each piece: a binary search.
//!
//! The first match is the smallest number that any of these files gives.

use super::{Act, Attempt, FlowLimits, GroupId, Party, Program, Refusal};
use crate::address::{Cid, Port, SocketType};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

/// The place of a rule in the table, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// Whom a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Who {
    /// Anyone.
    Anyone,
    /// Programs on this node.
    Programs,
    /// Programs on this node that may not bind ports below 1024.
    UnprivilegedPrograms,
    /// Programs of one user on this node.
    User(u32),
    /// Guests of this node.
    Guests,
    /// One guest.
    Guest(Cid),
    /// Guests in a group.
    Group(GroupId),
}

/// How the two ends have to be related.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Relation {
    /// In no way.
    Any,
    /// Both are the same.
    Same,
    /// They share a group.
    SharedGroup,
}

/// What a rule says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It may begin, with these limits.
    Allow(FlowLimits),
    /// It may not, and this is the reason.
    Refuse(Refusal),
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, for people.
    pub name: String,
    /// What begins.
    pub acts: Vec<Act>,
    /// Who asks.
    pub from: Who,
    /// Who is asked.
    pub to: Who,
    /// How they are related.
    pub relation: Relation,
    /// The ports asked for.
    pub ports: RangeInclusive<u32>,
    /// The socket type; `None`: any.
    pub kind: Option<SocketType>,
    /// What then.
    pub action: Action,
}

/// All ports.
pub const ALL_PORTS: RangeInclusive<u32> = 0..=u32::MAX;

const ALL_ACTS: [Act; 4] = [Act::Connect, Act::Send, Act::Bind, Act::Listen];
const ALL_KINDS: [SocketType; 3] =
    [SocketType::Stream, SocketType::SeqPacket, SocketType::Datagram];

/// The rules of a node that is not told others: each party may connect to itself, programs and
/// guests may connect to each other, two guests may if they share a group, and ports below 1024
/// need a right.
#[must_use]
pub fn default_rules() -> Vec<Rule> {
    let allow = Action::Allow(FlowLimits::default());
    let talk = [Act::Connect, Act::Send];
    let rule = |name: &str, acts: &[Act], from, to, relation, action| Rule {
        name: name.into(),
        acts: acts.into(),
        from,
        to,
        relation,
        ports: ALL_PORTS,
        kind: None,
        action,
    };
    let privileged = 0..=Port::FIRST_UNPRIVILEGED.0 - 1;
    let refuse = Action::Refuse;
    let (any, programs, guests) = (Who::Anyone, Who::Programs, Who::Guests);
    alloc::vec![
        Rule {
            ports: privileged,
            ..rule(
                "privileged",
                &[Act::Bind],
                Who::UnprivilegedPrograms,
                any,
                Relation::Any,
                refuse(Refusal::PrivilegedPort),
            )
        },
        rule("port", &[Act::Bind, Act::Listen], programs, any, Relation::Any, allow),
        rule("self", &talk, any, any, Relation::Same, allow),
        rule("host", &talk, programs, any, Relation::Any, allow),
        rule("host", &talk, any, programs, Relation::Any, allow),
        rule("group", &talk, guests, guests, Relation::SharedGroup, allow),
        rule("default", &talk, guests, guests, Relation::Any, refuse(Refusal::NoSharedGroup)),
    ]
}

/// Everything that a rule may call this party.
#[inline(always)] // each in its loop, wherever the compiler puts the others
fn descriptions<'a>(party: &'a Party<'_>) -> impl Iterator<Item = Who> + 'a {
    let (class, own, right) = match *party {
        Party::Program(Program { user, may_use_privileged }) => {
            let right = if may_use_privileged { None } else { Some(Who::UnprivilegedPrograms) };
            (Some(Who::Programs), user.map(Who::User), right)
        }
        Party::Guest { cid, .. } => (Some(Who::Guests), Some(Who::Guest(cid)), None),
        Party::Beyond | Party::Nobody(_) => (None, None, None),
    };
    let groups = party.groups().iter().map(|group| Who::Group(*group));
    [Some(Who::Anyone), class, own, right].into_iter().flatten().chain(groups)
}

#[inline(always)]
fn relations(from: &Party<'_>, to: &Party<'_>) -> impl Iterator<Item = Relation> + use<> {
    let same = from.is(to).then_some(Relation::Same);
    let shared = from.shared_group(to).map(|_| Relation::SharedGroup);
    core::iter::once(Relation::Any).chain(same).chain(shared)
}

/// From this port on, the first rule for each socket type.
type Piece = (u32, [Option<RuleId>; ALL_KINDS.len()]);

/// Rules that differ in ports and types only: pieces of the range of ports, in order.
#[derive(Clone, Debug, Default)]
struct File(Vec<Piece>);

impl File {
    fn new(table: &[Rule], rules: &[RuleId]) -> Self {
        let rule = |id: RuleId| table.get(id.0 as usize);
        // Where each rule begins, and where it is over, which may be behind the last port.
        let mut edges: Vec<(u64, bool, RuleId)> = Vec::new();
        for &id in rules {
            let Some(rule) = rule(id).filter(|rule| !rule.ports.is_empty()) else { continue };
            edges.push((u64::from(*rule.ports.start()), true, id));
            edges.push((u64::from(*rule.ports.end()) + 1, false, id));
        }
        edges.sort_unstable();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut in_force: [BTreeSet<RuleId>; ALL_KINDS.len()] = Default::default();
        for (at, begins, id) in edges {
            let wanted = rule(id).and_then(|rule| rule.kind);
            for (kind, rules) in ALL_KINDS.iter().zip(&mut in_force) {
                if wanted.is_none_or(|wanted| wanted == *kind) {
                    if begins {
                        rules.insert(id)
                    } else {
                        rules.remove(&id)
                    };
                }
            }
            let Ok(at) = u32::try_from(at) else { continue };
            let first = core::array::from_fn(|kind| in_force[kind].first().copied());
            match pieces.last_mut() {
                Some(last) if last.0 == at => last.1 = first,
                Some(_) | None => pieces.push((at, first)),
            }
        }
        Self(pieces)
    }

    fn first(&self, port: Port, kind: SocketType) -> Option<RuleId> {
        let behind = self.0.partition_point(|(start, _)| *start <= port.0);
        let (_, first) = self.0.get(behind.checked_sub(1)?)?;
        ALL_KINDS.iter().zip(first).find(|(it, _)| **it == kind).and_then(|(_, rule)| *rule)
    }
}

/// What files are kept under, below who asks.
type To = (Who, Relation);

/// Rules with an index.
#[derive(Clone, Debug)]
pub struct Compiled {
    table: Vec<Rule>,
    files: BTreeMap<(Act, Who), BTreeMap<To, File>>,
}

impl Compiled {
    /// Makes the index of these rules.
    #[must_use]
    pub fn new(table: Vec<Rule>) -> Self {
        let mut filed: BTreeMap<(Act, Who), BTreeMap<To, Vec<RuleId>>> = BTreeMap::new();
        for (number, rule) in (0u32..).zip(&table) {
            for act in ALL_ACTS.into_iter().filter(|act| rule.acts.contains(act)) {
                let from = filed.entry((act, rule.from)).or_default();
                from.entry((rule.to, rule.relation)).or_default().push(RuleId(number));
            }
        }
        let files = filed
            .into_iter()
            .map(|(from, to)| {
                let to = to.into_iter().map(|(to, rules)| (to, File::new(&table, &rules)));
                (from, to.collect())
            })
            .collect();
        Self { table, files }
    }

    /// The first rule that matches.
    #[must_use]
    #[inline] // with its iterators, wherever the compiler puts those that others use as well
    pub fn first_match(&self, attempt: &Attempt<'_>) -> Option<(RuleId, &Rule)> {
        let Attempt { act, from, to, port, kind, .. } = attempt;
        let mut first: Option<RuleId> = None;
        for files in descriptions(from).filter_map(|who| self.files.get(&(*act, who))) {
            for relation in relations(from, to) {
                let fit = descriptions(to).filter_map(|who| files.get(&(who, relation)));
                let found = fit.filter_map(|file| file.first(*port, *kind)).min();
                first = [first, found].into_iter().flatten().min();
            }
        }
        first.and_then(|id| Some((id, self.get(id)?)))
    }

    /// A rule by its number.
    #[must_use]
    pub fn get(&self, id: RuleId) -> Option<&Rule> {
        self.table.get(usize::try_from(id.0).ok()?)
    }
}
