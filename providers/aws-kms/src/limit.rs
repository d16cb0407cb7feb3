//! Answers of AWS's services of limited length: the SDK itself reads any length into memory.

use aws_sdk_kms::config::SharedHttpClient;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;

/// The longest answer that is read, in bytes: 1 MiB. KMS's own are a few kilobytes.
pub(crate) const MAX_ANSWER: usize = 1 << 20;

/// A client or connector whose answers end with an error after [`MAX_ANSWER`] bytes.
#[derive(Debug)]
pub(crate) struct Limited<T>(T);

impl Limited<SharedHttpClient> {
    /// A client with the limit.
    pub(crate) fn client(client: SharedHttpClient) -> SharedHttpClient {
        SharedHttpClient::new(Self(client))
    }
}

impl HttpClient for Limited<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Limited(self.0.http_connector(settings, components)))
    }
}

impl HttpConnector for Limited<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let answer = self.0.call(request);
        HttpConnectorFuture::new(async move {
            let mut answer = answer.await?;
            let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
            let limited = http_body_util::Limited::new(body, MAX_ANSWER);
            *answer.body_mut() = SdkBody::from_body_1_x(limited);
            Ok(answer)
        })
    }
}
