//! How much a front end may ask for: its requests cost the worker time that other guests miss.
//!
//! A message costs the control thread a little. An order of it to the worker interrupts that between two rounds, and a ring that stops
//! or starts is work for it. So a guest has a budget that comes back with time. A front end that has used it up is served again
//! when there is some left; one that boots, reboots or plugs memory never notices.

use std::time::{Duration, Instant};

use super::{Attachment, Change};

/// What a guest may use at once. A boot or reboot takes 100 to 300, 509 regions that are added one by one before the
/// rings run take 509.
const MOST: u32 = 2048;

/// In what time one comes back: 2000 in a second are 500 orders, which are about a percent of the worker's time.
const UNIT: Duration = Duration::from_micros(500);

/// One message.
const MESSAGE: u32 = 1;

/// One order to the worker.
const ORDER: u32 = 4;

/// The budget of one guest, whoever its front end is.
struct Budget {
    /// When all that was used has come back.
    full: Instant,
}

impl Budget {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    fn spend(&mut self, cost: u32, now: Instant) {
        self.full = self.full.max(now) + UNIT * cost;
    }

    /// How long until something is left; `None`: there is.
    fn pause(&self, now: Instant) -> Option<Duration> {
        let pause = self.full.saturating_duration_since(now + UNIT * MOST);
        (!pause.is_zero()).then_some(pause)
    }
}

/// An [`Attachment`] whose orders are counted.
pub(super) struct Metered {
    attachment: Box<dyn Attachment>,
    budget: Budget,
}

impl Metered {
    pub(super) fn new(attachment: Box<dyn Attachment>) -> Self {
        Self { attachment, budget: Budget::new(Instant::now()) }
    }

    /// See [`Attachment::apply`].
    pub(super) fn apply(&mut self, change: Change) {
        self.budget.spend(ORDER, Instant::now());
        self.attachment.apply(change);
    }

    /// See [`Attachment::stop_queue`].
    pub(super) fn stop_queue(&mut self, index: usize) -> u16 {
        self.budget.spend(ORDER, Instant::now());
        self.attachment.stop_queue(index)
    }

    /// A message is served. What it costs the worker is counted when it does.
    pub(super) fn count_message(&mut self) {
        self.budget.spend(MESSAGE, Instant::now());
    }

    /// How long front ends have to wait; `None`: they can be served.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.budget.pause(Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budget_is_used_up_and_comes_back_with_time() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        (0..MOST).for_each(|_| budget.spend(1, start));
        assert_eq!(budget.pause(start), None);
        budget.spend(ORDER, start);
        assert_eq!(budget.pause(start), Some(UNIT * ORDER));
        assert_eq!(budget.pause(start + UNIT * (ORDER - 1)), Some(UNIT));
        assert_eq!(budget.pause(start + UNIT * ORDER), None);
        // No more comes back than there was.
        let later = start + Duration::from_secs(3600);
        (0..MOST).for_each(|_| budget.spend(1, later));
        assert_eq!(budget.pause(later), None);
        budget.spend(1, later);
        assert_eq!(budget.pause(later), Some(UNIT));
    }
}
