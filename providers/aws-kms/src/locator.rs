//! Locators: what names a key in KMS, checked before it reaches a request.

/// What an expected locator looks like, for messages.
const EXPECTED: &str = "write a key id (\"1234abcd-12ab-34cd-56ef-1234567890ab\", \"mrk-…\"), a key \
                        ARN (\"arn:aws:kms:REGION:ACCOUNT:key/ID\"), an alias (\"alias/NAME\") or an \
                        alias ARN";

/// The longest alias, with `alias/` before it (KMS API reference, CreateAlias).
const MAX_ALIAS: usize = 256;

/// The kind of a locator that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locator {
    /// A key id or a key ARN: it names one key for ever.
    Key,
    /// An alias or an alias ARN: what it names is decided by those who may update the alias.
    Alias,
}

impl Locator {
    /// Checks a locator for a provider of `region`.
    pub(crate) fn parse(text: &str, region: &str) -> Result<Self, String> {
        if !text.starts_with("arn:") {
            return resource(text).ok_or_else(|| not_a_locator(text));
        }
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        let ["arn", partition, "kms", key_region, account, resource_text] = parts[..] else {
            return Err(not_a_locator(text));
        };
        let partition_is_good =
            partition == "aws" || partition.strip_prefix("aws-").is_some_and(is_lower_kebab);
        let account_is_good = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
        let kind = match resource_text.strip_prefix("key/") {
            Some(id) => is_key_id(id).then_some(Self::Key),
            None => is_alias(resource_text).then_some(Self::Alias),
        };
        let Some(kind) = kind.filter(|_| partition_is_good && account_is_good) else {
            return Err(not_a_locator(text));
        };
        if key_region != region {
            return Err(format!(
                "{text:?} is in the region {key_region:?} and this provider talks to {region:?}; \
                 give the key to a provider with region = {key_region:?}"
            ));
        }
        Ok(kind)
    }

    pub(crate) fn is_alias(self) -> bool {
        self == Self::Alias
    }
}

/// Whether KMS named one key, and not an alias.
pub(crate) fn is_key_arn(text: &str) -> bool {
    let region = text.split(':').nth(3).unwrap_or_default();
    text.starts_with("arn:") && Locator::parse(text, region) == Ok(Locator::Key)
}

fn resource(text: &str) -> Option<Locator> {
    if is_alias(text) {
        return Some(Locator::Alias);
    }
    is_key_id(text).then_some(Locator::Key)
}

/// A UUID in lower-case hexadecimal digits, or `mrk-` and 32 of them for a multi-Region key.
fn is_key_id(id: &str) -> bool {
    let is_hex = |text: &str| text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if let Some(rest) = id.strip_prefix("mrk-") {
        return rest.len() == 32 && is_hex(rest);
    }
    let lengths = id.split('-').map(|group| if is_hex(group) { group.len() } else { 0 });
    lengths.eq([8, 4, 4, 4, 12])
}

/// `alias/` and letters, digits, `/`, `_` and `-`. AWS's own (`alias/aws/…`) are never RSA keys.
fn is_alias(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'_' | b'-');
    text.strip_prefix("alias/").is_some_and(|name| {
        !name.is_empty()
            && text.len() <= MAX_ALIAS
            && !name.starts_with("aws/")
            && name.bytes().all(letter)
    })
}

pub(crate) fn is_lower_kebab(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(letter)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn not_a_locator(text: &str) -> String {
    format!("{text:?} names no KMS key; {EXPECTED}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn every_form_of_kms_is_told_apart() {
        let mrk = "mrk-1234abcd12ab34cd56ef1234567890ab";
        let arn = |resource: &str| format!("arn:aws:kms:eu-central-1:111122223333:{resource}");
        let table = [
            (ID.to_owned(), Locator::Key),
            (mrk.to_owned(), Locator::Key),
            (arn(&format!("key/{ID}")), Locator::Key),
            (arn(&format!("key/{mrk}")), Locator::Key),
            (format!("arn:aws-us-gov:kms:eu-central-1:111122223333:key/{ID}"), Locator::Key),
            ("alias/user-keys".to_owned(), Locator::Alias),
            ("alias/team/User_keys-2026".to_owned(), Locator::Alias),
            (arn("alias/user-keys"), Locator::Alias),
        ];
        for (text, kind) in table {
            assert_eq!(Locator::parse(&text, "eu-central-1"), Ok(kind), "{text}");
        }
    }

    #[test]
    fn what_names_no_key_is_refused_with_what_to_write() {
        let long = format!("alias/{}", "a".repeat(251));
        let bad = [
            "",
            "user-keys",
            "alias/",
            "alias/aws/s3",
            "alias/a b",
            "alias/a\u{e9}",
            &long,
            "key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "1234ABCD-12AB-34CD-56EF-1234567890AB",
            "1234abcd12ab34cd56ef1234567890ab",
            "1234abcd-12ab-34cd-56ef-1234567890ab ",
            "mrk-1234",
            "arn:aws:kms:eu-central-1:111122223333:1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-central-1:1111:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:s3:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:evil:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab:1",
            "pkcs11:object=a",
            "https://vault.example/keys/a",
        ];
        for text in bad {
            let error = Locator::parse(text, "eu-central-1").unwrap_err();
            assert!(error.contains("write a key id"), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_key_of_another_region_needs_another_provider() {
        let arn = format!("arn:aws:kms:us-east-1:111122223333:key/{ID}");
        let error = Locator::parse(&arn, "eu-central-1").unwrap_err();
        assert!(error.contains("region = \"us-east-1\""), "{error}");
    }

    #[test]
    fn only_a_key_arn_is_one_key_for_ever() {
        assert!(is_key_arn(&format!("arn:aws:kms:eu-central-1:111122223333:key/{ID}")));
        for text in [ID, "", "alias/a", "arn:aws:kms:eu-central-1:111122223333:alias/a"] {
            assert!(!is_key_arn(text), "{text}");
        }
    }
}
