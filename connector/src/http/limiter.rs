//! How often one user or one address may ask: a token bucket each, in a table that has a bound.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Mutex;
use std::time::Instant;

use crate::config::Rate;

/// Entries at most; some ten megabytes.
const MOST: usize = 100_000;

/// A bucket for each key. Full buckets are forgotten.
#[derive(Debug)]
pub struct Limiter<K> {
    rate: Option<Rate>,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash> Limiter<K> {
    /// No rate: no limit.
    pub fn new(rate: Option<Rate>) -> Self {
        Self { rate, buckets: Mutex::default() }
    }

    /// Takes one; where there is none left, the seconds until there is.
    pub fn take(&self, key: K) -> Result<(), u64> {
        self.take_at(key, Instant::now())
    }

    fn take_at(&self, key: K, now: Instant) -> Result<(), u64> {
        let Some(rate) = self.rate else { return Ok(()) };
        let (most, per_second) =
            (f64::from(rate.count), f64::from(rate.count) / f64::from(rate.seconds));
        let refilled = |bucket: &Bucket| {
            most.min(bucket.left + now.duration_since(bucket.at).as_secs_f64() * per_second)
        };
        let mut buckets = self.buckets.lock().expect("nothing panics with it");
        if buckets.len() >= MOST && !buckets.contains_key(&key) {
            buckets.retain(|_, bucket| refilled(bucket) < most);
            // All of them in use: a new one begins anew rather than that the table grows.
            if buckets.len() >= MOST {
                buckets.clear();
            }
        }
        let bucket = buckets.entry(key).or_insert(Bucket { left: most, at: now });
        *bucket = Bucket { left: refilled(bucket), at: now };
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let seconds = ((1.0 - bucket.left) / per_second).ceil();
        #[expect(clippy::cast_sign_loss, reason = "it is above zero")]
        Err(seconds as u64)
    }
}

/// What counts as one address: IPv6 is handed out in networks of 64 bits.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let mut segments = v6.segments();
            segments[4..].fill(0);
            IpAddr::V6(Ipv6Addr::from(segments))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn each_has_a_bucket_of_its_own_that_fills_again() {
        let limiter = Limiter::new(Some(Rate { count: 2, seconds: 60 }));
        let now = Instant::now();
        assert_eq!(limiter.take_at("a", now), Ok(()));
        assert_eq!(limiter.take_at("a", now), Ok(()));
        assert_eq!(limiter.take_at("a", now), Err(30));
        assert_eq!(limiter.take_at("b", now), Ok(()));
        assert_eq!(limiter.take_at("a", now + Duration::from_secs(31)), Ok(()));
        assert_eq!(Limiter::new(None).take("a"), Ok(()));
    }

    #[test]
    fn the_table_has_a_bound() {
        let limiter = Limiter::new(Some(Rate { count: 1, seconds: 3600 }));
        for number in 0..MOST + 10 {
            let _ = limiter.take(number);
        }
        assert!(limiter.buckets.lock().unwrap().len() <= MOST);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let one = network("2001:db8::1".parse().unwrap());
        assert_eq!(one, network("2001:db8::ffff:1".parse().unwrap()));
        assert_ne!(one, network("2001:db8:0:1::1".parse().unwrap()));
    }
}
