//! SPIFFE IDs of workloads (the SPIFFE ID standard, sections 2.1 to 2.3): what certificates, grants
//! and lists name callers by.

/// The longest ID, in bytes (section 2.3).
const MAX_LENGTH: usize = 2048;

/// Whether this is the ID of a workload: a trust domain in lower case and a path; no user, port,
/// query, fragment or percent-encoding.
///
/// # Errors
///
/// What is wrong, as the end of a sentence.
pub fn check(id: &str) -> Result<(), &'static str> {
    if id.len() > MAX_LENGTH {
        return Err("is longer than 2048 bytes");
    }
    let rest = id.strip_prefix("spiffe://").ok_or("does not begin with \"spiffe://\"")?;
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let of_domain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b".-_".contains(&c);
    if !(1..=255).contains(&domain.len()) || !domain.bytes().all(of_domain) {
        return Err("has a trust domain that is not of a-z, 0-9, \".\", \"-\" and \"_\" only");
    }
    if path.is_empty() {
        return Err("names a trust domain and no workload in it");
    }
    let of_path = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
    let good_segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(of_path);
    if !path.split('/').all(good_segment) {
        return Err(
            "has a path segment that is empty, a dot segment, or not of letters, digits, \".\", \"-\" and \"_\"",
        );
    }
    Ok(())
}

/// Whether [`check`] finds nothing wrong.
pub fn is_id(id: &str) -> bool {
    check(id).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_standard() {
        for id in ["spiffe://example.org/key-connector", "spiffe://a_b-1.c/x/Y.z_1"] {
            assert_eq!(check(id), Ok(()), "{id}");
        }
        let long = format!("spiffe://a/{}", "x".repeat(2038));
        for (id, expected) in [
            (&*long, "longer"),
            ("SPIFFE://a/x", "begin"),
            ("https://a/x", "begin"),
            ("spiffe:/x", "begin"),
            ("spiffe://", "trust domain"),
            ("spiffe:///x", "trust domain"),
            ("spiffe://A/x", "trust domain"),
            ("spiffe://a:1/x", "trust domain"),
            ("spiffe://u@a/x", "trust domain"),
            ("spiffe://a", "no workload"),
            ("spiffe://a/", "no workload"),
            ("spiffe://a/x/", "segment"),
            ("spiffe://a//x", "segment"),
            ("spiffe://a/../x", "segment"),
            ("spiffe://a/./x", "segment"),
            ("spiffe://a/x?q", "segment"),
            ("spiffe://a/x#f", "segment"),
            ("spiffe://a/%41", "segment"),
        ] {
            let said = check(id).unwrap_err();
            assert!(said.contains(expected), "{id}: {said}");
        }
    }
}
