//! Messages on a stream: the length in four bytes, little-endian, then the message.
//!
//! Answers hold key material, so every buffer is zeroed when its content was passed on.

use prost::Message;
use zeroize::{Zeroize, Zeroizing};

/// The longest message in bytes. A request of the daemon's callers has 64 KiB at most.
pub(super) const LONGEST: usize = 256 << 10;

/// The bytes of a frame before its message.
const HEADER: usize = 4;

/// A buffer's size at first, in bytes.
const FIRST: usize = 64 << 10;

/// The other side does not keep to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what it sent is no message of this program")]
pub(super) struct Garbage;

/// Received bytes, cut into messages.
#[derive(Debug)]
pub(super) struct Inbox {
    bytes: Zeroizing<Vec<u8>>,
    begin: usize,
    end: usize,
}

impl Inbox {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self::with_room(FIRST)
    }

    /// An empty one with so many bytes at first, at least one.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self { bytes: Zeroizing::new(vec![0; bytes]), begin: 0, end: 0 }
    }

    /// Room for what is received next; say with [`Inbox::received`] how much it was.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.begin > 0 {
            self.bytes.copy_within(self.begin..self.end, 0);
            let kept = self.end - self.begin;
            self.bytes[kept..self.end].zeroize();
            (self.begin, self.end) = (0, kept);
        }
        if self.end == self.bytes.len() {
            let mut larger = Zeroizing::new(vec![0; self.bytes.len() * 2]);
            larger[..self.end].copy_from_slice(&self.bytes[..self.end]);
            self.bytes = larger;
        }
        &mut self.bytes[self.end..]
    }

    /// So many bytes were received.
    pub(super) fn received(&mut self, count: usize) {
        self.end += count;
    }

    /// The next message, if all of it was received.
    pub(super) fn next<M: Message + Default>(&mut self) -> Result<Option<M>, Garbage> {
        let received = &self.bytes[self.begin..self.end];
        let Some((header, rest)) = received.split_first_chunk::<HEADER>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header) as usize;
        if len > LONGEST {
            return Err(Garbage);
        }
        let Some(message) = rest.get(..len) else { return Ok(None) };
        let message = M::decode(message).map_err(|_| Garbage)?;
        self.begin += HEADER + len;
        Ok(Some(message))
    }
}

/// Frames that wait to be written. It never grows in place, which would leave a copy behind.
#[derive(Debug)]
pub(super) struct Frames(Zeroizing<Vec<u8>>);

impl Frames {
    /// An empty one.
    pub(super) fn new() -> Self {
        Self::with_room(FIRST)
    }

    /// An empty one with room for so many bytes.
    pub(super) fn with_room(bytes: usize) -> Self {
        Self(Zeroizing::new(Vec::with_capacity(bytes)))
    }

    /// Adds a message; false if it is too long.
    pub(super) fn push(&mut self, message: &impl Message) -> bool {
        let len = message.encoded_len();
        if len > LONGEST {
            return false;
        }
        let needed = self.0.len() + HEADER + len;
        if needed > self.0.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(&(len as u32).to_le_bytes());
        message.encode_raw(&mut *self.0);
        true
    }

    /// What is to be written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Zeroes and forgets them; a large buffer is given back.
    pub(super) fn clear(&mut self) {
        if self.0.capacity() > FIRST * 4 {
            *self = Self::new();
        } else {
            // As long as the content; `zeroize` of a vector clears all of its capacity.
            self.0.as_mut_slice().zeroize();
            self.0.clear();
        }
    }

    /// Whether none waits.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, PartialEq, Message)]
    struct Text {
        #[prost(bytes = "vec", tag = "1")]
        bytes: Vec<u8>,
    }

    fn receive(inbox: &mut Inbox, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = inbox.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            inbox.received(count);
            bytes = &bytes[count..];
        }
    }

    proptest! {
        #[test]
        fn messages_come_out_as_they_went_in_however_the_stream_is_cut(
            lengths in prop::collection::vec(0_usize..100_000, 0..5),
            pieces in prop::collection::vec(1_usize..70_000, 1..20),
        ) {
            let sent: Vec<_> = lengths.iter().map(|len| Text { bytes: vec![7; *len] }).collect();
            let mut frames = Frames::new();
            for text in &sent {
                prop_assert!(frames.push(text));
            }
            let (mut inbox, mut got) = (Inbox::new(), Vec::new());
            let (mut rest, mut pieces) = (frames.bytes(), pieces.iter().cycle());
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
                receive(&mut inbox, piece);
                rest = after;
                while let Some(text) = inbox.next::<Text>().unwrap() {
                    got.push(text);
                }
            }
            prop_assert_eq!(got, sent);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut inbox = Inbox::new();
            receive(&mut inbox, &bytes);
            while let Ok(Some(_)) = inbox.next::<super::super::message::FromChild>() {}
        }
    }

    #[test]
    fn a_length_beyond_the_longest_message_is_garbage_before_a_byte_of_it_is_waited_for() {
        let mut inbox = Inbox::new();
        receive(&mut inbox, &(LONGEST as u32 + 1).to_le_bytes());
        assert_eq!(inbox.next::<Text>(), Err(Garbage));
        assert!(!Frames::new().push(&Text { bytes: vec![0; LONGEST] }));
    }

    #[test]
    fn what_was_passed_on_is_zeroed() {
        let mut frames = Frames::new();
        frames.push(&Text { bytes: vec![7; 100] });
        let mut inbox = Inbox::new();
        receive(&mut inbox, frames.bytes());
        inbox.next::<Text>().unwrap().unwrap();
        inbox.room();
        assert!(inbox.bytes.iter().all(|byte| *byte == 0));
    }
}
