//! Serves clients that name a Unix socket's path as the authority of their requests.
//!
//! gRPC's C core (Python, C++, Ruby, PHP) sends `:authority: %2Frun%2Fclaviger.sock` over a Unix
//! socket. RFC 3986, section 3.2.2, lets a name have percent-encoded bytes; the HTTP/2 library does
//! not, and resets the stream before anything of ours sees it. Nothing here looks at the authority,
//! so each `%` in it is replaced by `-`: one byte by one byte, which changes no length and no state
//! of the header compression.
//!
//! This follows frames (RFC 9113, section 4) and header fields (RFC 7541, section 6) only as far as
//! it takes to find that value. Values in Huffman code are left alone: no such client sends one.
//! What cannot be followed is passed on as it is.

/// The client's HTTP/2 preface: RFC 9113, section 3.4.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// The index of that name in the static table (RFC 7541, appendix A).
const NAME_INDEX: u32 = 1;

/// Replaces each `%` in the authority of the requests of one connection. It knows where in the
/// frames the stream is.
#[derive(Debug)]
pub(super) struct AnyAuthority {
    /// Bytes that hold no header field: the preface, other frames, padding.
    skip: usize,
    /// Bytes of header fields, then of padding.
    fields: usize,
    padding: usize,
    /// What a HEADERS frame has in front of its fields is still to come.
    prefix: Option<u8>,
    head: [u8; FRAME_HEAD],
    have: usize,
    field: Field,
}

impl Default for AnyAuthority {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            fields: 0,
            padding: 0,
            prefix: None,
            head: [0; FRAME_HEAD],
            have: 0,
            field: Field::Start,
        }
    }
}

impl AnyAuthority {
    /// Passes the next bytes that the client has sent.
    pub(super) fn pass(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let taken = if self.skip > 0 {
                let taken = self.skip.min(bytes.len());
                self.skip -= taken;
                taken
            } else if let Some(flags) = self.prefix.take() {
                self.prefix(flags, bytes[0])
            } else if self.fields > 0 {
                let taken = self.fields.min(bytes.len());
                self.fields -= taken;
                for byte in &mut bytes[..taken] {
                    self.field = self.field.next(byte);
                }
                taken
            } else if self.padding > 0 {
                self.skip = std::mem::take(&mut self.padding);
                0
            } else {
                self.head(bytes[0]);
                1
            };
            bytes = &mut bytes[taken..];
        }
    }

    fn head(&mut self, byte: u8) {
        self.head[self.have] = byte;
        self.have += 1;
        if self.have < FRAME_HEAD {
            return;
        }
        self.have = 0;
        let [a, b, c, kind, flags, ..] = self.head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            HEADERS => {
                self.fields = length;
                self.prefix = (flags & (PADDED | PRIORITY) != 0 && length > 0).then_some(flags);
            }
            CONTINUATION => self.fields = length,
            _ => self.skip = length,
        }
    }

    /// The length of the padding comes first, then the priority (RFC 9113, section 6.2). How many
    /// bytes were used.
    fn prefix(&mut self, flags: u8, byte: u8) -> usize {
        if flags & PADDED != 0 {
            let padding = usize::from(byte).min(self.fields - 1);
            self.fields -= 1 + padding;
            self.padding = padding;
            self.prefix = (flags & PRIORITY != 0 && self.fields > 0).then_some(flags & PRIORITY);
            return 1;
        }
        self.skip = self.fields.min(5);
        self.fields -= self.skip;
        0
    }
}

/// Where in a header field the stream is.
#[derive(Clone, Copy, Debug)]
enum Field {
    Start,
    /// A number that did not fit into its first byte (RFC 7541, section 5.1).
    Number {
        so_far: u32,
        shift: u8,
        of: Number,
    },
    /// The length of a string comes next.
    Length(Text),
    Name {
        left: u32,
        matched: u32,
    },
    Value {
        left: u32,
        is_authority: bool,
    },
    /// What came is none.
    Lost,
}

