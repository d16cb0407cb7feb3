//! CKA_ID, also as hosts send it that think of it as a number.
//!
//! Some hosts let an operator configure the id as a number and send it as a CK_ULONG in the
//! machine's memory layout: id 1 comes as `01 00 00 00 00 00 00 00`. Such a value finds the key
//! whose id is that number, written with the highest byte first (as people write it) or last.

/// How well `asked` fits an id; smaller is better, none is not at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fit {
    /// The very bytes.
    Exact,
    /// A CK_ULONG; the id is the number with its highest byte first.
    Number,
    /// A CK_ULONG; the id is the number with its lowest byte first.
    Reversed,
}

/// How `asked` fits the key's `id`.
pub(crate) fn fit(id: &[u8], asked: &[u8]) -> Option<Fit> {
    if id == asked {
        return Some(Fit::Exact);
    }
    let number = u64::from_le_bytes(asked.try_into().ok()?);
    if number_of(id.iter()) == Some(number) {
        Some(Fit::Number)
    } else if number_of(id.iter().rev()) == Some(number) {
        Some(Fit::Reversed)
    } else {
        None
    }
}

/// Bytes as a number, the highest first; none if it needs more than 64 bits.
fn number_of<'a>(bytes: impl Iterator<Item = &'a u8>) -> Option<u64> {
    bytes
        .skip_while(|byte| **byte == 0)
        .try_fold(0_u64, |number, byte| (number >> 56 == 0).then(|| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_finds_the_id_that_people_wrote() {
        assert_eq!(fit(&[1], &1_u64.to_le_bytes()), Some(Fit::Number));
        assert_eq!(fit(&[0, 0, 1], &1_u64.to_le_bytes()), Some(Fit::Number));
        assert_eq!(fit(&[1, 2], &258_u64.to_le_bytes()), Some(Fit::Number));
        assert_eq!(fit(&[1, 2], &513_u64.to_le_bytes()), Some(Fit::Reversed));
        assert_eq!(fit(&[0xff; 8], &u64::MAX.to_le_bytes()), Some(Fit::Exact));
        assert_eq!(fit(&[1], &2_u64.to_le_bytes()), None);
        assert_eq!(fit(&[1; 9], &1_u64.to_le_bytes()), None);
    }

    #[test]
    fn only_eight_bytes_are_a_number() {
        assert_eq!(fit(&[1], &[1]), Some(Fit::Exact));
        assert_eq!(fit(&[1], &[1, 0]), None);
        assert_eq!(fit(&[1], &1_u32.to_le_bytes()), None);
        assert_eq!(fit(&[1], &[]), None);
    }

    #[test]
    fn exact_bytes_are_better_than_any_number() {
        assert!(Fit::Exact < Fit::Number && Fit::Number < Fit::Reversed);
    }
}
