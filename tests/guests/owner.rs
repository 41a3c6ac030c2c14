//! What a daemon does with a driver, in a process of its own: orders come in line by line, what is reported goes out.

use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use p2pdb::core::guest::{GuestAction, GuestOrder, GuestOutcome, GuestReport};
use p2pdb::core::service::parse_address;
use p2pdb::edge::bundles::BundleStore;
use p2pdb::edge::clock::SystemClock;
use p2pdb::edge::config::Driver;
use p2pdb::edge::guests::{Acceleration, Drivers, Keep, LibvirtDriver, Originals, ProcessDriver};
use p2pdb::edge::service_address::{AddressReport, AddressSettings, ServiceAddressKeeper};
use p2pdb::ports::Hypervisor;

use super::rig::{INTERFACE, program};

#[test]
#[ignore = "not a test: the process that the tests here start and talk to, as a daemon of its own"]
fn owner() {
    let Some(directory) = std::env::var_os("OWNER_DIRECTORY").map(std::path::PathBuf::from) else { return };
    let count = std::env::var("OWNER_COUNT").unwrap().parse().unwrap();
    // As the daemon does.
    rustix::process::umask(rustix::fs::Mode::RWXO | rustix::fs::Mode::WGRP);
    let clock = SystemClock::new();
    let interface = Some(INTERFACE.to_owned());
    let driver = ProcessDriver {
        program: program(),
        directory: directory.clone(),
        interface: interface.clone(),
        gateway: std::env::var("OWNER_GATEWAY").ok().map(|gateway| gateway.parse().unwrap()),
    };
    let bundles = BundleStore::open(directory.join("bundles"), 1 << 26, 1 << 30).unwrap();
    let is_libvirt = std::env::var_os("OWNER_LIBVIRT").is_some();
    let drivers = Drivers {
        used: if is_libvirt { Driver::Libvirt } else { Driver::Process },
        libvirt: libvirt_driver(&driver),
        process: driver,
    };
    let mut originals = Originals::start(&directory, count, &drivers, &bundles, clock, Arc::new(tell)).unwrap();
    let settings = AddressSettings { program: program(), directory, interface };
    let keeper = ServiceAddressKeeper::start(settings, clock, Arc::new(tell_address)).unwrap();
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let id = words[0].parse().unwrap();
        let address = |place: usize| parse_address(words[place]).unwrap();
        let number = |place: usize| words[place].parse::<u64>().unwrap();
        let now = clock.now();
        match words[1] {
            "prepare" => originals.prepare(),
            "held" => keeper.held(id),
            "take" => keeper.take(id, address(2), number(3), now),
            "hold" => keeper.hold(id, address(2), number(3), now),
            "release" => keeper.release(id, address(2)),
            "probe" => keeper.probe(id, address(2), Duration::from_millis(number(3))),
            original => {
                let action = match words[3] {
                    "resume" => GuestAction::Resume { target: words[4].parse().unwrap() },
                    "install" => {
                        let (target, procedure) = (words[4].parse().unwrap(), words[5].parse().unwrap());
                        GuestAction::Install { target, procedure, address: words.get(6).map(|_| address(6)) }
                    }
                    "take" => GuestAction::TakeAddress { address: address(4), lease_ms: number(5) },
                    "hold" => GuestAction::HoldAddress { address: address(4), lease_ms: number(5) },
                    "release" => GuestAction::ReleaseAddress { address: address(4) },
                    "reset" => GuestAction::Reset,
                    "check" => GuestAction::Check,
                    other => panic!("{other}"),
                };
                let original = format!("original-{original}");
                originals.order(GuestOrder { id, original, token: number(2), action }, now);
            }
        }
    }
}

/// The driver of virtual machines, for where the test has a libvirtd.
fn libvirt_driver(like: &ProcessDriver) -> LibvirtDriver {
    let text = |name: &str| std::env::var(name).unwrap_or_default();
    LibvirtDriver {
        program: like.program.clone(),
        uri: text("OWNER_LIBVIRT"),
        image: text("OWNER_IMAGE").into(),
        domain: std::env::var("OWNER_DOMAIN").ok(),
        folder: std::env::var_os("OWNER_FOLDER").map(Into::into),
        memory_mib: 160,
        processors: 1,
        acceleration: (text("OWNER_ACCELERATION") == "qemu").then_some(Acceleration::Qemu),
        keep: if text("OWNER_KEEP") == "saved" { Keep::Saved } else { Keep::Paused },
        rehearsal: text("OWNER_REHEARSAL"),
        boot: Duration::from_secs(120),
        bridge: like.interface.clone(),
        gateway: like.gateway,
    }
}

fn tell(report: GuestReport) {
    match report {
        GuestReport::Changed(guest) => {
            let target = guest.target.as_ref().map_or("---", |target| target.as_str());
            println!("@ changed {} {} {target} {} {}", guest.original, guest.state.word(), guest.token, guest.note);
        }
        GuestReport::Outcome { id, outcome } => match outcome {
            GuestOutcome::Done(guest) => println!("@ outcome {id} done {} {}", guest.state.word(), guest.note),
            GuestOutcome::Failed(why) => println!("@ outcome {id} failed {}", why.replace('\n', " | ")),
            GuestOutcome::Stale { highest } => println!("@ outcome {id} stale {highest}"),
        },
    }
}

fn tell_address(report: AddressReport) {
    match report {
        AddressReport::Outcome { id, outcome: Ok(held) } => {
            println!("@ outcome {id} done {}", held.map_or("nothing".into(), |held| held.to_string()));
        }
        AddressReport::Outcome { id, outcome: Err(why) } => println!("@ outcome {id} failed {why}"),
        AddressReport::Probed { id, outcome, .. } => match outcome {
            Ok(Some(_)) => println!("@ outcome {id} done answered"),
            Ok(None) => println!("@ outcome {id} done silence"),
            Err(why) => println!("@ outcome {id} failed {why}"),
        },
    }
}
