//! A statistical test that EME-OAEP decoding takes the same time whatever is wrong, after dudect
//! (Reparaz, Balasch, Verbauwhede 2017).

use std::fmt;
use std::hint::black_box;
use std::time::Instant;

use super::tests::encode;
use super::*;

/// Samples of each class.
const SAMPLES: usize = 1_000_000;
/// The bytes of an encoded message: a modulus of 2048 bits.
const K: usize = 256;
/// Different encoded messages of each class; each sample takes one at random.
const MESSAGES: usize = 256;
/// The largest |t| that chance explains: above it, two classes differ.
const LIMIT: f64 = 4.5;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Class {
    Valid,
    FirstByteNotZero,
    LabelHashWrong,
    LabelHashWrongLongMessage,
    NoOne,
}

const CLASSES: [Class; 5] = [
    Class::Valid,
    Class::FirstByteNotZero,
    Class::LabelHashWrong,
    Class::LabelHashWrongLongMessage,
    Class::NoOne,
];

impl Class {
    fn encoded(self, random: &mut Random) -> Vec<u8> {
        let mut seed = [0; 20];
        seed.fill_with(|| random.next() as u8);
        let other = random.next() as u8;
        let first = if self == Self::FirstByteNotZero { other | 1 } else { 0 };
        encode(K, first, &seed, |data| match self {
            Self::Valid | Self::FirstByteNotZero => (),
            Self::LabelHashWrong => data[usize::from(other) % 20] ^= 0x10,
            Self::LabelHashWrongLongMessage => {
                data[usize::from(other) % 20] ^= 0x10;
                data[22] = 1;
            }
            Self::NoOne => data[20..].fill(0),
        })
    }
}

/// xorshift64*: which sample comes next must only not follow a pattern.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) as u32
    }
}

/// Mean and variance, one sample at a time (Welford 1962).
#[derive(Clone, Copy, Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn add(&mut self, sample: f64) {
        self.count += 1.0;
        let delta = sample - self.mean;
        self.mean += delta / self.count;
        self.squares += delta * (sample - self.mean);
    }

    /// Welch's t.
    fn t(self, other: Self) -> f64 {
        let error = |m: Self| m.squares / (m.count - 1.0) / m.count;
        (self.mean - other.mean) / (error(self) + error(other)).sqrt()
    }
}

impl fmt::Display for Moments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ns of {} samples", self.mean, self.count)
    }
}

/// Two classes whose mean times differ, and Welch's t with its sign.
type Difference = (Class, Class, f64);

/// Compares each two classes. What differs is measured once more, with other messages in other
/// places: interrupts and caches make a difference once, a leak makes the same one again.
fn compare<T>(what: &str, classes: &[Class], timed: impl Fn(&[u8]) -> T) {
    let first = measure(what, 0x9E37_79B9_7F4A_7C15, classes, &timed);
    if first.is_empty() {
        return;
    }
    println!("{what}: once more");
    let mut turned = classes.to_vec();
    turned.rotate_left(1);
    let second = measure(what, 0xD1B5_4A32_D192_ED03, &turned, &timed);
    // Positive where both measurements say that the same one of the two takes longer.
    let agreement = |(a, b, t): &Difference, (c, d, u): &Difference| match (c, d) {
        (c, d) if (a, b) == (c, d) => t * u,
        (c, d) if (a, b) == (d, c) => -t * u,
        _ => 0.0,
    };
    let again: Vec<_> =
        first.iter().filter(|one| second.iter().any(|other| agreement(one, other) > 0.0)).collect();
    assert!(again.is_empty(), "{what}: the time tells what is wrong: {again:?}");
}

/// Runs `timed` on random members of `classes` in random order: which pairs have |t| above
/// [`LIMIT`].
fn measure<T>(
    what: &str,
    seed: u64,
    classes: &[Class],
    timed: impl Fn(&[u8]) -> T,
) -> Vec<Difference> {
    let mut random = Random(seed);
    let messages: Vec<Vec<Vec<u8>>> = classes
        .iter()
        .map(|class| (0..MESSAGES).map(|_| class.encoded(&mut random)).collect())
        .collect();
    // One buffer for all, so that no class has its own place in the cache.
    let mut em = vec![0; K];
    let neutral = Class::Valid.encoded(&mut random);
    let mut sample = |random: &mut Random| {
        let class = random.next() as usize % classes.len();
        em.copy_from_slice(&messages[class][random.next() as usize % MESSAGES]);
        // Leaves caches and predictors as they always are, wherever the message was copied from.
        drop(black_box(timed(black_box(&neutral))));
        let begun = Instant::now();
        let outcome = timed(black_box(&em));
        let elapsed = begun.elapsed().as_secs_f64() * 1e9;
        drop(black_box(outcome));
        (class, elapsed)
    };
    // Interrupts are longer than anything that differs: what is above the 90th percentile is left out.
    let mut pilot: Vec<f64> = (0..20_000).map(|_| sample(&mut random).1).collect();
    pilot.sort_by(f64::total_cmp);
    let cut = pilot[pilot.len() * 9 / 10];

    let mut moments = vec![Moments::default(); classes.len()];
    for _ in 0..SAMPLES * classes.len() {
        let (class, elapsed) = sample(&mut random);
        if elapsed <= cut {
            moments[class].add(elapsed);
        }
    }
    let mut differences = Vec::new();
    for (first, class) in classes.iter().enumerate() {
        println!("{what}: {class:?}: {}", moments[first]);
        for (second, other) in classes.iter().enumerate().skip(first + 1) {
            let t = moments[first].t(moments[second]);
            println!("{what}: {class:?} against {other:?}: t = {t:.2}");
            if t.abs() > LIMIT {
                differences.push((*class, *other, t));
            }
        }
    }
    differences
}

#[test]
#[ignore = "long: run by scripts/test --all"]
fn decoding_takes_the_same_time_for_success_and_for_every_failure() {
    let sha1 = OaepHash::Sha1;
    // Without the last branch, which only tells what the caller learns anyway.
    compare("decode", &CLASSES, |em| decode(em, sha1, sha1, b""));
}

#[test]
#[ignore = "long: run by scripts/test --all"]
fn unpadding_takes_the_same_time_for_every_failure() {
    let sha1 = OaepHash::Sha1;
    compare("unpad", &CLASSES[1..], |em| unpad(em, sha1, sha1, b""));
}
