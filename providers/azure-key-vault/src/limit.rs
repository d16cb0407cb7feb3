//! Answers of limited length and within a limited time: the SDK itself reads any length into memory.

use std::time::Duration;

use async_trait::async_trait;
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::{AsyncRawResponse, HttpClient, Request};
use claviger_provider_api::{self as api, Error};
use futures::TryStreamExt;

use crate::config::Config;

/// The longest answer that is read, in bytes: 1 MiB.
const MAX_ANSWER: usize = 1 << 20;

/// A request that was sent and had no answer in its time.
#[derive(Debug, thiserror::Error)]
#[error("no answer within {} ms (attempt_timeout)", .0.as_millis())]
pub(crate) struct NoAnswer(Duration);

/// HTTP with answers of limited length.
#[derive(Debug)]
pub(crate) struct Limited {
    http: reqwest::Client,
    attempt_timeout: Duration,
}

impl Limited {
    pub(crate) fn new(config: &Config, https_only: bool) -> Result<Self, Error> {
        let http = api::http::client(api::http::ClientOptions {
            ca: config.ca.as_deref(),
            identity: None,
            https_only,
            connect_timeout: config.connect_timeout.0,
        })?;
        Ok(Self { http, attempt_timeout: config.attempt_timeout.0 })
    }
}

#[async_trait]
impl HttpClient for Limited {
    async fn execute_request(&self, request: &Request) -> azure_core::Result<AsyncRawResponse> {
        let asking = async {
            let (status, headers, mut body) =
                self.http.execute_request(request).await?.deconstruct();
            let mut whole = Vec::with_capacity(8 << 10);
            while let Some(part) = body.try_next().await? {
                if whole.len() + part.len() > MAX_ANSWER {
                    let reason = format!("the answer is longer than {MAX_ANSWER} bytes");
                    return Err(azure_core::Error::with_message(
                        SdkErrorKind::DataConversion,
                        reason,
                    ));
                }
                whole.extend_from_slice(&part);
            }
            Ok(AsyncRawResponse::from_bytes(status, headers, whole))
        };
        tokio::time::timeout(self.attempt_timeout, asking).await.unwrap_or_else(|_| {
            let late = NoAnswer(self.attempt_timeout);
            Err(azure_core::Error::new(SdkErrorKind::Io, late))
        })
    }
}
