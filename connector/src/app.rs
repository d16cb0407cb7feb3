//! What the requests share.

use std::net::IpAddr;
use std::sync::Arc;

use claviger_tokens::Issuer;
use http::HeaderValue;
use ipnet::IpNet;

use crate::accessed::Accessed;
use crate::approvals::Approvals;
use crate::config::{Config, Transport};
use crate::health::{Cached, Health};
use crate::http::Limiter;
use crate::keys::Keys;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::user::UserId;

/// The parts of a running connector.
#[derive(Debug)]
pub struct App {
    /// The database.
    pub store: Store,
    /// What opens and seals users' keys.
    pub keys: Keys,
    /// Whose tokens are good.
    pub issuer: Arc<Issuer>,
    /// Per user.
    pub user_limit: Limiter<UserId>,
    /// Per address, for requests without a good token.
    pub refused_limit: Limiter<IpAddr>,
    /// The web vault's origin.
    pub web_vault: HeaderValue,
    /// Whose `X-Forwarded-For` is believed.
    pub proxies: Vec<IpNet>,
    /// Times of access that are not stored yet.
    pub accessed: Accessed,
    /// Approvals of new devices; none: they are off.
    pub approvals: Option<Approvals>,
    /// Counters.
    pub metrics: Metrics,
    health: Cached,
}

impl App {
    /// From the configuration and the parts that have been opened.
    pub fn new(
        config: &Config,
        store: Store,
        keys: Keys,
        issuer: Arc<Issuer>,
        approvals: Option<Approvals>,
    ) -> Self {
        let web_vault = HeaderValue::from_str(&config.server.web_vault);
        let proxies = match &config.server.transport {
            Transport::Proxied(proxies) => proxies.clone(),
            Transport::Tls { .. } => Vec::new(),
        };
        Self {
            store,
            keys,
            issuer,
            user_limit: Limiter::new(config.limits.user),
            refused_limit: Limiter::new(config.limits.refused),
            web_vault: web_vault.expect("an origin is ASCII without control characters"),
            proxies,
            accessed: Accessed::default(),
            approvals,
            metrics: Metrics::new(),
            health: Cached::default(),
        }
    }

    /// Whether users can get their keys, not older than a few seconds.
    pub async fn health(&self) -> Health {
        self.health.get(&self.store, &self.keys, &self.issuer).await
    }
}
