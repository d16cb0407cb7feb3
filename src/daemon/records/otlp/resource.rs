//! Which process speaks: a resource, and its scope.

use std::sync::LazyLock;

use claviger_otlp::attribute;
use claviger_otlp::common::InstrumentationScope;
use claviger_otlp::resource::Resource;

/// The machine's name, if it has one.
static HOST: LazyLock<Option<String>> = LazyLock::new(|| {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    Some(name.trim().to_owned()).filter(|name| !name.is_empty())
});

/// A run of the daemon: `instance` is what the lines of its audit log call it.
pub(in crate::daemon::records) fn resource(service_name: &str, instance: &str) -> Resource {
    let mut attributes = vec![
        attribute("service.name", service_name),
        attribute("service.version", env!("CARGO_PKG_VERSION")),
    ];
    if !instance.is_empty() {
        attributes.push(attribute("service.instance.id", instance));
    }
    attributes.extend(HOST.as_deref().map(|host| attribute("host.name", host)));
    Resource { attributes, dropped_attributes_count: 0 }
}

/// The part of the daemon that speaks.
pub(in crate::daemon::records) fn scope(name: &str) -> InstrumentationScope {
    InstrumentationScope {
        name: name.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    }
}
