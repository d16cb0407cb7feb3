//! C_FindObjects: which objects a template matches (PKCS#11 2.40 section 5.7).

use std::collections::VecDeque;
use std::sync::Arc;

use cryptoki_sys::{
    CK_OBJECT_HANDLE, CK_ULONG, CKA_CLASS, CKA_ID, CKA_LABEL, CKA_TOKEN, CKO_PRIVATE_KEY,
    CKO_PUBLIC_KEY,
};

use crate::attributes;
use crate::cka_id::{self, Fit};
use crate::config;
use crate::ffi::{Attribute, Wanted};
use crate::key::Key;
use crate::slot::Object;

/// A search: what it found and has not handed out yet.
#[derive(Debug, Default)]
pub(crate) struct Find(VecDeque<CK_OBJECT_HANDLE>);

/// Who is looking.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Viewer {
    /// Whether private keys are private, that is: seen after a login only.
    pub(crate) private: bool,
    pub(crate) logged_in: bool,
}

impl Viewer {
    /// Whether it sees an object.
    pub(crate) fn sees(self, object: &Object) -> bool {
        object.class != CKO_PRIVATE_KEY || !self.private || self.logged_in
    }
}

impl Find {
    /// Every object that has all of the wanted attributes. Where an id came as a number, only those
    /// are found that it fits best, so that a number finds one key.
    pub(crate) fn new(keys: &[Arc<Key>], wanted: &[Wanted<'_>], viewer: Viewer) -> Self {
        let fits: Vec<(Fit, Object)> = keys
            .iter()
            .flat_map(Object::all_of)
            .filter(|object| viewer.sees(object))
            .filter_map(|object| Some((fit(&object, wanted, viewer.private)?, object)))
            .collect();
        let best = fits.iter().map(|(fit, _)| *fit).min();
        Self(
            fits.iter()
                .filter(|(fit, _)| Some(*fit) == best)
                .map(|(_, object)| object.handle())
                .collect(),
        )
    }

    /// Whether it found nothing more.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next objects, at most `max`.
    pub(crate) fn next(&mut self, max: usize) -> Vec<CK_OBJECT_HANDLE> {
        self.0.drain(..max.min(self.0.len())).collect()
    }
}

/// Whether a template may be for this key, of which no more is known than how it is to look.
pub(crate) fn could_be(key: &config::Key, wanted: &[Wanted<'_>]) -> bool {
    let classes = [CKO_PRIVATE_KEY, CKO_PUBLIC_KEY].map(CK_ULONG::to_ne_bytes);
    wanted.iter().all(|(kind, value)| match *kind {
        CKA_LABEL => *value == key.label.as_bytes(),
        CKA_ID => cka_id::fit(&key.id, value).is_some(),
        CKA_CLASS => classes.iter().any(|class| class == value),
        CKA_TOKEN => *value == [1],
        _ => true,
    })
}

/// What a template asks for, in words, if it is for private keys with a label or an id.
pub(crate) fn private_key_asked_for(wanted: &[Wanted<'_>]) -> Option<String> {
    let class = CK_ULONG::to_ne_bytes(CKO_PRIVATE_KEY);
    if !wanted.iter().any(|(kind, value)| *kind == CKA_CLASS && *value == class) {
        return None;
    }
    let words = wanted.iter().filter_map(|(kind, value)| match *kind {
        CKA_LABEL => Some(format!("label {:?}", String::from_utf8_lossy(value))),
        CKA_ID => Some(format!("id {}", hex::encode(value))),
        _ => None,
    });
    let words: Vec<_> = words.collect();
    (!words.is_empty()).then(|| words.join(" and "))
}

fn fit(object: &Object, wanted: &[Wanted<'_>], private: bool) -> Option<Fit> {
    wanted.iter().try_fold(Fit::Exact, |worst, (kind, value)| {
        if *kind == CKA_ID {
            return cka_id::fit(&object.key.id, value).map(|fit| fit.max(worst));
        }
        match attributes::of(object, *kind, private) {
            Attribute::Value(own) if own == *value => Some(worst),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::tests::described;
    use cryptoki_sys::{
        CKA_DECRYPT, CKA_PRIVATE_EXPONENT, CKA_SENSITIVE, CKO_CERTIFICATE, CKO_SECRET_KEY,
    };

    const OPEN: Viewer = Viewer { private: false, logged_in: false };

    fn keys(ids: &[&[u8]]) -> Vec<Arc<Key>> {
        let key = |(index, id): (usize, &&[u8])| {
            let name = format!("key-{index}");
            let look = config::Key { id: id.to_vec(), ..config::Key::named(&name) };
            Arc::new(Key::new(index, &look, &described(&name)).unwrap())
        };
        ids.iter().enumerate().map(key).collect()
    }

    fn found(keys: &[Arc<Key>], wanted: &[Wanted<'_>], viewer: Viewer) -> Vec<CK_OBJECT_HANDLE> {
        Find::new(keys, wanted, viewer).next(100)
    }

    fn class(class: CK_ULONG) -> [u8; 8] {
        class.to_ne_bytes()
    }

    #[test]
    fn what_a_key_connector_asks_for_finds_one_private_key() {
        let keys = keys(&[&[1], &[2]]);
        let private = class(CKO_PRIVATE_KEY);
        let mut wanted = vec![(CKA_CLASS, &private[..]), (CKA_TOKEN, &[1][..])];
        wanted.push((CKA_LABEL, b"key-1"));
        assert_eq!(found(&keys, &wanted, OPEN), [5]);
        wanted.pop();
        let number = 2_u64.to_le_bytes();
        wanted.push((CKA_ID, &number));
        assert_eq!(found(&keys, &wanted, OPEN), [5]);
    }

    #[test]
    fn a_number_finds_one_key_even_where_it_could_be_read_as_two() {
        let private = class(CKO_PRIVATE_KEY);
        let number = 258_u64.to_le_bytes();
        let wanted = [(CKA_CLASS, &private[..]), (CKA_ID, &number[..])];
        assert_eq!(found(&keys(&[&[2, 1], &[1, 2]]), &wanted, OPEN), [5]);
        assert_eq!(found(&keys(&[&[2, 1], &[3]]), &wanted, OPEN), [1]);
        assert_eq!(found(&keys(&[&[1, 2], &number]), &wanted, OPEN), [5]);
    }

    #[test]
    fn a_template_matches_only_what_is_equal_in_every_attribute() {
        let keys = keys(&[&[1]]);
        let public = class(CKO_PUBLIC_KEY);
        assert_eq!(found(&keys, &[], OPEN), [1, 2]);
        assert_eq!(found(&keys, &[(CKA_CLASS, &public)], OPEN), [2]);
        assert_eq!(found(&keys, &[(CKA_SENSITIVE, &[1])], OPEN), [1]);
        assert_eq!(found(&keys, &[(CKA_DECRYPT, &[1]), (CKA_LABEL, b"key-0")], OPEN), [1]);
        for wanted in [
            (CKA_CLASS, &class(CKO_SECRET_KEY)[..]),
            (CKA_CLASS, &class(CKO_CERTIFICATE)),
            (CKA_CLASS, &public[..4]),
            (CKA_LABEL, b"key-"),
            (CKA_LABEL, b""),
            (CKA_TOKEN, &[0]),
            (CKA_PRIVATE_EXPONENT, b""),
            (0x8000_0001, b""),
            (CKA_ID, b""),
        ] {
            assert!(found(&keys, &[wanted], OPEN).is_empty(), "{wanted:?}");
        }
    }

    #[test]
    fn private_keys_are_hidden_before_a_login_only_where_they_are_private() {
        let keys = keys(&[&[1]]);
        let viewer = |private, logged_in| Viewer { private, logged_in };
        assert_eq!(found(&keys, &[], viewer(true, false)), [2]);
        assert_eq!(found(&keys, &[], viewer(true, true)), [1, 2]);
        assert_eq!(found(&keys, &[], viewer(false, false)), [1, 2]);
    }

    #[test]
    fn a_key_that_is_not_open_yet_is_missed_only_by_those_who_look_for_it() {
        let key = config::Key { id: vec![1], ..config::Key::named("a") };
        let (private, certificate) = (class(CKO_PRIVATE_KEY), class(CKO_CERTIFICATE));
        let number = 1_u64.to_le_bytes();
        for wanted in [
            &[][..],
            &[(CKA_CLASS, &private[..]), (CKA_TOKEN, &[1]), (CKA_LABEL, b"a")],
            &[(CKA_CLASS, &private), (CKA_ID, &number), (CKA_DECRYPT, &[1])],
        ] {
            assert!(could_be(&key, wanted), "{wanted:?}");
        }
        for wanted in
            [(CKA_LABEL, &b"b"[..]), (CKA_ID, &[2]), (CKA_CLASS, &certificate), (CKA_TOKEN, &[0])]
        {
            assert!(!could_be(&key, &[wanted]), "{wanted:?}");
        }
    }

    #[test]
    fn a_search_is_told_in_words_where_it_is_for_a_certain_private_key() {
        let private = class(CKO_PRIVATE_KEY);
        let number = 7_u64.to_le_bytes();
        let asked = |wanted: &[Wanted<'_>]| private_key_asked_for(wanted);
        assert_eq!(
            asked(&[(CKA_CLASS, &private), (CKA_LABEL, b"user\x1b"), (CKA_ID, &number)]).unwrap(),
            "label \"user\\u{1b}\" and id 0700000000000000"
        );
        assert_eq!(asked(&[(CKA_CLASS, &private), (CKA_TOKEN, &[1])]), None);
        assert_eq!(asked(&[(CKA_CLASS, &class(CKO_PUBLIC_KEY)), (CKA_LABEL, b"a")]), None);
    }

    #[test]
    fn objects_are_handed_out_once() {
        let mut find = Find::new(&keys(&[&[1], &[2]]), &[], OPEN);
        assert_eq!(find.next(3), [1, 2, 5]);
        assert_eq!(find.next(0), []);
        assert_eq!(find.next(3), [6]);
        assert_eq!(find.next(3), []);
    }
}
