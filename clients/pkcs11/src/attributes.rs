//! What the objects of a key say about themselves (PKCS#11 2.40 sections 4.6 to 4.9 and 2.1 of the
//! mechanisms' specification).

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use cryptoki_sys::{
    CK_ATTRIBUTE_TYPE, CK_CERTIFICATE_CATEGORY_UNSPECIFIED, CK_SECURITY_DOMAIN_UNSPECIFIED,
    CK_ULONG, CK_UNAVAILABLE_INFORMATION, CKA_ALLOWED_MECHANISMS, CKA_ALWAYS_AUTHENTICATE,
    CKA_ALWAYS_SENSITIVE, CKA_CERTIFICATE_CATEGORY, CKA_CERTIFICATE_TYPE, CKA_CHECK_VALUE,
    CKA_CLASS, CKA_COEFFICIENT, CKA_COPYABLE, CKA_DECRYPT, CKA_DERIVE, CKA_DESTROYABLE,
    CKA_ENCRYPT, CKA_END_DATE, CKA_EXPONENT_1, CKA_EXPONENT_2, CKA_EXTRACTABLE,
    CKA_HASH_OF_ISSUER_PUBLIC_KEY, CKA_HASH_OF_SUBJECT_PUBLIC_KEY, CKA_ID, CKA_ISSUER,
    CKA_JAVA_MIDP_SECURITY_DOMAIN, CKA_KEY_GEN_MECHANISM, CKA_KEY_TYPE, CKA_LABEL, CKA_LOCAL,
    CKA_MODIFIABLE, CKA_MODULUS, CKA_MODULUS_BITS, CKA_NAME_HASH_ALGORITHM, CKA_NEVER_EXTRACTABLE,
    CKA_PRIME_1, CKA_PRIME_2, CKA_PRIVATE, CKA_PRIVATE_EXPONENT, CKA_PUBLIC_EXPONENT,
    CKA_PUBLIC_KEY_INFO, CKA_SENSITIVE, CKA_SERIAL_NUMBER, CKA_SIGN, CKA_SIGN_RECOVER,
    CKA_START_DATE, CKA_SUBJECT, CKA_TOKEN, CKA_TRUSTED, CKA_UNWRAP, CKA_URL, CKA_VALUE,
    CKA_VERIFY, CKA_VERIFY_RECOVER, CKA_WRAP, CKA_WRAP_WITH_TRUSTED, CKC_X_509, CKK_RSA, CKM_SHA_1,
    CKO_CERTIFICATE, CKO_PRIVATE_KEY, CKO_PUBLIC_KEY,
};

use crate::certificate::Certificate;
use crate::ffi::Attribute::{self, Sensitive, Unknown};
use crate::key::Key;
use crate::mechanism;
use crate::slot::Object;

/// What an object says about one attribute. `private` is what a private key says of CKA_PRIVATE:
/// whether it is seen after a login only.
pub(crate) fn of(object: &Object, kind: CK_ATTRIBUTE_TYPE, private: bool) -> Attribute {
    let key = &*object.key;
    match kind {
        CKA_CLASS => number(object.class),
        CKA_LABEL => bytes(key.label.as_bytes()),
        CKA_ID => bytes(&key.id),
        CKA_TOKEN => truth(true),
        CKA_PRIVATE => truth(private && object.class == CKO_PRIVATE_KEY),
        CKA_MODIFIABLE | CKA_COPYABLE | CKA_DESTROYABLE => truth(false),
        _ => match (object.class, &key.certificate) {
            (CKO_CERTIFICATE, Some(certificate)) => of_certificate(certificate, kind),
            (CKO_CERTIFICATE, None) => Unknown,
            (class, _) => of_key(key, class, kind),
        },
    }
}

fn of_key(key: &Key, class: CK_ATTRIBUTE_TYPE, kind: CK_ATTRIBUTE_TYPE) -> Attribute {
    match kind {
        CKA_KEY_TYPE => number(CKK_RSA),
        // The backend knows how and when the key was made; the daemon is not told.
        CKA_KEY_GEN_MECHANISM => number(CK_UNAVAILABLE_INFORMATION),
        CKA_LOCAL | CKA_DERIVE => truth(false),
        CKA_START_DATE | CKA_END_DATE => bytes(&[]),
        CKA_SUBJECT => bytes(key.certificate.as_ref().map_or(&[], |c| c.subject.as_slice())),
        CKA_MODULUS => bytes(key.public_key.modulus()),
        CKA_PUBLIC_EXPONENT => bytes(key.public_key.exponent()),
        CKA_PUBLIC_KEY_INFO => bytes(key.public_key.spki()),
        CKA_ALLOWED_MECHANISMS => Attribute::Value(
            mechanism::of_key(key).flat_map(|(kind, _)| kind.to_ne_bytes()).collect(),
        ),
        _ if class == CKO_PRIVATE_KEY => of_private_key(key, kind),
        _ => of_public_key(key, kind),
    }
}

/// Nothing of a private key ever leaves its backend; for a host it was always so.
fn of_private_key(key: &Key, kind: CK_ATTRIBUTE_TYPE) -> Attribute {
    match kind {
        CKA_SENSITIVE | CKA_ALWAYS_SENSITIVE | CKA_NEVER_EXTRACTABLE => truth(true),
        // CKA_UNWRAP: C_UnwrapKey would have to keep a key in this process.
        CKA_EXTRACTABLE
        | CKA_WRAP_WITH_TRUSTED
        | CKA_ALWAYS_AUTHENTICATE
        | CKA_UNWRAP
        | CKA_SIGN_RECOVER => truth(false),
        CKA_DECRYPT => truth(!key.unwraps.is_empty()),
        CKA_SIGN => truth(!key.signs.is_empty()),
        CKA_PRIVATE_EXPONENT | CKA_PRIME_1 | CKA_PRIME_2 | CKA_EXPONENT_1 | CKA_EXPONENT_2
        | CKA_COEFFICIENT => Sensitive,
        _ => Unknown,
    }
}

