//! Loaded in front of the C library (`LD_PRELOAD`), moves the wall clock of one process by the milliseconds that
//! the file `CLOCK_OFFSET_FILE` holds. Compiled by `clock.rs`; not part of any crate.

use std::ffi::{c_int, c_long};
use std::sync::OnceLock;

#[repr(C)]
pub struct Timespec {
    seconds: i64,
    nanoseconds: i64,
}

unsafe extern "C" {
    fn syscall(number: c_long, ...) -> c_long;
}

#[cfg(target_arch = "x86_64")]
const CLOCK_GETTIME: c_long = 228;
#[cfg(target_arch = "aarch64")]
const CLOCK_GETTIME: c_long = 113;

fn offset_ms() -> i64 {
    static PATH: OnceLock<Option<String>> = OnceLock::new();
    let path = PATH.get_or_init(|| std::env::var("CLOCK_OFFSET_FILE").ok());
    let text = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: c_int, time: *mut Timespec) -> c_int {
    let result = unsafe { syscall(CLOCK_GETTIME, c_long::from(clock), time) } as c_int;
    // CLOCK_REALTIME and CLOCK_REALTIME_COARSE.
    if result == 0 && (clock == 0 || clock == 5) {
        let time = unsafe { &mut *time };
        let nanoseconds = i128::from(time.seconds) * 1_000_000_000
            + i128::from(time.nanoseconds)
            + i128::from(offset_ms()) * 1_000_000;
        time.seconds = nanoseconds.div_euclid(1_000_000_000) as i64;
        time.nanoseconds = nanoseconds.rem_euclid(1_000_000_000) as i64;
    }
    result
}
