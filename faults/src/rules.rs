//! What to do to which call: the rules file, read again whenever it changes.
//!
//! One rule a line, `function:calls:action`; empty lines and lines that begin with `#` say nothing. The
//! function is one of PKCS#11 2.40, or `*` for each of them. Calls of a function are numbered from 1, over
//! all processes where there is a counts file: `*` (every call), `7`, `7-9`, `7-`, or `/7` (every
//! seventh). The actions are those of [`Action`]. Replace the file by a rename: a half-written one may
//! be read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `rv=CKR_DEVICE_ERROR` or `rv=0x30`: gives this code without calling the real module. On
    /// C_Decrypt or C_Sign that leaves the operation active below, as a token in trouble does.
    Return(u64),
    /// `late-rv=CKR_DEVICE_REMOVED`: calls the real module, then gives this code.
    LateReturn(u64),
    /// `sleep=2000`: waits so many milliseconds, then goes on.
    Sleep(Duration),
    /// `hang`: waits until the rule is gone from the file, then goes on.
    Hang,
    /// `abort`: ends the process by SIGABRT before the real module is called.
    Abort,
    /// `late-abort`: the same after the real module was called.
    LateAbort,
    /// `exit=3`: the module calls exit().
    Exit(i32),
    /// `crash`: ends the process by SIGSEGV.
    Crash,
    /// `leak=1024`: keeps so many MiB of memory for ever, or gives `CKR_HOST_MEMORY` where there is no
    /// more.
    Leak(u64),
    /// `logout`: logs the process out of every token, by a session of its own, then goes on.
    Logout,
    /// `close-all`: closes every session of the process, then goes on.
    CloseAll,
    /// `finalize`: calls C_Finalize, then goes on: nothing of this process works any more.
    Finalize,
    /// `print=1000`: writes so many lines to stdout, with what no terminal should see.
    Print(u64),
    /// `garbage`: success, but every byte of what C_Decrypt or C_Sign gave is inverted.
    Garbage,
    /// `length=4096`: success, but with another length of C_Decrypt's or C_Sign's output, or
    /// another number of objects found by C_FindObjects.
    Length(u64),
    /// `shuffle`: the objects that one call of C_FindObjects found, in reverse order.
    Shuffle,
    /// `flags=0x40000`: adds flags to what C_GetTokenInfo gave; also by name (`locked`,
    /// `final-try`, `count-low`, `to-be-changed`).
    Flags(u64),
    /// `clear-flags=0x400`: takes flags away from what C_GetTokenInfo gave; by name as well.
    ClearFlags(u64),
    /// `serial=0000`: another serial number in what C_GetTokenInfo gave, padded with blanks.
    Serial([u8; 16]),
    /// `nul-padded`: label and serial number of C_GetTokenInfo padded with NUL in place of blanks.
    NulPadded,
    /// `right-aligned`: label and serial number of C_GetTokenInfo padded on the left.
    RightAligned,
    /// `bad-clock`: C_GetTokenInfo says that the token has a clock, and gives no time.
    BadClock,
    /// `attribute-refused=0x162`: CKR_ATTRIBUTE_TYPE_INVALID for a call of C_GetAttributeValue or
    /// C_FindObjectsInit that has this attribute, and nothing told of any other.
    AttributeRefused(u64),
    /// `attribute-unknown=0x162`: C_GetAttributeValue tells the others, leaves the place and the
    /// length of this one as they were, and gives CKR_ATTRIBUTE_TYPE_INVALID.
    AttributeUnknown(u64),
    /// `attribute-untouched=0x162`: the same with success.
    AttributeUntouched(u64),
    /// `attribute-empty=0x202`: C_GetAttributeValue gives this attribute no length.
    AttributeEmpty(u64),
}

/// The rules in force.
#[derive(Debug)]
pub(crate) struct Rules {
    /// None: there are no rules.
    path: Option<PathBuf>,
    loaded: Mutex<(Stamp, Arc<[Rule]>)>,
}

/// Tells one content of the file from the next: inode, change time (s, ns), length. The file is
/// replaced by rename, so the inode changes even within one tick of the clock.
type Stamp = Option<(u64, i64, i64, u64)>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// None: every function.
    function: Option<String>,
    calls: Calls,
    action: Action,
}

/// Which calls of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    /// Numbers from the first to the last.
    Between(u64, u64),
    /// Every so many.
    Every(u64),
}

impl Calls {
    fn has(self, number: u64) -> bool {
        match self {
            Self::Between(first, last) => (first..=last).contains(&number),
            Self::Every(n) => number.is_multiple_of(n),
        }
    }
}

