//! DER, as far as extensions of lists and certificates need it: elements, one after the other.

/// One element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    /// The identifier octet; tags above 30 are malformed here.
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// Identifier, length and content.
    pub(super) whole: &'a [u8],
}

/// The elements that fill `der` to its end, or nothing where it is malformed.
pub(super) fn elements(mut der: &[u8]) -> Option<Vec<Element<'_>>> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let element = first(der)?;
        found.push(element);
        der = &der[element.whole.len()..];
    }
    Some(found)
}

/// The content of the one element that is all of `der` and has this tag.
pub(super) fn only(der: &[u8], tag: u8) -> Option<&[u8]> {
    let element = first(der)?;
    (element.tag == tag && element.whole.len() == der.len()).then_some(element.content)
}

/// One element with this tag (X.690 8.1; lengths below 2^32 in their shortest form).
pub(super) fn encode(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u32).to_be_bytes();
    let mut der = vec![tag];
    if content.len() < 0x80 {
        der.push(length[3]);
    } else {
        let zeros = length.iter().take_while(|octet| **octet == 0).count();
        der.push(0x80 | (4 - zeros) as u8);
        der.extend(&length[zeros..]);
    }
    der.extend(content);
    der
}

fn first(der: &[u8]) -> Option<Element<'_>> {
    let tag = *der.first().filter(|tag| **tag & 0x1f != 0x1f)?;
    let (header, length) = match *der.get(1)? {
        short @ ..=0x7f => (2, usize::from(short)),
        long @ 0x81..=0x84 => {
            let octets = usize::from(long & 0x7f);
            let length = der.get(2..2 + octets)?;
            (2 + octets, length.iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)))
        }
        _ => return None,
    };
    let whole = der.get(..header.checked_add(length)?)?;
    Some(Element { tag, content: &whole[header..], whole })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_read_and_what_is_torn_is_not() {
        for length in [0, 1, 127, 128, 255, 256, 70_000] {
            let der = encode(0x30, &vec![7; length]);
            assert_eq!(only(&der, 0x30), Some(&vec![7; length][..]));
            assert!(only(&der, 0x31).is_none() && only(&der[..der.len() - 1], 0x30).is_none());
            assert_eq!(elements(&der.repeat(3)).unwrap().len(), 3);
        }
        for torn in [&[0x30][..], &[0x30, 0x80], &[0x30, 0x85, 0, 0, 0, 0, 0], &[0x1f, 0]] {
            assert!(elements(torn).is_none());
        }
    }
}
