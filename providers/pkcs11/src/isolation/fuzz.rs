//! Mutated messages between the daemon and the module's process: each side takes whatever the other writes.

use claviger_fuzz::{Effort, Fuzz, outcome};
use claviger_provider_api::{Error, ErrorKind};

use super::frame::{Frames, Inbox};
use super::link::Link;
use super::message::{
    Answer, Asked, Call, Check, Event, Failure, FromChild, Log, Login, Make, Open, Opened, Outcome,
    PinWanted, Ready, Request, Start, Taken, ToChild, Unwrap,
};
use crate::fault::Fault;
use crate::making::NewPair;

/// The messages of the stream, as far as they are some.
fn read<M: prost::Message + Default>(input: &[u8]) -> Vec<M> {
    // A small buffer: one of the usual size costs more than all else.
    let (mut inbox, mut rest, mut messages) = (Inbox::with_room(64), input, Vec::new());
    while !rest.is_empty() {
        let room = inbox.room();
        let count = room.len().min(rest.len());
        room[..count].copy_from_slice(&rest[..count]);
        inbox.received(count);
        rest = &rest[count..];
        while let Ok(Some(message)) = inbox.next() {
            messages.push(message);
        }
    }
    messages
}

/// What is written again is the same.
fn write_again<M: prost::Message + Default + PartialEq>(messages: &[M]) {
    let mut frames = Frames::with_room(64);
    assert!(messages.iter().all(|message| frames.push(message)));
    assert!(read::<M>(frames.bytes()) == messages, "another message when it was written again");
}

/// The daemon reads what a module's process writes, and the process what the daemon does.
fn protocol(link: &Link, input: &[u8]) -> u64 {
    let from_child: Vec<FromChild> = read(input);
    write_again(&from_child);
    let mut kinds = Vec::new();
    for message in from_child {
        let Some(event) = message.event else { continue };
        kinds.push(std::mem::discriminant(&event));
        if let Event::Answer(answer) = event {
            if let Some(Outcome::Failure(failure)) = &answer.outcome {
                let fault = Fault::from(failure.clone());
                assert!(format!("{:?}", fault.error).len() < usize::MAX);
            }
            link.answered(answer);
        }
    }
    let to_child: Vec<ToChild> = read(input);
    write_again(&to_child);
    let mut asked = Vec::new();
    for mut message in to_child {
        message.wipe();
        let Some(request) = message.request else { continue };
        asked.push(std::mem::discriminant(&request));
        if let Request::Make(make) = &request {
            // An error or a pair, and no panic.
            let _ = NewPair::try_from(make);
        }
    }
    outcome((kinds, asked))
}

fn seeds() -> Fuzz {
    let mut fuzz = Fuzz::new("child-protocol", 2000);
    let error = Error::new(ErrorKind::Throttled { retry_after: None }, "a sentence");
    let failure = Failure::from(&Fault::of_process(error));
    let answer = |outcome| Answer { id: 0, repairs: 1, outcome: Some(outcome), queued: 7 };
    let opened = Opened { key: 7, spki: vec![0x30; 40], ..Opened::default() };
    let taken = Taken { name: "seccomp".into(), in_force: true, text: "on".into() };
    let login = Login { token: "t".into(), serial: "1".into(), error: Some("no".into()) };
    let events = [
        Event::Ready(Ready { measures: vec![taken] }),
        Event::Answer(answer(Outcome::Bytes(vec![1; 32]))),
        Event::Answer(answer(Outcome::Failure(failure))),
        Event::Answer(answer(Outcome::Opened(opened))),
        Event::Answer(answer(Outcome::Well(Check {}))),
        Event::Log(Log { level: 2, text: "a line".into() }),
        Event::PinWanted(PinWanted {}),
        Event::Login(login),
    ];
    for event in events {
        fuzz = fuzz.seed(framed(&FromChild { event: Some(event) }));
    }
    let unwrap = Unwrap { algorithm: 1, wrapped: vec![9; 256], label: vec![] };
    let call = |asked| Call { id: 3, key: 7, caller: 1, remaining: 9, asked: Some(asked) };
    let locator = "pkcs11:object=a;id=%01".to_owned();
    let make = Make { locator: locator.clone(), bits: 2048, decrypt: true, ..Make::default() };
    let requests = [
        Request::Start(Start { config: "{}".into(), ..Start::default() }),
        Request::Open(Open { key: 7, locator, ..Open::default() }),
        Request::Call(call(Asked::Unwrap(unwrap))),
        Request::Call(call(Asked::Check(Check {}))),
        Request::Make(make),
        Request::Close(7),
        Request::Cancel(3),
    ];
    for request in requests {
        fuzz = fuzz.seed(framed(&ToChild::from(request)));
    }
    fuzz
}

fn framed(message: &impl prost::Message) -> Vec<u8> {
    let mut frames = Frames::new();
    assert!(frames.push(message));
    frames.bytes().to_vec()
}

fn run(effort: Effort) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _in_runtime = runtime.enter();
    // Gone: what the link sends is not kept for it.
    let (ours, _) = tokio::net::UnixStream::pair().unwrap();
    let link = Link::new(1, ours, 64);
    seeds().run(effort, |input| protocol(&link, input));
}

#[test]
fn messages_of_any_bytes() {
    run(Effort::Short);
}

#[test]
#[ignore = "long: minutes of mutated inputs"]
fn messages_of_any_bytes_for_minutes() {
    run(Effort::Long);
}
