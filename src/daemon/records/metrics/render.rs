//! Metric families and samples as OpenMetrics text, one function for each kind.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::handles::Histogram;

pub(crate) fn counter<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Counter)
}

pub(crate) fn gauge<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Gauge)
}

pub(crate) fn info<'s>(
    encoder: &'s mut DescriptorEncoder<'_>,
    name: &'s str,
    help: &str,
) -> Result<MetricEncoder<'s>, fmt::Error> {
    encoder.encode_descriptor(name, help, None, MetricType::Info)
}

pub(crate) fn plain_counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: u64,
) -> fmt::Result {
    counter(encoder, name, help)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

pub(crate) fn plain_gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl TryInto<i64>,
) -> fmt::Result {
    gauge(encoder, name, help)?.encode_gauge(&value.try_into().unwrap_or(i64::MAX))
}

pub(crate) fn sample_counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

pub(crate) fn sample_gauge(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: impl Into<i64>,
) -> fmt::Result {
    family.encode_family(labels)?.encode_gauge(&value.into())
}

pub(crate) fn sample_histogram(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    histogram: &Histogram,
) -> fmt::Result {
    let (buckets, sum) = histogram.counts();
    family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
        sum,
        total(&buckets),
        &buckets,
        None,
    )
}

/// Of the buckets themselves, so that count and buckets agree while calls go on.
pub(crate) fn total(buckets: &[(f64, u64)]) -> u64 {
    buckets.iter().map(|(_, count)| count).sum()
}
