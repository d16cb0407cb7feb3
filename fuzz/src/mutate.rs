//! New inputs from old ones.

/// Bytes that parsers look for, and numbers at whose edges they err.
const SPECIAL: [u8; 16] =
    [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, b'%', b';', b'=', b'"', b'\'', b'[', b'\n', b'.', b'0'];

/// The longest piece that is copied, taken out or put in at a time.
const PIECE: usize = 64;

/// Makes inputs, the same ones for the same seed.
pub(crate) struct Mutator {
    state: u64,
    longest: usize,
}

impl Mutator {
    /// Inputs of at most `longest` bytes.
    pub(crate) fn new(seed: u64, longest: usize) -> Self {
        Self { state: seed.max(1), longest }
    }

    /// One of `kept`, changed in one to six places.
    pub(crate) fn next(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = kept[self.below(kept.len())].clone();
        for _ in 0..=self.below(6) {
            self.change(&mut input, kept);
        }
        input.truncate(self.longest);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, kept: &[Vec<u8>]) {
        let len = input.len();
        match self.below(8) {
            0 if len > 0 => {
                let (at, bit) = (self.below(len), self.below(8));
                input[at] ^= 1 << bit;
            }
            1 if len > 0 => {
                let at = self.below(len);
                input[at] = SPECIAL[self.below(SPECIAL.len())];
            }
            2 if len > 0 => {
                let at = self.below(len);
                input[at] = self.number() as u8;
            }
            3 if len > 0 => {
                let range = self.range(len);
                input.drain(range);
            }
            4 if len > 0 => {
                let range = self.range(len);
                let piece = input[range].to_vec();
                self.put(input, &piece);
            }
            5 => {
                let piece = [SPECIAL[self.below(SPECIAL.len())]];
                self.put(input, &piece);
            }
            6 => {
                let piece: Vec<u8> = (0..=self.below(8)).map(|_| self.number() as u8).collect();
                self.put(input, &piece);
            }
            _ => {
                let other = &kept[self.below(kept.len())];
                if !other.is_empty() {
                    let range = self.range(other.len());
                    self.put(input, &other[range]);
                }
            }
        }
    }

    /// Puts a piece in, or over what is there.
    fn put(&mut self, input: &mut Vec<u8>, piece: &[u8]) {
        let at = self.below(input.len() + 1);
        let over = if self.below(2) == 0 { 0 } else { piece.len().min(input.len() - at) };
        input.splice(at..at + over, piece.iter().copied());
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let from = self.below(len);
        let most = (len - from).min(PIECE);
        from..from + 1 + self.below(most)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// xorshift64* (Vigna, "An experimental exploration of Marsaglia's xorshift generators").
    fn number(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inputs_are_bounded_and_the_same_for_the_same_seed() {
        let kept = [Vec::new(), b"pkcs11:object=a;id=%01".to_vec()];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, 20);
            (0..1000).map(|_| mutator.next(&kept)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
        assert!(inputs(3).iter().all(|input| input.len() <= 20));
    }
}
