//! The simulator: the real node of a whole cluster on a simulated world, from one seed.
//!
//! `network`, `disk`, `journal`, `view` and `time` are the world; `host` puts a node into it, `cluster` and
//! `course` let time pass. `faults` makes up a run from a seed, `outages` one of a
//! group that looks after itself (on `machine` and `services`), `workload` and `hostile` act in it, `scenario` plays one from a
//! text. `oracle`, `model` and `checks` say what is right, and share no code with what they judge. The harness is
//! itself proven: each deliberate bug of `core::flaw` must be caught.
//!
//! Nothing here reads a clock or the machine's randomness; the same seed is the same run everywhere.

mod campaign;
mod certifier;
mod checks;
mod cluster;
mod course;
mod disk;
mod doors;
mod faults;
mod host;
mod hostile;
mod journal;
mod machine;
mod model;
mod network;
mod oracle;
mod outages;
pub mod random;
pub mod scenario;
mod services;
mod time;
mod view;
pub mod what_if;
mod workload;

pub use campaign::{Failure, Options, Outcome, Report, run, run_seed};
pub use faults::{Kind, Profile};
