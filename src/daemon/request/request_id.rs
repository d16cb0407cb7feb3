//! Request ids: 128 random bits each, unique, and silent about how many calls there were before.

use std::cell::RefCell;
use std::sync::Arc;

const BYTES: usize = 16;
/// Ids for which a thread takes randomness at once: one by one it costs more than all else in them.
const AT_ONCE: usize = 64;

/// Random bytes of this thread, and how many of them are left.
struct Random {
    bytes: [u8; BYTES * AT_ONCE],
    left: usize,
}

thread_local! {
    static RANDOM: RefCell<Random> =
        const { RefCell::new(Random { bytes: [0; BYTES * AT_ONCE], left: 0 }) };
}

/// A new id: 32 characters of lower-case hexadecimal.
pub(super) fn new() -> Arc<str> {
    let mut text = [0; 2 * BYTES];
    RANDOM.with_borrow_mut(|random| {
        hex::encode_to_slice(random.take(), &mut text).expect("the text is twice as long");
    });
    str::from_utf8(&text).expect("hexadecimal is ASCII").into()
}

impl Random {
    fn take(&mut self) -> &[u8] {
        if self.left == 0 {
            let filled = aws_lc_rs::rand::fill(&mut self.bytes);
            filled.expect("where there is no randomness there is no TLS either");
            self.left = AT_ONCE;
        }
        self.left -= 1;
        &self.bytes[self.left * BYTES..][..BYTES]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_id_of_each_thread_is_another_one() {
        let of_a_thread = || (0..3 * AT_ONCE).map(|_| new()).collect::<Vec<_>>();
        let threads = [(); 3].map(|()| std::thread::spawn(of_a_thread));
        let ids: Vec<_> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        let hex =
            |id: &str| id.len() == 32 && id.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        assert!(ids.iter().all(|id| hex(id)));
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }
}
