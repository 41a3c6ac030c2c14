//! The simulated view: a projection that lags behind the log and can always be thrown away.
//!
//! What is written to it becomes durable in batches, each with the position it belongs to, as with the real one.

use std::collections::BTreeMap;

use crate::core::id::FileName;
use crate::core::merge::{Files, Register, Written};
use crate::core::version::Vector;

#[derive(Debug, Default)]
pub struct View {
    registers: BTreeMap<(FileName, String), Register>,
    seen: Vector,
    waiting: Vec<(Vec<Written>, Vector)>,
}

impl View {
    /// Takes registers note of; returns whether a flush should be planned.
    pub fn project(&mut self, written: Vec<Written>, seen: Vector) -> bool {
        self.waiting.push((written, seen));
        self.waiting.len() == 1
    }

    /// Makes everything projected so far durable.
    pub fn flush(&mut self) {
        for (written, seen) in self.waiting.drain(..) {
            for Written { file, key, register } in written {
                self.registers.insert((file, key), register);
            }
            self.seen = seen;
        }
    }

    /// What was not durable is gone.
    pub fn crash(&mut self) {
        self.waiting.clear();
    }

    /// Somebody deleted it.
    pub fn lose(&mut self) {
        *self = Self::default();
    }

    /// The state that the view holds.
    pub fn files(&self) -> Files {
        let written = self.registers.iter().map(|((file, key), register)| Written {
            file: file.clone(),
            key: key.clone(),
            register: register.clone(),
        });
        Files::restore(written, self.seen.clone())
    }

    pub fn seen(&self) -> &Vector {
        &self.seen
    }

    /// Starts anew from a whole state.
    pub fn rebuild(&mut self, files: &Files) {
        self.lose();
        for (name, file) in files.iter() {
            for (key, register) in file.registers() {
                self.registers.insert((name.clone(), key.to_owned()), register.clone());
            }
        }
        self.seen = files.seen().clone();
    }
}
