//! The mesh and the join protocol over real sockets on 127.0.0.1. Nothing here waits by sleeping for a time that
//! ought to be enough: every step waits for an event, with a generous limit.

#![allow(clippy::disallowed_methods)] // tests live in real time

#[path = "../harness/careless.rs"]
mod careless;
mod hostile;
mod joins;
mod mesh;
mod support;
