//! One key in every backend that can import it: what any of them wraps, every other unwraps.

use claviger_proto::v1::{UnwrapRequest, WrapRequest};
use claviger_provider_api::Algorithm;
use e2e::setup::MATERIAL;
use e2e::test_service::StoredKey;
use e2e::{Backend, Connection, Daemon, DaemonFiles, RsaKey, ServiceKind, TestService, Version};

const SIZES: [usize; 2] = [2048, 3072];
const SOFTHSM: [Algorithm; 2] = [Algorithm::RsaOaep, Algorithm::Rsa15];

/// A daemon with both keys in one backend. A public key is pinned once in a configuration, so each
/// backend has a daemon of its own, and one that fixes a key's algorithm has one for each.
struct Station {
    name: String,
    algorithms: Vec<Algorithm>,
    connection: Connection,
    daemon: Daemon,
    _files: DaemonFiles,
    /// Its tokens end with it.
    _backend: Option<Backend>,
}

impl Station {
    async fn new(
        name: &str,
        mut files: DaemonFiles,
        algorithms: &[Algorithm],
        versions: Vec<Version>,
    ) -> Self {
        let names: Vec<&str> = algorithms.iter().map(|algorithm| algorithm.name()).collect();
        for (bits, version) in SIZES.into_iter().zip(versions) {
            files.key(&key_name(bits), &names, vec![version]);
        }
        let keys = SIZES.map(key_name);
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let caller = files.caller("key-connector", &keys, &["wrap", "unwrap", "read"]);
        let daemon = Daemon::start(&mut files);
        let connection = Connection::open(daemon.address(), files.pki.ca_der(), Some(&caller));
        let connection = connection.await.unwrap();
        let (name, algorithms) = (name.to_owned(), algorithms.to_vec());
        Self { name, algorithms, connection, daemon, _files: files, _backend: None }
    }

    async fn local(backend: Backend, keys: &[RsaKey], algorithms: &[Algorithm]) -> Self {
        let mut files = DaemonFiles::new();
        backend.configure(&mut files);
        let import = |(id, key)| backend.version(&files, 1, key, id);
        let versions = (1..).zip(keys).map(import).collect();
        let station = Self::new(backend.name, files, algorithms, versions).await;
        Self { _backend: Some(backend), ..station }
    }

    /// One for each place in which the service keeps the keys.
    async fn of(service: &TestService, keys: &[RsaKey], stored: &[Vec<StoredKey>]) -> Vec<Self> {
        let mut stations = Vec::new();
        for index in 0..stored[0].len() {
            let mut files = DaemonFiles::new();
            service.configure(&mut files, "backend", None).await;
            let of_place = stored.iter().map(|stored| &stored[index]);
            let versions = of_place.zip(keys).map(|(stored, key)| stored.version(key, "backend"));
            let versions = versions.collect();
            let algorithms = &stored[0][index].algorithms;
            stations.push(Self::new(service.kind.name(), files, algorithms, versions).await);
        }
        stations
    }

    async fn wrap(&self, bits: usize, algorithm: Algorithm) -> Vec<u8> {
        let request = WrapRequest {
            key: key_name(bits),
            key_material: MATERIAL.to_vec().into(),
            algorithm: algorithm.name().into(),
            ..WrapRequest::default()
        };
        let answer = self.connection.wrap(&request).await;
        let answer = answer.unwrap_or_else(|e| panic!("{}: {e}\n{}", self.name, self.daemon.log()));
        answer.wrapped.to_vec()
    }

    async fn unwraps(&self, bits: usize, algorithm: Algorithm, wrapped: &[u8]) -> bool {
        let request = UnwrapRequest {
            key: key_name(bits),
            wrapped: wrapped.to_vec().into(),
            algorithm: algorithm.name().into(),
            ..UnwrapRequest::default()
        };
        match self.connection.unwrap(&request).await {
            Ok(answer) => *answer.key_material == MATERIAL,
            Err(answer) => {
                println!("{}: {answer}\n{}", self.name, self.daemon.log());
                false
            }
        }
    }
}

fn key_name(bits: usize) -> String {
    format!("rsa-{bits}")
}

async fn cross(kinds: &[ServiceKind]) {
    let keys = SIZES.map(RsaKey::generate);
    let mut stations = vec![
        Station::local(Backend::software(), &keys, &Algorithm::ALL).await,
        Station::local(Backend::softhsm(), &keys, &SOFTHSM).await,
        Station::local(Backend::kryoptic(), &keys, &Algorithm::ALL).await,
    ];
    let mut services = Vec::new();
    for kind in kinds {
        let service = TestService::start(*kind).await;
        let mut stored = Vec::new();
        for (bits, key) in SIZES.into_iter().zip(&keys) {
            stored.push(service.import(key, &key_name(bits), None).await);
        }
        stations.extend(Station::of(&service, &keys, &stored).await);
        services.push((service, stored));
    }
    let (mut crossed, mut wrong) = (0, Vec::new());
    for (bits, algorithm) in
        SIZES.into_iter().flat_map(|bits| Algorithm::ALL.map(|algorithm| (bits, algorithm)))
    {
        let knowing: Vec<_> =
            stations.iter().filter(|s| s.algorithms.contains(&algorithm)).collect();
        println!("\nRSA-{bits}, {algorithm}: wrapped by (down), unwrapped by (across)");
        let head: Vec<_> = knowing.iter().map(|station| format!("{:>10}", station.name)).collect();
        let head = head.concat();
        println!("{:16}{head}", "");
        let mut wrapped = Vec::new();
        for station in &knowing {
            wrapped.push((station.name.clone(), station.wrap(bits, algorithm).await));
        }
        // The daemon wraps in software, whatever the backend; some services wrap too.
        for (service, stored) in &services {
            let of_size = SIZES.iter().position(|size| *size == bits).unwrap();
            let own = service.wrap(&stored[of_size][0], algorithm, &MATERIAL).await;
            wrapped.extend(own.map(|value| (format!("{} itself", service.kind.name()), value)));
        }
        for (wraps, wrapped) in &wrapped {
            print!("{wraps:16}");
            for unwraps in &knowing {
                let right = unwraps.unwraps(bits, algorithm, wrapped).await;
                print!("{:>10}", if right { "yes" } else { "NO" });
                crossed += 1;
                if !right {
                    wrong.push(format!("{algorithm}: {wraps} to {}", unwraps.name));
                }
            }
            println!();
        }
        assert!(knowing.len() >= 2, "{algorithm} is known by {}", knowing.len());
    }
    println!("\n{crossed} crossings of {} stations, {} wrong", stations.len(), wrong.len());
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_any_backend_wraps_every_other_unwraps() {
    cross(&ServiceKind::USUAL).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "long: scripts/test --all"]
async fn what_any_backend_wraps_every_other_unwraps_hashicorp_vault_included() {
    cross(&ServiceKind::ALL).await;
}
