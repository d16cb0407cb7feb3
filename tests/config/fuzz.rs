//! Mutated configurations: whatever stands in the file, it is read or refused with lines that it has.

use claviger_fuzz::{Effort, Fuzz, outcome};

use crate::{EXAMPLE, GOOD, parse};

fn configuration(input: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(input);
    match parse(&text) {
        Ok(config) => outcome((config.keys.len(), config.callers.len(), config.providers.len())),
        Err(refused) => {
            // What is not closed at the end of the file is on the line after the last one.
            let lines = text.split('\n').count();
            assert!(!refused.errors.is_empty());
            for error in &refused.errors {
                assert!(error.line.is_none_or(|line| (1..=lines).contains(&line)), "{error:?}");
                assert!(!error.message.is_empty() && !error.message.contains('\n'), "{error:?}");
            }
            // The first words of each: values in them would make every input a new one.
            let said = refused.errors.iter().map(|error| error.message.split_whitespace().take(3));
            outcome(said.map(Iterator::collect).collect::<Vec<Vec<_>>>())
        }
    }
}

fn run(effort: Effort) {
    Fuzz::new("configuration", 16 << 10)
        .seed(GOOD.as_bytes().to_vec())
        .seed(EXAMPLE.as_bytes().to_vec())
        .run(effort, configuration);
}

#[test]
fn configurations_of_any_bytes() {
    run(Effort::Short);
}

#[test]
#[ignore = "long: minutes of mutated inputs"]
fn configurations_of_any_bytes_for_minutes() {
    run(Effort::Long);
}
