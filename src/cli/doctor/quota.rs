//! What each kind of backend allows, in a line: where to look when it throttles.

/// What the backends of a provider's `type` allow by default, as their vendors say.
pub(super) fn hint(type_name: &str) -> &'static str {
    match type_name {
        "pkcs11" => {
            "no quota; the token's own number of sessions, of which the daemon takes `sessions` and \
             two more while it runs, and its own speed"
        }
        "software" => "no quota; one operation per processor core at a time",
        "aws-kms" => {
            "1,000 requests a second with RSA keys by default, shared by everything in the account \
             and region; more through Service Quotas"
        }
        "azure-key-vault" => {
            "in ten seconds, for each vault and region: 2,000 operations with RSA-2048 in hardware, \
             500 with RSA-3072, 250 with RSA-4096, twice as many in software; five times that for a \
             subscription. A Managed HSM has its own"
        }
        "gcp-kms" => {
            "per project and location, in requests a minute, enforced by the second; the Quotas page \
             of the project shows and raises them"
        }
        "vault-transit" => "none but the rate limit quotas that its operator set (`sys/quotas`)",
        _ => "not known",
    }
}

#[cfg(test)]
mod tests {
    use super::hint;
    use crate::daemon::backends::PROVIDER_TYPES;

    #[test]
    fn every_type_of_provider_has_its_line() {
        for provider in PROVIDER_TYPES {
            assert_ne!(hint(provider.name), "not known", "{}", provider.name);
        }
    }
}
