//! Questions put to the real programs from their packages, on loopback: alive, frozen, stopped; and to impostors that say
//! nothing or rubbish. A program that is not installed is named and its test skipped.

#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

mod impostors;
mod programs;
mod rig;
mod together;
