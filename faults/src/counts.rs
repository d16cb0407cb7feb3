//! How often each function was called: a file that every process with the module maps, so that
//! counts are exact over restarts, crashes and processes that run side by side.
//!
//! Records of [`RECORD`] bytes in the order of the function list: the function's name, padded with
//! zeros, and in the last eight bytes the count (native byte order).

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

/// The length of a record in bytes.
pub const RECORD: usize = 64;

/// The counters, shared with every process that maps the same file.
#[derive(Debug)]
pub struct Counts {
    base: *mut u8,
    records: usize,
}

// SAFETY: the mapping is never moved nor unmapped, and is only touched through atomics.
unsafe impl Send for Counts {}
// SAFETY: as above.
unsafe impl Sync for Counts {}

impl Counts {
    /// Maps the file, making it and its records where they are missing.
    pub fn open(path: &Path, names: &[&str]) -> io::Result<Self> {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let length = names.len() * RECORD;
        // Growing keeps counts that another process has already made.
        if file.metadata()?.len() < length as u64 {
            file.set_len(length as u64)?;
        }
        for (record, name) in names.iter().enumerate() {
            assert!(name.len() <= RECORD - 8, "{name} fits a record");
            file.write_all_at(name.as_bytes(), (record * RECORD) as u64)?;
        }
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh shared mapping of a file that is at least `length` long.
        let base =
            unsafe { mmap(std::ptr::null_mut(), length, access, MapFlags::SHARED, &file, 0)? };
        Ok(Self { base: base.cast(), records: names.len() })
    }

    /// Counts one call and gives its number, from 1, over all processes.
    pub fn count(&self, function: usize) -> u64 {
        self.counter(function).fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Counters of this process alone.
    pub fn of_this_process(records: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh private mapping, which the kernel fills with zeros.
        let base = unsafe {
            mmap_anonymous(std::ptr::null_mut(), records * RECORD, access, MapFlags::PRIVATE)?
        };
        Ok(Self { base: base.cast(), records })
    }

    fn counter(&self, function: usize) -> &AtomicU64 {
        assert!(function < self.records);
        // SAFETY: inside the mapping (checked above) and aligned: the mapping starts at a page,
        // records and their counters at multiples of eight.
        unsafe { AtomicU64::from_ptr(self.base.add(function * RECORD + RECORD - 8).cast()) }
    }
}

/// The count of one function, read from the file's bytes; none if it has no record.
pub fn read(file: &[u8], name: &str) -> Option<u64> {
    file.chunks_exact(RECORD).find_map(|record| {
        let (padded, count) = record.split_at(RECORD - 8);
        let end = padded.iter().position(|byte| *byte == 0).unwrap_or(padded.len());
        (&padded[..end] == name.as_bytes())
            .then(|| u64::from_ne_bytes(count.try_into().expect("eight bytes")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_go_on_where_another_mapping_of_the_file_left_them() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let names = ["C_Initialize", "C_Login"];
        let first = Counts::open(file.path(), &names).unwrap();
        assert_eq!((first.count(1), first.count(1)), (1, 2));
        let second = Counts::open(file.path(), &names).unwrap();
        assert_eq!((second.count(1), first.count(1), first.count(0)), (3, 4, 1));
        let alone = Counts::of_this_process(names.len()).unwrap();
        assert_eq!((alone.count(1), alone.count(1), alone.count(0)), (1, 2, 1));
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(read(&bytes, "C_Login"), Some(4));
        assert_eq!(read(&bytes, "C_Initialize"), Some(1));
        assert_eq!(read(&bytes, "C_Log"), None);
    }
}