#[derive(Clone, Copy, Debug)]
enum Number {
    /// A field of the table, or the table's new size: nothing follows.
    Whole,
    NameIndex,
    Length {
        text: Text,
        huffman: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Text {
    Name,
    Value { is_authority: bool },
}

impl Field {
    fn next(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => match *byte {
                0x80.. => Self::number(*byte, 0x7f, Number::Whole),
                0x40.. => Self::number(*byte, 0x3f, Number::NameIndex),
                0x20.. => Self::number(*byte, 0x1f, Number::Whole),
                _ => Self::number(*byte, 0x0f, Number::NameIndex),
            },
            Self::Number { so_far, shift, of } => {
                let more = u32::from(*byte & 0x7f).checked_shl(u32::from(shift));
                match more.and_then(|more| so_far.checked_add(more)) {
                    Some(number) if *byte & 0x80 == 0 => Self::after(of, number),
                    Some(so_far) if shift < 28 => Self::Number { so_far, shift: shift + 7, of },
                    _ => Self::Lost,
                }
            }
            Self::Length(text) => {
                Self::number(*byte, 0x7f, Number::Length { text, huffman: *byte & 0x80 != 0 })
            }
            Self::Name { left, matched } => {
                let goes_on = NAME.get(matched as usize) == Some(byte);
                let matched = if goes_on { matched + 1 } else { u32::MAX };
                let is_authority = matched as usize == NAME.len();
                match left {
                    1 => Self::Length(Text::Value { is_authority }),
                    _ => Self::Name { left: left - 1, matched },
                }
            }
            Self::Value { left, is_authority } => {
                if is_authority && *byte == b'%' {
                    *byte = b'-';
                }
                match left {
                    1 => Self::Start,
                    _ => Self::Value { left: left - 1, is_authority },
                }
            }
            Self::Lost => Self::Lost,
        }
    }

    fn number(byte: u8, mask: u8, of: Number) -> Self {
        match byte & mask {
            first if first == mask => Self::Number { so_far: mask.into(), shift: 0, of },
            number => Self::after(of, number.into()),
        }
    }

    fn after(of: Number, number: u32) -> Self {
        match of {
            Number::Whole => Self::Start,
            Number::NameIndex if number == 0 => Self::Length(Text::Name),
            Number::NameIndex => Self::Length(Text::Value { is_authority: number == NAME_INDEX }),
            Number::Length { text: Text::Name, .. } if number == 0 => {
                Self::Length(Text::Value { is_authority: false })
            }
            Number::Length { text: Text::Value { .. }, .. } if number == 0 => Self::Start,
            Number::Length { text: Text::Name, huffman } => {
                Self::Name { left: number, matched: if huffman { u32::MAX } else { 0 } }
            }
            Number::Length { text: Text::Value { is_authority }, huffman } => {
                Self::Value { left: number, is_authority: is_authority && !huffman }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// A literal with a name in letters.
    fn literal(first: u8, name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [&[first][..], &text(name), &text(value)].concat()
    }

    /// What comes out, however the bytes are cut.
    fn passed(frames: &[Vec<u8>]) -> Vec<u8> {
        let bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &frames.concat()].concat();
        let mut whole = bytes.clone();
        AnyAuthority::default().pass(&mut whole);
        for size in [1, 2, 7, 30] {
            let (mut parts, mut frames) = (bytes.clone(), AnyAuthority::default());
            parts.chunks_mut(size).for_each(|part| frames.pass(part));
            assert_eq!(parts, whole, "{size}");
        }
        whole[PREFACE..].to_vec()
    }

    #[test]
    fn a_path_as_authority_loses_its_percent_signs_and_nothing_else_changes() {
        let path = literal(0x40, ":path", "/a%2Fb");
        let other = literal(0x40, "x-authority", "%2Fa");
        for first in [0x40, 0x00, 0x10] {
            let given = [&path[..], &literal(first, ":authority", "%2Frun%2Fa.sock"), &other];
            let right = [&path[..], &literal(first, ":authority", "-2Frun-2Fa.sock"), &other];
            let (given, right) = (given.concat(), right.concat());
            let data = frame(0, 0, b"\x40\x0a:authority\x02%2");
            let frames = [frame(4, 0, &[]), frame(HEADERS, 4, &given), data.clone()];
            let expected = [frame(4, 0, &[]), frame(HEADERS, 4, &right), data];
            assert_eq!(passed(&frames), expected.concat());

            let padded = |fields: &[u8]| {
                frame(HEADERS, PADDED | PRIORITY, &[&[3, 0, 0, 0, 0, 9], fields, b"%%%"].concat())
            };
            let twice = [padded(&given), frame(HEADERS, 4, &given)];
            let expected = [padded(&right), frame(HEADERS, 4, &right)];
            assert_eq!(passed(&twice), expected.concat());

            let (start, rest) = given.split_at(20);
            let split = [frame(HEADERS, 0, start), frame(CONTINUATION, 4, rest)];
            let (start, rest) = right.split_at(20);
            let expected = [frame(HEADERS, 0, start), frame(CONTINUATION, 4, rest)];
            assert_eq!(passed(&split), expected.concat());
        }
    }

    #[test]
    fn an_indexed_name_is_known_and_long_numbers_are_followed() {
        let long = "%".repeat(300);
        let value = [&[0x7f, 0xad, 0x01], long.as_bytes()].concat();
        let fields = |value: &[u8]| [&[0x82, 0x3f, 0xe1, 0x1f, 0x41][..], value, &[0x86]].concat();
        let given = frame(HEADERS, 4, &fields(&value));
        let right = [&[0x7f, 0xad, 0x01], long.replace('%', "-").as_bytes()].concat();
        assert_eq!(passed(&[given]), frame(HEADERS, 4, &fields(&right)));
    }

    #[test]
    fn what_cannot_be_followed_is_passed_on_as_it_is() {
        let endless = [&[0x41][..], &[0xff; 40], b"%%%%"].concat();
        let frames = [frame(HEADERS, 4, &endless), frame(HEADERS, 4, b"%%")];
        assert_eq!(passed(&frames), frames.concat());
    }
}
