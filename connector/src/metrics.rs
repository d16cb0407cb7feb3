//! Counters in OpenMetrics.

use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::keys::KeyError;
use crate::token::Refusal;

type Labels = [(&'static str, &'static str); 3];
type Reason = [(&'static str, &'static str); 1];

/// The counters of one process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<Labels, Counter>,
    seconds: Family<Reason, Histogram, fn() -> Histogram>,
    refused: Family<Reason, Counter>,
    failed: Family<Reason, Counter>,
    healthy: Gauge,
    open: Gauge,
}

impl Metrics {
    /// All at zero.
    #[expect(clippy::new_without_default, reason = "each call makes another registry")]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("claviger_connector");
        let requests = Family::<Labels, Counter>::default();
        registry.register("requests", "Requests by route, method and status", requests.clone());
        let buckets: fn() -> Histogram =
            || Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0]);
        let seconds = Family::<Reason, Histogram, _>::new_with_constructor(buckets);
        registry.register("request_seconds", "Time to answer, by route", seconds.clone());
        let refused = Family::<Reason, Counter>::default();
        registry.register("refused", "Requests without a good token, by reason", refused.clone());
        let failed = Family::<Reason, Counter>::default();
        registry.register(
            "failed",
            "Users' keys that were not to be had, by reason",
            failed.clone(),
        );
        let healthy = Gauge::default();
        registry.register("healthy", "1 while users can get their keys", healthy.clone());
        let open = Gauge::default();
        registry.register("symmetric_key_open", "1 while the symmetric key is open", open.clone());
        Self { registry, requests, seconds, refused, failed, healthy, open }
    }

    pub(crate) fn request(
        &self,
        route: &'static str,
        method: &Method,
        status: StatusCode,
        time: Duration,
    ) {
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PUT => "PUT",
            Method::HEAD => "HEAD",
            Method::OPTIONS => "OPTIONS",
            _ => "other",
        };
        let status = STATUSES.iter().find(|(code, _)| *code == status.as_u16());
        let status = status.map_or("other", |(_, text)| text);
        self.requests
            .get_or_create(&[("route", route), ("method", method), ("status", status)])
            .inc();
        self.seconds.get_or_create(&[("route", route)]).observe(time.as_secs_f64());
    }

    pub(crate) fn refused(&self, refusal: Refusal) {
        let reason = match refusal {
            Refusal::NoToken => "no_token",
            Refusal::Bad(_) | Refusal::Invalid(_) => "invalid_token",
            Refusal::Forbidden(_) => "forbidden",
            Refusal::NotNow => "issuer_unknown",
        };
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn failed(&self, reason: &KeyError) {
        let reason = match reason {
            KeyError::NotNow(_) => "daemon",
            KeyError::Wrong(_) => "does_not_open",
            KeyError::TooLong => "too_long",
            KeyError::Store(_) => "database",
        };
        self.failed.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn observe(&self, healthy: bool, open: bool) {
        self.healthy.set(healthy.into());
        self.open.set(open.into());
    }

    /// The text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        encode(&mut text, &self.registry).expect("a String takes everything");
        text
    }
}

const STATUSES: [(u16, &str); 12] = [
    (200, "200"),
    (204, "204"),
    (400, "400"),
    (401, "401"),
    (403, "403"),
    (404, "404"),
    (405, "405"),
    (413, "413"),
    (415, "415"),
    (429, "429"),
    (500, "500"),
    (503, "503"),
];
