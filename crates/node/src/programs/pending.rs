//! Programs at which something has happened and whose turn has not come yet.
//!
//! What a program asks for costs system calls, and a program may ask as fast as it likes. So its requests are not carried
//! out as they are heard of: programs stand in line, each once, and a round serves as many of them as its time allows.

use std::collections::VecDeque;

use vsock_core::SecondaryMap;

use crate::reactor::{Owner, Readiness, SourceId};

/// Programs in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    queue: VecDeque<SourceId>,
    happened: SecondaryMap<Owner, Readiness>,
}

impl Pending {
    /// Something has happened at a descriptor.
    pub(crate) fn push(&mut self, ready: Readiness) {
        match self.happened.get_mut(ready.source) {
            Some(before) => before.merge(ready),
            None => {
                self.happened.insert(ready.source, ready);
                self.queue.push_back(ready.source);
            }
        }
    }

    /// The next program, and all that has happened at it.
    pub(crate) fn pop(&mut self) -> Option<Readiness> {
        loop {
            let id = self.queue.pop_front()?;
            if let Some(ready) = self.happened.remove(id) {
                return Some(ready);
            }
        }
    }

    /// Nobody stands in line.
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(number: u64) -> SourceId {
        SourceId::from_bits(1 << 32 | number).unwrap()
    }

    #[test]
    fn program_stands_in_line_once_with_all_that_has_happened() {
        let mut pending = Pending::default();
        for number in [1, 2, 1, 1] {
            pending.push(Readiness::readable(source(number)));
        }
        pending.push(Readiness {
            readable: false,
            hung_up: true,
            ..Readiness::readable(source(1))
        });
        let first = pending.pop().unwrap();
        assert!(first.source == source(1) && first.readable && first.hung_up);
        assert_eq!(pending.pop().map(|it| it.source), Some(source(2)));
        assert!(pending.pop().is_none() && pending.is_empty());
    }

    #[test]
    fn program_that_was_served_goes_to_the_end_of_the_line() {
        let mut pending = Pending::default();
        for number in [1, 2] {
            pending.push(Readiness::readable(source(number)));
        }
        let first = pending.pop().unwrap();
        pending.push(first);
        assert_eq!([(); 2].map(|()| pending.pop().unwrap().source), [source(2), source(1)]);
    }
}
