//! The decision chain: every order of events of small groups, long runs of a larger one, and what survives what.
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod group;
mod long_run;
mod model;
mod model_checks;
mod survival;