fn of_public_key(key: &Key, kind: CK_ATTRIBUTE_TYPE) -> Attribute {
    match kind {
        CKA_MODULUS_BITS => number(key.public_key.modulus_bits() as CK_ULONG),
        CKA_ENCRYPT => truth(!key.wraps.is_empty()),
        CKA_VERIFY => truth(!key.verifies.is_empty()),
        CKA_WRAP | CKA_VERIFY_RECOVER | CKA_TRUSTED => truth(false),
        _ => Unknown,
    }
}

fn of_certificate(certificate: &Certificate, kind: CK_ATTRIBUTE_TYPE) -> Attribute {
    match kind {
        CKA_CERTIFICATE_TYPE => number(CKC_X_509),
        CKA_CERTIFICATE_CATEGORY => number(CK_CERTIFICATE_CATEGORY_UNSPECIFIED),
        CKA_JAVA_MIDP_SECURITY_DOMAIN => number(CK_SECURITY_DOMAIN_UNSPECIFIED),
        CKA_NAME_HASH_ALGORITHM => number(CKM_SHA_1),
        CKA_TRUSTED => truth(false),
        CKA_VALUE => bytes(&certificate.der),
        CKA_SUBJECT => bytes(&certificate.subject),
        CKA_ISSUER => bytes(&certificate.issuer),
        CKA_SERIAL_NUMBER => bytes(&certificate.serial_number),
        CKA_PUBLIC_KEY_INFO => bytes(&certificate.public_key),
        CKA_START_DATE => bytes(&certificate.not_before),
        CKA_END_DATE => bytes(&certificate.not_after),
        CKA_CHECK_VALUE => {
            bytes(&digest(&SHA1_FOR_LEGACY_USE_ONLY, &certificate.der).as_ref()[..3])
        }
        CKA_URL | CKA_HASH_OF_SUBJECT_PUBLIC_KEY | CKA_HASH_OF_ISSUER_PUBLIC_KEY => bytes(&[]),
        _ => Unknown,
    }
}

fn bytes(bytes: &[u8]) -> Attribute {
    Attribute::Value(bytes.to_vec())
}

fn number(number: CK_ULONG) -> Attribute {
    bytes(&number.to_ne_bytes())
}

fn truth(truth: bool) -> Attribute {
    bytes(&[u8::from(truth)])
}

/// The length of all that an object would tell, for C_GetObjectSize.
pub(crate) fn size(object: &Object) -> usize {
    let key = &object.key;
    match (object.class, &key.certificate) {
        (CKO_CERTIFICATE, Some(certificate)) => certificate.der.len(),
        (CKO_PUBLIC_KEY | CKO_PRIVATE_KEY, _) => key.public_key.spki().len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::key;
    use std::sync::Arc;

    fn object(class: CK_ULONG) -> Object {
        Object { key: Arc::new(key(&["RSA-OAEP"], &["RS256"])), class }
    }

    #[test]
    fn a_private_key_is_sensitive_never_extractable_and_keeps_its_secrets() {
        let object = object(CKO_PRIVATE_KEY);
        for kind in [CKA_SENSITIVE, CKA_ALWAYS_SENSITIVE, CKA_NEVER_EXTRACTABLE, CKA_TOKEN] {
            assert_eq!(of(&object, kind, false), truth(true), "{kind:#x}");
        }
        for kind in
            [CKA_EXTRACTABLE, CKA_MODIFIABLE, CKA_LOCAL, CKA_UNWRAP, CKA_ALWAYS_AUTHENTICATE]
        {
            assert_eq!(of(&object, kind, false), truth(false), "{kind:#x}");
        }
        for kind in [CKA_PRIVATE_EXPONENT, CKA_PRIME_1, CKA_PRIME_2, CKA_COEFFICIENT] {
            assert_eq!(of(&object, kind, false), Sensitive, "{kind:#x}");
        }
        assert_eq!(of(&object, CKA_CLASS, false), number(CKO_PRIVATE_KEY));
        assert_eq!(of(&object, CKA_DECRYPT, false), truth(true));
        assert_eq!(of(&object, CKA_SIGN, false), truth(true));
        assert_eq!(of(&object, CKA_MODULUS, false), bytes(object.key.public_key.modulus()));
        assert_eq!(of(&object, CKA_VALUE, false), Unknown);
        assert_eq!(of(&object, CKA_MODULUS_BITS, false), Unknown);
    }

    #[test]
    fn only_a_private_key_is_ever_private() {
        assert_eq!(of(&object(CKO_PRIVATE_KEY), CKA_PRIVATE, true), truth(true));
        assert_eq!(of(&object(CKO_PRIVATE_KEY), CKA_PRIVATE, false), truth(false));
        assert_eq!(of(&object(CKO_PUBLIC_KEY), CKA_PRIVATE, true), truth(false));
    }

    #[test]
    fn a_public_key_has_no_secrets_to_keep() {
        let object = object(CKO_PUBLIC_KEY);
        assert_eq!(of(&object, CKA_MODULUS_BITS, false), number(2048));
        assert_eq!(of(&object, CKA_ENCRYPT, false), truth(true));
        assert_eq!(of(&object, CKA_VERIFY, false), truth(true));
        assert_eq!(of(&object, CKA_SENSITIVE, false), Unknown);
        assert_eq!(of(&object, CKA_PRIVATE_EXPONENT, false), Unknown);
    }
}
