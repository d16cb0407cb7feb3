//! The OpenTelemetry protocol (OTLP 1) for traces and logs: messages, clients and servers, generated from
//! the names and numbers of its published interface in `opentelemetry/`.

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    unused_qualifications,
    reason = "generated code"
)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/otlp.rs"));
}

pub use generated::opentelemetry::proto::collector::logs::v1 as logs_service;
pub use generated::opentelemetry::proto::collector::trace::v1 as trace_service;
pub use generated::opentelemetry::proto::common::v1 as common;
pub use generated::opentelemetry::proto::logs::v1 as logs;
pub use generated::opentelemetry::proto::resource::v1 as resource;
pub use generated::opentelemetry::proto::trace::v1 as trace;

use common::any_value::Value;
use common::{AnyValue, KeyValue};

impl From<&str> for AnyValue {
    fn from(text: &str) -> Self {
        Self { value: Some(Value::StringValue(text.to_owned())) }
    }
}

impl From<String> for AnyValue {
    fn from(text: String) -> Self {
        Self { value: Some(Value::StringValue(text)) }
    }
}

impl From<i64> for AnyValue {
    fn from(number: i64) -> Self {
        Self { value: Some(Value::IntValue(number)) }
    }
}

impl From<bool> for AnyValue {
    fn from(is: bool) -> Self {
        Self { value: Some(Value::BoolValue(is)) }
    }
}

/// An attribute.
pub fn attribute(key: &str, value: impl Into<AnyValue>) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(value.into()) }
}

/// The text of the attribute with this name; none where it is not there or no text.
pub fn text_of<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    let found = attributes.iter().find(|attribute| attribute.key == key)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}
