//! Orders on standard input, answers on standard output.

use std::collections::VecDeque;
use std::io::{self, Read, Write};

use crate::Result;

/// The words of one order.
pub struct Order(Vec<String>);

impl Order {
    /// Splits a line.
    pub fn parse(line: &str) -> Self {
        Self(line.split_whitespace().map(str::to_owned).collect())
    }

    /// The first word.
    pub fn verb(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// A word by its place; the verb is word 0.
    pub fn word(&self, index: usize) -> Result<&str> {
        let word = self.0.get(index).map(String::as_str);
        word.ok_or_else(|| format!("{}: word {index} is missing", self.verb()).into())
    }

    /// All words from a place on.
    pub fn rest(&self, index: usize) -> Vec<&str> {
        self.0.iter().skip(index).map(String::as_str).collect()
    }

    /// A number by its place.
    pub fn number<T: std::str::FromStr>(&self, index: usize) -> Result<T> {
        let word = self.word(index)?;
        word.parse().map_err(|_| format!("{}: {word:?} is not such a number", self.verb()).into())
    }
}

/// Prints one answer: the members of a JSON object.
pub fn answer(members: &str) {
    let mut out = io::stdout().lock();
    // The caller is gone: so are we, with the end of our input.
    let _ = writeln!(out, "{{{members}}}").and_then(|()| out.flush());
}

/// Prints that an order failed.
pub fn answer_error(error: &dyn std::fmt::Display) {
    let text = error.to_string().replace(['"', '\\', '\n'], "'");
    answer(&format!("\"error\": \"{text}\""));
}

/// Lines out of standard input that is looked at when it is readable.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
    whole: VecDeque<Order>,
}

impl Lines {
    /// Takes in what is there, waiting if it is nothing; false at the end.
    pub fn read(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let n = io::stdin().lock().read(&mut bytes)?;
        for byte in &bytes[..n] {
            if *byte == b'\n' {
                self.whole.push_back(Order::parse(&String::from_utf8_lossy(&self.partial)));
                self.partial.clear();
            } else {
                self.partial.push(*byte);
            }
        }
        Ok(n > 0)
    }
}

impl Iterator for Lines {
    type Item = Order;

    /// The next whole order.
    fn next(&mut self) -> Option<Order> {
        self.whole.pop_front()
    }
}
