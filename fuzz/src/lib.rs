//! Mutated inputs for tests of what parses bytes of others: child protocol, configuration, locators, OAEP.
//!
//! A target is a test of the crate that it tests, so that private code needs no way out. It runs on a
//! stable toolchain. In the place of a sanitizer's coverage stands what the target says of an input:
//! one whose outcome is new is kept, and mutated further.

mod corpus;
mod mutate;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

use mutate::Mutator;

/// How many inputs are kept beside the corpus.
const MOST_KEPT: usize = 4096;
/// The variable that says how many inputs to try, in the place of a time.
const RUNS: &str = "CLAVIGER_FUZZ_RUNS";
/// The variable with another seed; without it each run tries the same inputs.
const SEED: &str = "CLAVIGER_FUZZ_SEED";

/// How long a target is run, unless `CLAVIGER_FUZZ_RUNS` says how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A few seconds, in each run of the tests.
    Short,
    /// Minutes, in `scripts/test --all`.
    Long,
}

/// A target and where it begins.
#[derive(Debug)]
pub struct Fuzz {
    name: &'static str,
    longest: usize,
    seeds: Vec<Vec<u8>>,
}

impl Fuzz {
    /// A target with the files of `fuzz/corpora/NAME`, and inputs of at most `longest` bytes.
    ///
    /// # Panics
    ///
    /// If a file of the corpus cannot be read.
    pub fn new(name: &'static str, longest: usize) -> Self {
        Self { name, longest, seeds: corpus::read(name) }
    }

    /// One more input to begin with.
    #[must_use]
    pub fn seed(mut self, input: Vec<u8>) -> Self {
        self.seeds.push(input);
        self
    }

    /// Has `target` look at each seed, and then at mutated inputs. It panics where it finds a fault, and
    /// gives a number for what came of the input: equal outcomes have equal numbers. Gives how many inputs
    /// it has seen.
    ///
    /// # Panics
    ///
    /// As the target does, after the input was written to stderr in hexadecimal.
    pub fn run(self, effort: Effort, target: impl Fn(&[u8]) -> u64) -> u64 {
        let Self { name, longest, seeds } = self;
        let judge = |input: &[u8]| {
            catch_unwind(AssertUnwindSafe(|| target(input))).unwrap_or_else(|panic| {
                eprintln!("{name}: this input, as a file of fuzz/corpora/{name}, repeats it:");
                eprintln!("{}", hex::encode(input));
                resume_unwind(panic)
            })
        };
        let limit = Limit::of(effort);
        let mut outcomes: HashSet<u64> = seeds.iter().map(|seed| judge(seed)).collect();
        let (mut kept, mut runs) = (seeds, outcomes.len() as u64);
        if kept.is_empty() {
            kept.push(Vec::new());
        }
        let mut mutator = Mutator::new(number(SEED).unwrap_or(1), longest);
        let begun = Instant::now();
        while !limit.is_reached(runs, begun) {
            let input = mutator.next(&kept);
            runs += 1;
            if outcomes.insert(judge(&input)) && kept.len() < MOST_KEPT {
                kept.push(input);
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        println!("fuzz {name}: {runs} inputs, {} outcomes, {seconds:.1} s", outcomes.len());
        runs
    }
}

/// When it ends.
enum Limit {
    Runs(u64),
    Time(Duration),
}

impl Limit {
    fn of(effort: Effort) -> Self {
        match (number(RUNS), effort) {
            (Some(runs), _) => Self::Runs(runs),
            (None, Effort::Short) => Self::Time(Duration::from_secs(2)),
            (None, Effort::Long) => Self::Time(Duration::from_mins(2)),
        }
    }

    /// The clock is looked at now and then only: it costs as much as some targets.
    fn is_reached(&self, runs: u64, begun: Instant) -> bool {
        match self {
            Self::Runs(most) => runs >= *most,
            Self::Time(time) => runs.is_multiple_of(64) && begun.elapsed() >= *time,
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is no number")))
}

/// A number for what came of an input: the same for the same parts.
pub fn outcome(parts: impl std::hash::Hash) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte at a time, as a parser goes: without what a target says it would take 2^32 inputs.
    #[test]
    fn an_input_behind_several_steps_is_found_and_its_panic_passed_on() {
        let target = |input: &[u8]| {
            let right = input.iter().zip(b"key!").take_while(|(a, b)| a == b).count();
            assert!(right < 4, "found");
            right as u64
        };
        let fuzz = Fuzz { name: "a test", longest: 16, seeds: vec![b"....".to_vec()] };
        let panic = catch_unwind(|| fuzz.run(Effort::Long, target)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"found"));
    }

    #[test]
    fn a_seed_is_tried_as_it_is() {
        let fuzz = Fuzz { name: "a test", longest: 16, seeds: vec![vec![7; 9]] };
        let saw = std::cell::Cell::new(false);
        let limited = |input: &[u8]| {
            saw.set(saw.get() || input == [7; 9]);
            assert!(input.len() <= 16);
            input.len() as u64
        };
        fuzz.run(Effort::Short, limited);
        assert!(saw.get());
    }
}
