//! Questions on a terminal: a list with numbers, a line of text, a PIN without echo.

use std::io::{self, IsTerminal, Write};

use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::cli::failure::{Exit, Failure};

/// How answers come that no flag has given.
#[derive(Clone, Copy, Debug)]
pub(super) enum Questions {
    /// From the user.
    Ask,
    /// The default, or the only choice.
    TakeDefaults,
    /// Not at all: there is no terminal.
    Refuse,
}

/// The answer to a question with a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The place in the list, from 0.
    Listed(usize),
    /// Something else, as it was typed.
    Typed(String),
}

impl Questions {
    /// Asks where stdin and stderr are a terminal, unless `yes` says that defaults are taken.
    pub(super) fn new(yes: bool) -> Self {
        match (yes, io::stdin().is_terminal() && io::stderr().is_terminal()) {
            (true, _) => Self::TakeDefaults,
            (false, true) => Self::Ask,
            (false, false) => Self::Refuse,
        }
    }

    /// Whether a user answers.
    pub(super) fn asks(self) -> bool {
        matches!(self, Self::Ask)
    }

    /// One of `choices`, or what is typed instead. The default is in `choices`; `flag` answers without
    /// a question.
    pub(super) fn choose(
        self,
        question: &str,
        flag: &str,
        choices: &[String],
        default: Option<usize>,
    ) -> Result<Choice, Failure> {
        match (self, default) {
            (Self::TakeDefaults, Some(default)) => Ok(Choice::Listed(default)),
            (Self::TakeDefaults | Self::Refuse, _) => Err(self.missing(question, flag, choices)),
            (Self::Ask, _) => loop {
                tell(&format!("\n{question}"))?;
                for (number, choice) in choices.iter().enumerate() {
                    tell(&format!("  {}  {choice}", number + 1))?;
                }
                let shown = default.map(|number| (number + 1).to_string());
                let typed = line(shown.as_deref())?;
                match (typed.parse::<usize>(), default) {
                    (Ok(number), _) if (1..=choices.len()).contains(&number) => {
                        return Ok(Choice::Listed(number - 1));
                    }
                    (Ok(_), _) => tell(&format!("Write a number from 1 to {}.", choices.len()))?,
                    (Err(_), Some(default)) if typed.is_empty() => {
                        return Ok(Choice::Listed(default));
                    }
                    (Err(_), None) if typed.is_empty() => {}
                    (Err(_), _) => return Ok(Choice::Typed(typed)),
                }
            },
        }
    }

    /// A line of text; `default` where nothing is typed.
    pub(super) fn text(self, question: &str, flag: &str, default: &str) -> Result<String, Failure> {
        match self {
            Self::TakeDefaults => return Ok(default.to_owned()),
            Self::Refuse => return Err(self.missing(question, flag, &[default.to_owned()])),
            Self::Ask => {}
        }
        tell(&format!("\n{question}"))?;
        let typed = line(Some(default))?;
        Ok(if typed.is_empty() { default.to_owned() } else { typed })
    }

    /// A PIN, which the terminal does not show.
    pub(super) fn pin(question: &str) -> Result<Zeroizing<String>, Failure> {
        let read = rpassword::prompt_password(format!("\n{question}\n> ")).map(Zeroizing::new);
        let pin = read.map_err(|error| ended(&error.to_string()))?;
        if pin.is_empty() {
            return Err(Failure::new(Exit::Usage, "no PIN was typed"));
        }
        Ok(pin)
    }

    fn missing(self, question: &str, flag: &str, choices: &[String]) -> Failure {
        let why = match self {
            Self::TakeDefaults => "there is no only choice",
            _ => "there is no terminal to ask on",
        };
        let listed = if choices.is_empty() { "none".to_owned() } else { choices.join("; ") };
        let (_, question) = question.split_once(". ").unwrap_or(("", question));
        let question = question.split_once('?').map_or(question, |(question, _)| question);
        Failure::new(Exit::Usage, format!("{question}? {flag} is missing, and {why}"))
            .advise(format!("Found: {listed}."))
    }
}

fn tell(text: &str) -> Result<(), Failure> {
    writeln!(io::stderr(), "{text}").map_err(|error| ended(&error.to_string()))
}

/// A line as it is typed, without blanks around it.
fn line(default: Option<&str>) -> Result<String, Failure> {
    let prompt = default.map_or("> ".to_owned(), |default| format!("[{default}] > "));
    let mut stderr = io::stderr();
    let shown = write!(stderr, "{prompt}").and_then(|()| stderr.flush());
    shown.map_err(|error| ended(&error.to_string()))?;
    let mut buffer = [0; 4096];
    // A terminal gives one line at a time, so that no later answer is read with this one.
    let len = loop {
        match rustix::io::read(io::stdin(), &mut buffer) {
            Ok(len) => break len,
            Err(Errno::INTR) => {}
            Err(error) => return Err(ended(&error.to_string())),
        }
    };
    if len == 0 {
        return Err(ended("it ended"));
    }
    Ok(String::from_utf8_lossy(&buffer[..len]).trim().to_owned())
}

fn ended(reason: &str) -> Failure {
    Failure::new(Exit::Usage, format!("the terminal gave no answer: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_is_taken_and_without_one_the_flag_and_what_was_found_are_named() {
        let choices = ["one".to_owned(), "two".to_owned()];
        let taken = Questions::TakeDefaults.choose("Which?", "--it", &choices, Some(1)).unwrap();
        assert_eq!(taken, Choice::Listed(1));
        for questions in [Questions::TakeDefaults, Questions::Refuse] {
            let error = questions.choose("Which?", "--it", &choices, None).unwrap_err();
            assert_eq!(error.exit(), Exit::Usage);
            let said = error.to_string();
            assert!(said.contains("--it is missing") && said.contains("one; two"), "{said}");
        }
        let error = Questions::Refuse.choose("Which?", "--it", &[], Some(0)).unwrap_err();
        assert!(error.to_string().contains("Found: none."), "{error}");
    }
}
