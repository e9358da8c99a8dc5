//! What all processes that make load have in common, those of `bench/hostile` too: a clock, orders and answers, a guest's
//! way to its device and a program's way to its node.

pub mod clock;
pub mod joining;
pub mod orders;
pub mod programs;

/// What can go wrong in a role; the caller prints it and ends.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
