//! Programs at which something has happened and whose turn has not come yet.
//!
//! What a program asks for costs system calls, and a program may ask as fast as it likes, on as many sockets as it may have. So
//! its requests are not carried out as they are heard of: sockets stand in line, each once, and those whose turn it is are
//! served as long as the time goes. Users have turns, of a user each of its processes, of a process each of its sockets:
//! who opens more sockets is not served more often.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use vsock_core::SecondaryMap;

use crate::reactor::{Owner, Readiness, SourceId};
use vsock_virtio::sys::PeerCredentials;

/// Sockets that stand in line.
trait Line: Default {
    /// The next one.
    fn pop(&mut self) -> Option<SourceId>;

    /// Nobody stands in it.
    fn is_empty(&self) -> bool;
}

impl Line for VecDeque<SourceId> {
    fn pop(&mut self) -> Option<SourceId> {
        self.pop_front()
    }

    fn is_empty(&self) -> bool {
        self.is_empty()
    }
}

/// Lines that have turns, by whose they are.
#[derive(Debug)]
struct Turns<K, L> {
    order: VecDeque<K>,
    lines: HashMap<K, L>,
}

impl<K, L> Default for Turns<K, L> {
    fn default() -> Self {
        Self { order: VecDeque::new(), lines: HashMap::new() }
    }
}

impl<K: Copy + Eq + Hash, L: Line> Turns<K, L> {
    /// The line of this one, in which somebody will stand.
    fn line(&mut self, whose: K) -> &mut L {
        self.lines.entry(whose).or_insert_with(|| {
            self.order.push_back(whose);
            L::default()
        })
    }
}

impl<K: Copy + Eq + Hash, L: Line> Line for Turns<K, L> {
    fn pop(&mut self) -> Option<SourceId> {
        let whose = self.order.pop_front()?;
        let line = self.lines.get_mut(&whose)?;
        let next = line.pop();
        if line.is_empty() {
            self.lines.remove(&whose);
        } else {
            self.order.push_back(whose);
        }
        next
    }

    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

/// A process, or a socket of one that has no number here: it is in another pid namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Process {
    Seen(u32),
    Unseen(SourceId),
}

/// Who asks: a program, or, before it is known, whoever connects to a socket of ours.
pub(super) type Asker = Option<PeerCredentials>;

/// Programs that wait for their turn.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// By user, and by process.
    turns: Turns<Option<u32>, Turns<Process, VecDeque<SourceId>>>,
    happened: SecondaryMap<Owner, Readiness>,
}

impl Pending {
    /// Something has happened at a descriptor.
    pub(super) fn push(&mut self, asker: Asker, ready: Readiness) {
        match self.happened.get_mut(ready.source) {
            Some(before) => before.merge(ready),
            None => {
                self.happened.insert(ready.source, ready);
                let process = match asker.map(|it| it.pid) {
                    Some(pid) if pid != 0 => Process::Seen(pid),
                    Some(_) | None => Process::Unseen(ready.source),
                };
                self.turns.line(asker.map(|it| it.uid)).line(process).push_back(ready.source);
            }
        }
    }

    /// The next program, and all that has happened at it.
    pub(crate) fn pop(&mut self) -> Option<Readiness> {
        loop {
            let id = self.turns.pop()?;
            if let Some(ready) = self.happened.remove(id) {
                return Some(ready);
            }
        }
    }

    /// Whether something has happened at a descriptor, and its turn has not come yet.
    pub(super) fn has(&self, id: SourceId) -> bool {
        self.happened.get(id).is_some()
    }

    /// Nobody stands in line.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u64) -> SourceId {
        SourceId::from_bits(1 << 32 | number).unwrap()
    }

    fn process(uid: u32, pid: u32) -> Asker {
        Some(PeerCredentials { pid, uid, gid: 0 })
    }

    /// Whose turns come, by the numbers of their sockets, until nobody waits.
    fn order(pending: &mut Pending) -> Vec<u64> {
        let sources = std::iter::from_fn(|| pending.pop());
        sources.map(|ready| ready.source.to_bits() & 0xffff_ffff).collect()
    }

    #[test]
    fn socket_stands_in_line_once_with_all_that_has_happened() {
        let mut pending = Pending::default();
        for number in [1, 2, 1, 1] {
            pending.push(process(0, 7), Readiness::readable(source(number)));
        }
        let hung_up =
            Readiness { readable: false, hung_up: true, ..Readiness::readable(source(1)) };
        pending.push(process(0, 7), hung_up);
        let first = pending.pop().unwrap();
        assert!(first.source == source(1) && first.readable && first.hung_up);
        assert_eq!(pending.pop().map(|it| it.source), Some(source(2)));
        assert!(pending.pop().is_none() && pending.is_empty());
    }

    #[test]
    fn socket_that_was_served_goes_to_the_end_of_the_line() {
        let mut pending = Pending::default();
        for number in [1, 2] {
            pending.push(process(0, 7), Readiness::readable(source(number)));
        }
        let first = pending.pop().unwrap();
        pending.push(process(0, 7), first);
        assert_eq!(order(&mut pending), [2, 1]);
    }

    #[test]
    fn users_have_turns_and_of_each_its_processes_however_many_sockets_they_have() {
        let mut pending = Pending::default();
        for number in 0..4 {
            pending.push(process(0, 7), Readiness::readable(source(number)));
        }
        pending.push(process(0, 8), Readiness::readable(source(10)));
        for number in 20..22 {
            pending.push(process(1000, 9), Readiness::readable(source(number)));
        }
        pending.push(None, Readiness::readable(source(30)));
        assert_eq!(order(&mut pending), [0, 20, 30, 10, 21, 1, 2, 3]);
        // Of processes that cannot be seen nobody knows which sockets are whose.
        for (pid, number) in [(7, 0), (7, 1), (0, 40), (0, 41)] {
            pending.push(process(0, pid), Readiness::readable(source(number)));
        }
        assert_eq!(order(&mut pending), [0, 40, 41, 1]);
        assert!(pending.is_empty() && pending.turns.lines.is_empty());
    }
}
