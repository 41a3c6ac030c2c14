//! How busy a host is (the paper, section 2: real server condition), and how busy it would be.

/// One reading of this host's use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadSample {
    /// Share of all processors in use, 0 to 1.
    pub cpu: f64,
    /// Bytes of memory that are taken and that there are.
    pub memory_used: u64,
    pub memory_total: u64,
    /// Bytes per second in and out.
    pub network: u64,
    pub processors: u32,
}
