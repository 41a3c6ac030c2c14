//! How busy a host is (the paper, section 2: load examination), and how busy it would be with what is placed there.
//!
//! Two samples in a row are averaged. A row of the file `Condition` holds shares of the machine and the machine's size, so loads of
//! unequal machines can be added and compared: *normalised*. Shares are counted in thousandths, so every server that has the
//! same rows computes the same figures.

use super::id::ServerName;
use super::merge::Files;
use super::record::Record;
use super::schema::file;

/// A row that says something new is not written more often, in microseconds.
pub const ROW_EVERY_US: u64 = 10_000_000;
/// A row that says nearly the same is not written more often, in microseconds.
pub const ROW_DRIFT_US: u64 = 60_000_000;
/// A share that moved by so much says something new, in thousandths.
pub const ROW_STEP: u32 = 50;

/// One reading of this host's use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadSample {
    /// Share of all processors in use, 0 to 1.
    pub cpu: f64,
    /// Bytes of memory that are taken and that there are.
    pub memory_used: u64,
    pub memory_total: u64,
    /// Bytes per second in and out, and how many the network could take.
    pub network: u64,
    pub network_total: u64,
    pub processors: u32,
}

/// Shares of one machine's processors, memory and network, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Shares {
    pub cpu: u32,
    pub memory: u32,
    pub network: u32,
}

impl Shares {
    fn of(sample: &LoadSample) -> Self {
        let share = |used: u64, total: u64| match total {
            0 => 0,
            total => (u128::from(used) * 1000 / u128::from(total)).min(1000) as u32,
        };
        Self {
            cpu: (sample.cpu.clamp(0.0, 1.0) * 1000.0).round() as u32,
            memory: share(sample.memory_used, sample.memory_total),
            network: share(sample.network, sample.network_total),
        }
    }

    fn average(self, other: Self) -> Self {
        let half = |a: u32, b: u32| (a + b).div_ceil(2);
        Self {
            cpu: half(self.cpu, other.cpu),
            memory: half(self.memory, other.memory),
            network: half(self.network, other.network),
        }
    }

    /// The largest difference of one share.
    fn distance(self, other: Self) -> u32 {
        let cpu = self.cpu.abs_diff(other.cpu);
        cpu.max(self.memory.abs_diff(other.memory)).max(self.network.abs_diff(other.network))
    }

    /// The scarcest of the three: the load of a machine.
    pub fn largest(self) -> u32 {
        self.cpu.max(self.memory).max(self.network)
    }
}

/// What a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub processors: u32,
    pub memory_mib: u32,
    pub network_mbit: u32,
}

/// One row of the file `Condition`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub server: ServerName,
    pub shares: Shares,
    /// How many stand-ins the server ran, whose use is part of the shares.
    pub stand_ins: u32,
    pub size: Size,
}

impl Condition {
    /// The condition of a server, if it has a row that can be read.
    pub fn of(files: &Files, server: &ServerName) -> Option<Self> {
        Self::parse(files.builtin(file::CONDITION)?.record(server.as_str())?)
    }

    /// Reads a row; `None` for one that an older version wrote, or that makes no sense.
    pub fn parse(record: &Record) -> Option<Self> {
        let share = |index: usize| {
            let share: f64 = record.field(index).parse().ok()?;
            (0.0..=1.0).contains(&share).then(|| (share * 1000.0).round() as u32)
        };
        let number = |index: usize| record.field(index).parse::<u32>().ok();
        let size = |index: usize| number(index).filter(|size| *size > 0);
        Some(Self {
            server: ServerName::new(record.field(0)).ok()?,
            shares: Shares { cpu: share(1)?, memory: share(2)?, network: share(3)? },
            stand_ins: number(4)?,
            size: Size { processors: size(5)?, memory_mib: size(6)?, network_mbit: size(7)? },
        })
    }

    /// The row.
    pub fn record(&self) -> Record {
        let share = |share: u32| format!("{}.{:03}", share / 1000, share % 1000);
        let Size { processors, memory_mib, network_mbit } = self.size;
        Record::of([
            self.server.as_str(),
            &share(self.shares.cpu),
            &share(self.shares.memory),
            &share(self.shares.network),
            &self.stand_ins.to_string(),
            &processors.to_string(),
            &memory_mib.to_string(),
            &network_mbit.to_string(),
        ])
    }

