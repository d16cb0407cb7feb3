//! One service behind the fault proxy, with a daemon that has one key in it and a caller who may use
//! it: what each test of faults begins with.

use claviger_client::Health;
use claviger_proto::v1::UnwrapRequest;
use fault_proxy::{Fault, FaultProxy, Pattern, Times};
use tonic::Code;

use crate::connection::{Answer, Connection};
use crate::daemon::Daemon;
use crate::daemon_files::DaemonFiles;
use crate::rsa_key::RsaKey;
use crate::setup::{KEY, MATERIAL, Setup};
use crate::test_service::{ServiceKind, TestService};

/// The provider's name in the configuration.
pub const PROVIDER: &str = "remote";

/// A service, a proxy before it, and a daemon before that.
#[derive(Debug)]
pub struct FaultSetup {
    /// The daemon; it ends first.
    pub daemon: Daemon,
    /// Between daemon and service.
    pub proxy: FaultProxy,
    /// The service.
    pub service: TestService,
    /// One key and one caller.
    pub base: Setup,
}

impl FaultSetup {
    /// Sets everything up, and proves that it works.
    pub async fn set(kind: ServiceKind) -> Self {
        Self::set_with(kind, |_| {}).await
    }

    /// As [`FaultSetup::set`], with what `configure` changes.
    pub async fn set_with(kind: ServiceKind, configure: impl FnOnce(&mut DaemonFiles)) -> Self {
        let service = TestService::start(kind).await;
        let proxy = service.proxy().await;
        let mut files = DaemonFiles::new();
        service.configure(&mut files, PROVIDER, Some(&proxy)).await;
        let key = RsaKey::shared(2048);
        let stored = service.import(&key, KEY, Some(&proxy)).await.swap_remove(0);
        let mut base = Setup::at(files, key, PROVIDER, &stored.locator, stored.algorithms[0]);
        configure(&mut base.files);
        let daemon = base.start();
        let setup = Self { daemon, proxy, service, base };
        setup.wait_until_well().await;
        setup
    }

    /// Connects as the caller.
    pub async fn connect(&self) -> Connection {
        self.base.connect(&self.daemon).await
    }

    /// Requests of the service's that unwrap.
    pub fn unwraps(&self) -> Pattern {
        self.service.kind.api().unwraps()
    }

    /// Requests of the service's that unwrap the caller's value, and no canary.
    pub fn unwraps_of_value(&self) -> Pattern {
        self.service.kind.api().unwraps_of(&self.base.wrapped)
    }

    /// From now on this happens to requests that match.
    pub fn fault(&self, pattern: Pattern, times: Times, fault: Fault) {
        self.proxy.on(pattern, times, fault);
    }

    /// One unwrap: how often the caller's value reached the proxy for it, and what came back. Wrong
    /// material is a panic.
    pub async fn ask(&self, connection: &Connection) -> (usize, Result<(), Answer>) {
        let of_value = self.unwraps_of_value();
        let before = self.proxy.count(&of_value);
        let outcome = connection.unwrap(&self.base.request()).await;
        let outcome = outcome.map(|answer| {
            assert_eq!(&*answer.key_material, MATERIAL, "never a wrong answer");
        });
        (self.proxy.count(&of_value) - before, outcome)
    }

    /// Clears the script and waits until the key serves again.
    pub async fn heal(&self) {
        self.proxy.clear().await;
        self.wait_until_well().await;
    }

    /// Waits until unwrapping works and the key's health says so.
    pub async fn wait_until_well(&self) {
        self.base.wait_for(&self.daemon, Code::Ok).await;
        self.base.wait_for_key_health(&self.daemon, Health::Serving).await;
    }

    /// The request to unwrap another value of the key's.
    pub fn request_for(&self, wrapped: &[u8]) -> UnwrapRequest {
        UnwrapRequest { wrapped: wrapped.to_vec().into(), ..self.base.request() }
    }
}
