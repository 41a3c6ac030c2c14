//! How busy this host is: sampled with the housekeeping, written to the file `Condition` when it says something new.
//!
//! Only a host on the service network does so: the rows are for choosing who stands in for whom.

use tracing::warn;

use super::Daemon;
use crate::core::diff::Change;
use crate::core::id::FileName;
use crate::core::io::Edit;
use crate::core::lifecycle::Lifecycle;
use crate::core::load::Meter;
use crate::core::schema::file;
use crate::edge::config::Config;
use crate::edge::load::LoadReader;

/// The meters of a host on the service network.
pub(super) struct Gauge {
    reader: LoadReader,
    meter: Meter,
}

impl Gauge {
    /// `None`: this host is not on the service network, or its load cannot be read, which is told.
    pub fn start(config: &Config) -> Option<Self> {
        config.service.interface()?;
        match LoadReader::new() {
            Ok(reader) => Some(Self { reader, meter: Meter::new(config.name.clone()) }),
            Err(error) => {
                warn!("{error}; nobody knows how busy this server is");
                None
            }
        }
    }
}

impl Daemon {
    pub(super) fn sample_load(&mut self) {
        if self.node.lifecycle() < Lifecycle::Ready {
            return;
        }
        let (now_us, stand_ins) = (self.clock.now().monotonic_us, self.hosted.stand_ins());
        let Some(gauge) = &mut self.gauge else { return };
        let Some(row) = gauge.meter.sample(now_us, &gauge.reader.read(), stand_ins) else { return };
        let after = row.record();
        let before = self.node.files().builtin(file::CONDITION).and_then(|rows| rows.record(row.server.as_str()));
        let change = match before.cloned() {
            Some(before) if before == after => return,
            Some(before) => Change::Mod { before, after },
            None => Change::Add(after),
        };
        let file = FileName::new(file::CONDITION).expect("built-in file names are well formed");
        self.submit_management("load", vec![Edit { file, change, bases: None }], |_, outcome| {
            if let Err(refusal) = outcome {
                warn!("the load of this server could not be told: {refusal}");
            }
        });
    }
}