    /// The shares of this machine when it also does what each of `added` does now; above 1000 when it is too small for that.
    pub fn with<'a>(&self, added: impl IntoIterator<Item = &'a Condition>) -> Shares {
        let mut sum = self.shares;
        for other in added {
            let here = |share: u32, there: u32, here: u32| {
                (u64::from(share) * u64::from(there) / u64::from(here)).min(1_000_000) as u32
            };
            sum.cpu += here(other.shares.cpu, other.size.processors, self.size.processors);
            sum.memory += here(other.shares.memory, other.size.memory_mib, self.size.memory_mib);
            sum.network += here(other.shares.network, other.size.network_mbit, self.size.network_mbit);
        }
        sum
    }
}

/// Makes rows of samples.
#[derive(Debug)]
pub struct Meter {
    server: ServerName,
    last: Option<Shares>,
    written: Option<(u64, Condition)>,
}

impl Meter {
    pub fn new(server: ServerName) -> Self {
        Self { server, last: None, written: None }
    }

    /// Takes a sample; a row, when there is one to write. The number of stand-ins is news at once.
    pub fn sample(&mut self, now_us: u64, sample: &LoadSample, stand_ins: u32) -> Option<Condition> {
        let shares = Shares::of(sample);
        let average = self.last.replace(shares)?.average(shares);
        let size = Size {
            processors: sample.processors.max(1),
            memory_mib: ((sample.memory_total >> 20) as u32).max(1),
            network_mbit: ((sample.network_total / 125_000) as u32).max(1),
        };
        let row = Condition { server: self.server.clone(), shares: average, stand_ins, size };
        if !self.is_news(now_us, &row) {
            return None;
        }
        self.written = Some((now_us, row.clone()));
        Some(row)
    }

    fn is_news(&self, now_us: u64, row: &Condition) -> bool {
        let Some((at_us, written)) = &self.written else { return true };
        let age_us = now_us.saturating_sub(*at_us);
        row.stand_ins != written.stand_ins
            || age_us >= ROW_EVERY_US && row.shares.distance(written.shares) >= ROW_STEP
            || age_us >= ROW_DRIFT_US && row != written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn sample(cpu: f64) -> LoadSample {
        LoadSample {
            cpu,
            memory_used: 1 << 30,
            memory_total: 4 << 30,
            network: 12_500_000,
            network_total: 125_000_000,
            processors: 2,
        }
    }

    fn row(line: &str) -> Option<Condition> {
        Condition::parse(&Record::parse(line).unwrap())
    }

    fn meter() -> Meter {
        Meter::new(ServerName::new("S1").unwrap())
    }

    #[test]
    fn a_row_is_the_average_of_two_samples() {
        let mut meter = meter();
        assert_eq!(meter.sample(0, &sample(0.2), 0), None);
        let row = meter.sample(SECOND, &sample(0.4), 1).unwrap();
        assert_eq!(row.record().to_string(), "S1, 0.300, 0.250, 0.100, 1, 2, 4096, 1000");
        assert_eq!(Condition::parse(&row.record()), Some(row));
    }

    #[test]
    fn rows_are_written_at_a_bounded_rate_and_only_for_news() {
        let mut meter = meter();
        let mut rows = 0;
        for second in 0..600 {
            let cpu = if second % 40 < 20 { 0.1 } else { 0.9 };
            rows += usize::from(meter.sample(second * SECOND, &sample(cpu), 0).is_some());
        }
        assert!((20..=60).contains(&rows), "{rows}");
        let rows = (600..6000).filter(|second| meter.sample(second * SECOND, &sample(0.5), 0).is_some()).count();
        assert!(rows <= 2, "{rows} rows of a load that stays the same");
        assert!(meter.sample(6000 * SECOND, &sample(0.5), 1).is_some());
    }

    #[test]
    fn loads_of_unequal_machines_are_added_by_size() {
        let small = row("S1, 0.500, 0.500, 0.100, 0, 2, 2048, 1000").unwrap();
        let large = row("S2, 0.100, 0.100, 0.010, 0, 8, 16384, 10000").unwrap();
        assert_eq!(large.with([&small]), Shares { cpu: 225, memory: 162, network: 20 });
        assert_eq!(small.with([&large]), Shares { cpu: 900, memory: 1300, network: 200 });
        assert_eq!(small.with([&large]).largest(), 1300);
    }

    #[test]
    fn rows_that_make_no_sense_are_none() {
        for line in
            ["S1, 0.5, 0.25, 0, 2", "S1, 1.5, 0, 0, 0, 1, 1, 1", "S1, 0, 0, 0, 0, 0, 1, 1", "S1, x, 0, 0, 0, 1, 1, 1"]
        {
            assert_eq!(row(line), None, "{line}");
        }
    }
}