impl Rules {
    pub(crate) fn new(path: Option<PathBuf>) -> Self {
        Self { path, loaded: Mutex::new((None, Arc::new([]))) }
    }

    /// The actions for call number `number` of `function`, in the order of the file.
    pub(crate) fn actions(&self, function: &str, number: u64) -> Vec<Action> {
        let Some(path) = &self.path else { return Vec::new() };
        self.read(path)
            .iter()
            .filter(|rule| rule.function.as_ref().is_none_or(|name| name == function))
            .filter(|rule| rule.calls.has(number))
            .map(|rule| rule.action)
            .collect()
    }

    fn read(&self, path: &Path) -> Arc<[Rule]> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = fs::metadata(path)
            .ok()
            .map(|file| (file.ino(), file.ctime(), file.ctime_nsec(), file.len()));
        if stamp != loaded.0 {
            let text = fs::read_to_string(path).unwrap_or_default();
            let lines = text.lines().zip(1..).filter(|(line, _)| says_something(line));
            let rules = lines.map(|(line, number)| {
                parse(line.trim()).unwrap_or_else(|reason| {
                    crate::die(&format!("{} line {number}: {line:?}: {reason}", path.display()))
                })
            });
            *loaded = (stamp, rules.collect());
        }
        Arc::clone(&loaded.1)
    }
}

fn says_something(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with('#')
}

fn parse(line: &str) -> Result<Rule, String> {
    let mut parts = line.splitn(3, ':');
    let (Some(function), Some(calls), Some(action)) = (parts.next(), parts.next(), parts.next())
    else {
        return Err("a rule is function:calls:action".into());
    };
    if function != "*" && !crate::NAMES.contains(&function) {
        return Err(format!("{function} is no function of PKCS#11 2.40"));
    }
    let function = Some(function).filter(|name| *name != "*").map(str::to_owned);
    Ok(Rule { function, calls: parse_calls(calls)?, action: parse_action(action)? })
}

fn parse_calls(text: &str) -> Result<Calls, String> {
    if let Some(every) = text.strip_prefix('/') {
        return match number(every)? {
            0 => Err("every call is *".into()),
            every => Ok(Calls::Every(every)),
        };
    }
    Ok(match text.split_once('-') {
        _ if text == "*" => Calls::Between(1, u64::MAX),
        None => Calls::Between(number(text)?, number(text)?),
        Some((first, "")) => Calls::Between(number(first)?, u64::MAX),
        Some((first, last)) => Calls::Between(number(first)?, number(last)?),
    })
}

fn parse_action(text: &str) -> Result<Action, String> {
    Ok(match text.split_once('=') {
        None if text == "hang" => Action::Hang,
        None if text == "abort" => Action::Abort,
        None if text == "late-abort" => Action::LateAbort,
        None if text == "crash" => Action::Crash,
        None if text == "logout" => Action::Logout,
        None if text == "close-all" => Action::CloseAll,
        None if text == "finalize" => Action::Finalize,
        None if text == "garbage" => Action::Garbage,
        None if text == "shuffle" => Action::Shuffle,
        None if text == "nul-padded" => Action::NulPadded,
        None if text == "right-aligned" => Action::RightAligned,
        None if text == "bad-clock" => Action::BadClock,
        Some(("rv", code)) => Action::Return(parse_code(code)?),
        Some(("late-rv", code)) => Action::LateReturn(parse_code(code)?),
        Some(("sleep", milliseconds)) => {
            Action::Sleep(Duration::from_millis(number(milliseconds)?))
        }
        Some(("exit", code)) => {
            Action::Exit(code.parse().map_err(|_| format!("{code:?} is no exit code"))?)
        }
        Some(("leak", mebibytes)) => Action::Leak(number(mebibytes)?),
        Some(("print", lines)) => Action::Print(number(lines)?),
        Some(("length", length)) => Action::Length(number(length)?),
        Some(("flags", flags)) => Action::Flags(parse_flags(flags)?),
        Some(("serial", serial)) => Action::Serial(padded(serial)?),
        Some(("attribute-refused", attribute)) => Action::AttributeRefused(number(attribute)?),
        Some(("attribute-unknown", attribute)) => Action::AttributeUnknown(number(attribute)?),
        Some(("attribute-untouched", attribute)) => Action::AttributeUntouched(number(attribute)?),
        Some(("attribute-empty", attribute)) => Action::AttributeEmpty(number(attribute)?),
        Some(("clear-flags", flags)) => Action::ClearFlags(parse_flags(flags)?),
        _ => return Err(format!("unknown action {text:?}")),
    })
}

