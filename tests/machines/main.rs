//! Original servers that are virtual machines: a real libvirtd on each host, real QEMU, the small image, and what goes wrong with them.
//!
//! They need root, Debian's libvirt and QEMU, and the image that `tools/image small` makes; they say so and are skipped otherwise.
//! Without hardware acceleration a guest boots in some seconds; so there are few of them, and each test does more than one thing.
#![cfg(feature = "libvirt")]
#![allow(clippy::disallowed_methods, reason = "tests live in real time")]

#[allow(dead_code, reason = "the tests of crashes use all of it")]
#[path = "../harness/disk.rs"]
mod disk;
mod faults;
#[allow(dead_code, reason = "the tests of recovery use all of it")]
#[path = "../recovery/group.rs"]
mod group;
mod life;
#[path = "../guests/owner.rs"]
mod owner;
#[allow(dead_code, reason = "the tests of the driver process use all of it")]
#[path = "../guests/rig.rs"]
mod rig;
mod room;
mod stage;
mod steps;
mod surroundings;
mod template;
mod together;

use rig as network;
use rig::wait_until;
