//! A rotation of both CAs over two daemons, in any order that leaves one of them usable at each
//! moment, with a Key Connector's start after each step; and one daemon that was forgotten.

use std::fmt;

use e2e::pki::replace;
use e2e::{Daemon, Identity, Module, Pki, Setup};

use super::Two;

/// One step of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It trusts the new CA of the other side beside the old one.
    TrustBoth(Place),
    /// It shows a certificate of the new CA.
    NewCertificate(Place),
    /// It trusts the old CA no longer.
    TrustNew(Place),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Client,
    Daemon(usize),
}

/// What a place has by now.
#[derive(Clone, Copy, Debug)]
struct Has {
    trusts_old: bool,
    trusts_new: bool,
    shows_new: bool,
}

/// The client and both daemons.
#[derive(Clone, Copy, Debug)]
struct State([Has; 3]);

impl Place {
    const ALL: [Self; 3] = [Self::Client, Self::Daemon(0), Self::Daemon(1)];

    fn index(self) -> usize {
        match self {
            Self::Client => 0,
            Self::Daemon(number) => number + 1,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl State {
    fn before() -> Self {
        Self([Has { trusts_old: true, trusts_new: false, shows_new: false }; 3])
    }

    /// What is so after a step; none where it cannot be taken yet.
    fn after(mut self, step: Step) -> Option<Self> {
        let place = |place: Place| place.index();
        match step {
            Step::TrustBoth(at) => self.0[place(at)].trusts_new = true,
            Step::NewCertificate(at) => self.0[place(at)].shows_new = true,
            Step::TrustNew(at) if self.0[place(at)].trusts_new => {
                self.0[place(at)].trusts_old = false;
            }
            Step::TrustNew(_) => return None,
        }
        self.is_usable().then_some(self)
    }

    /// Whether the client and a daemon trust each other.
    fn is_usable(&self) -> bool {
        let [client, daemons @ ..] = &self.0;
        let trusts = |a: &Has, b: &Has| if b.shows_new { a.trusts_new } else { a.trusts_old };
        daemons.iter().any(|daemon| trusts(client, daemon) && trusts(daemon, client))
    }
}

/// Every order of the nine steps that leaves a daemon usable at each moment.
fn orders() -> Vec<Vec<Step>> {
    let kinds = [Step::TrustBoth, Step::NewCertificate, Step::TrustNew];
    let steps: Vec<_> = kinds.iter().flat_map(|kind| Place::ALL.map(kind)).collect();
    let mut orders = Vec::new();
    extend(&mut Vec::new(), State::before(), &steps, &mut orders);
    orders
}

fn extend(taken: &mut Vec<Step>, state: State, steps: &[Step], orders: &mut Vec<Vec<Step>>) {
    if taken.len() == steps.len() {
        orders.push(taken.clone());
    }
    for step in steps {
        if let Some(next) = Some(*step).filter(|s| !taken.contains(s)).and_then(|s| state.after(s))
        {
            taken.push(*step);
            extend(taken, next, steps, orders);
            taken.pop();
        }
    }
}

/// Two daemons of software keys whose servers and callers have a CA each; and the CAs to come.
struct Rotation {
    daemons: [Daemon; 2],
    setups: [Setup; 2],
    module: Module,
    /// Of the servers and of the callers: the old one and the new one.
    servers: [Pki; 2],
    callers: [Pki; 2],
}

impl Rotation {
    fn new() -> Self {
        let (servers, callers) = ([Pki::new(), Pki::new()], [Pki::new(), Pki::new()]);
        let mut setups = [Setup::software(), Setup::software()];
        for setup in &setups {
            replace(&setup.files.path("clients.pem"), &callers[0].ca_pem(), 0o644);
            servers[0].server().write(&setup.files.path("."), "server");
        }
        let daemons = setups.each_mut().map(Setup::start);
        setups[0].caller = caller(&callers[0]);
        let module = Module::new(&setups[0], &[&daemons[0], &daemons[1]]);
        replace(&setups[0].files.path("caller-ca.pem"), &servers[0].ca_pem(), 0o644);
        Self { daemons, setups, module, servers, callers }
    }

    /// Takes a step, and waits until it is in force.
    fn take(&self, step: Step) {
        let both = |cas: &[Pki; 2]| format!("{}{}", cas[0].ca_pem(), cas[1].ca_pem());
        let folder = |number: usize| self.setups[number].files.path(".");
        let clients = |number: usize| self.setups[number].files.path("clients.pem");
        let client_ca = self.setups[0].files.path("caller-ca.pem");
        match step {
            Step::TrustBoth(Place::Client) => replace(&client_ca, &both(&self.servers), 0o644),
            Step::TrustNew(Place::Client) => replace(&client_ca, &self.servers[1].ca_pem(), 0o644),
            Step::NewCertificate(Place::Client) => {
                caller(&self.callers[1]).write(&folder(0), "caller");
            }
            Step::TrustBoth(Place::Daemon(number)) => {
                replace(&clients(number), &both(&self.callers), 0o644);
            }
            Step::TrustNew(Place::Daemon(number)) => {
                replace(&clients(number), &self.callers[1].ca_pem(), 0o644);
            }
            Step::NewCertificate(Place::Daemon(number)) => {
                self.servers[1].server().write(&folder(number), "server");
            }
        }
        if let Step::TrustBoth(place) | Step::TrustNew(place) | Step::NewCertificate(place) = step
            && let Place::Daemon(number) = place
        {
            super::reload(&self.daemons[number]);
        }
    }

    /// A Key Connector starts and reads.
    fn read(&self, reads: usize, after: &str) {
        let reads = reads.to_string();
        let mut host = self.module.host(e2e::module::BY_LABEL, &["first", super::AT_ONCE, &reads]);
        let output = host.output().expect("the host starts");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "after {after}: {errors}\n{}", self.module.log());
    }
}

fn caller(ca: &Pki) -> Identity {
    ca.client("spiffe://example.org/key-connector")
}

/// Rotates in so many of the orders, evenly chosen; so many reads after each step.
fn rotate(rotations: usize, reads: usize) {
    let orders = orders();
    let every = orders.len() / rotations;
    for order in orders.iter().step_by(every).take(rotations) {
        let rotation = Rotation::new();
        for (number, step) in order.iter().enumerate() {
            rotation.take(*step);
            rotation.read(reads, &format!("{} of {order:?}", number + 1));
        }
    }
    let all = rotations * 9 * reads;
    println!("{rotations} rotations of {} orders: {all} first reads, 0 failed", orders.len());
}

#[test]
fn orders_that_lock_a_key_connector_out_are_none_and_the_usual_one_is_one() {
    let orders = orders();
    let places = [Place::Daemon(0), Place::Daemon(1), Place::Client];
    let steps = [Step::TrustBoth, Step::NewCertificate, Step::TrustNew];
    let usual: Vec<_> = steps.iter().flat_map(|step| places.map(step)).collect();
    assert!(orders.contains(&usual));
    let too_early = Step::NewCertificate(Place::Client);
    assert!(!orders.iter().any(|order| order[0] == too_early), "no daemon trusts it yet");
}

#[test]
fn a_rotation_of_both_cas_with_starts_between_any_two_steps_fails_no_first_read() {
    rotate(2, 2);
}

#[test]
#[ignore = "long: scripts/test --all"]
fn rotations_of_both_cas_in_a_hundred_orders_fail_no_first_read() {
    rotate(100, 10);
}

#[test]
#[ignore = "long: scripts/test --all"]
fn a_thousand_first_reads_beside_a_daemon_that_was_forgotten_in_a_rotation_fail_never() {
    let two = Two::new();
    let new = Pki::new();
    // The second daemon and the Key Connector have the new CA; the first daemon was forgotten.
    replace(&two.setups[1].files.path("clients.pem"), &new.ca_pem(), 0o644);
    super::reload(&two.second);
    caller(&new).write(&two.setups[0].files.path("."), "caller");
    super::say("one of two daemons forgotten in a rotation", &two.read(1000));
}