fn parse_code(text: &str) -> Result<u64, String> {
    match crate::code(text) {
        Some(code) => Ok(code),
        None if text.starts_with("CKR_") => Err(format!("{text} is no code of PKCS#11 3.1")),
        None => number(text),
    }
}

fn parse_flags(text: &str) -> Result<u64, String> {
    Ok(match text {
        "count-low" => cryptoki_sys::CKF_USER_PIN_COUNT_LOW,
        "final-try" => cryptoki_sys::CKF_USER_PIN_FINAL_TRY,
        "locked" => cryptoki_sys::CKF_USER_PIN_LOCKED,
        "to-be-changed" => cryptoki_sys::CKF_USER_PIN_TO_BE_CHANGED,
        bits => number(bits)?,
    })
}

fn padded(text: &str) -> Result<[u8; 16], String> {
    let mut serial = [b' '; 16];
    let place = serial.get_mut(..text.len());
    place.ok_or_else(|| format!("{text:?} is too long"))?.copy_from_slice(text.as_bytes());
    Ok(serial)
}

fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(hexadecimal) => u64::from_str_radix(hexadecimal, 16),
        None => text.parse(),
    }
    .map_err(|_| format!("{text:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_is_read_as_it_is_documented() {
        for (text, action) in [
            ("rv=0x30", Action::Return(0x30)),
            ("rv=CKR_TOKEN_NOT_PRESENT", Action::Return(0xe0)),
            ("late-rv=5", Action::LateReturn(5)),
            ("sleep=2000", Action::Sleep(Duration::from_secs(2))),
            ("hang", Action::Hang),
            ("abort", Action::Abort),
            ("late-abort", Action::LateAbort),
            ("exit=3", Action::Exit(3)),
            ("logout", Action::Logout),
            ("close-all", Action::CloseAll),
            ("finalize", Action::Finalize),
            ("garbage", Action::Garbage),
            ("shuffle", Action::Shuffle),
            ("length=0", Action::Length(0)),
            ("flags=locked", Action::Flags(0x40000)),
            ("flags=final-try", Action::Flags(0x20000)),
            ("flags=count-low", Action::Flags(0x10000)),
            ("flags=0x400", Action::Flags(0x400)),
            ("clear-flags=count-low", Action::ClearFlags(0x10000)),
            ("serial=0042", Action::Serial(*b"0042            ")),
            ("nul-padded", Action::NulPadded),
            ("right-aligned", Action::RightAligned),
            ("bad-clock", Action::BadClock),
            ("attribute-refused=0x1", Action::AttributeRefused(1)),
            ("attribute-unknown=0x162", Action::AttributeUnknown(0x162)),
            ("attribute-untouched=0x162", Action::AttributeUntouched(0x162)),
            ("attribute-empty=0x202", Action::AttributeEmpty(0x202)),
        ] {
            assert_eq!(parse(&format!("C_Decrypt:*:{text}")).unwrap().action, action, "{text}");
        }
    }

    #[test]
    fn a_rule_that_is_misspelt_is_refused_and_not_ignored() {
        for line in [
            "C_Decrypt",
            "C_Decrpyt:1:abort",
            "C_Login:x:abort",
            "C_Login:/0:abort",
            "C_Login:1:rv=zz",
            "C_Login:1:rv=CKR_PIN_WRONG",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn rules_apply_to_their_calls_and_follow_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rules");
        let write = |text: &str| {
            fs::write(folder.path().join("new"), text).unwrap();
            fs::rename(folder.path().join("new"), &path).unwrap();
        };
        let rules = Rules::new(Some(path.clone()));
        assert_eq!(rules.actions("C_Login", 1), []);
        write("# a comment\n\nC_Login:2:abort\n C_Login:2-3:hang\nC_Sign:*:garbage\n");
        assert_eq!(rules.actions("C_Login", 1), []);
        assert_eq!(rules.actions("C_Login", 2), [Action::Abort, Action::Hang]);
        assert_eq!(rules.actions("C_Login", 3), [Action::Hang]);
        write("*:/10:crash\n");
        assert_eq!(rules.actions("C_Sign", 20), [Action::Crash]);
        assert_eq!(rules.actions("C_Login", 21), []);
        write("C_Login:3-:rv=0xa0\n");
        assert_eq!(rules.actions("C_Login", 2), []);
        assert_eq!(rules.actions("C_Login", 300), [Action::Return(0xa0)]);
        assert_eq!(rules.actions("C_Sign", 1), []);
    }
}
