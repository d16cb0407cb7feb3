//! The file of failed unwraps over kills, damage and many changes.

use super::*;

fn caller_and_key(key: &str) -> CallerAndKey {
    ("key-connector".to_owned(), key.to_owned())
}

fn spent(number: u64) -> SpentUnwrap {
    let mut value = [0; 32];
    value[..8].copy_from_slice(&number.to_be_bytes());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
    let at_ms = u64::try_from(now).unwrap() - 1000;
    SpentUnwrap { at_ms, value, is_known: true, key_state: u64::MAX - number }
}

#[test]
fn what_is_written_is_read_again_and_what_is_not_written_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = FailedUnwraps::open(Some(folder.path()));
    let (a, b, c) = (caller_and_key("a"), caller_and_key("b"), caller_and_key("c"));
    file.spend(&a, spent(1));
    file.spend(&a, SpentUnwrap { is_known: false, ..spent(2) });
    file.spend(&b, spent(3));
    file.spend(&c, spent(4));
    file.take_back(&b, &spent(3).value);
    file.reset(&c);
    file.write().unwrap();
    file.spend(&a, spent(5));
    assert_eq!(file.spent(&a).len(), 3);

    let file = FailedUnwraps::open(Some(folder.path()));
    let values: Vec<_> = file.spent(&a).iter().map(|s| (s.value, s.is_known)).collect();
    assert_eq!(values, [(spent(1).value, true), (spent(2).value, false)]);
    assert_eq!(file.spent(&a)[0].key_state, u64::MAX - 1);
    assert!(file.spent(&b).is_empty() && file.spent(&c).is_empty());
}

#[test]
fn half_a_line_takes_nothing_else_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("failed-unwraps.jsonl");
    let file = FailedUnwraps::open(Some(folder.path()));
    file.spend(&caller_and_key("a"), spent(1));
    file.write().unwrap();
    let whole = fs::read(&path).unwrap();
    for len in 1..whole.len() {
        fs::write(&path, [&whole[..], &whole[..len]].concat()).unwrap();
        let file = FailedUnwraps::open(Some(folder.path()));
        file.spend(&caller_and_key("b"), spent(2));
        file.write().unwrap();
        let file = FailedUnwraps::open(Some(folder.path()));
        assert_eq!(file.spent(&caller_and_key("a")).len(), 1, "{len}");
        assert_eq!(file.spent(&caller_and_key("b")).len(), 1, "{len}");
    }
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let file = FailedUnwraps::open(Some(folder.path()));
    for number in 0..5000 {
        file.spend(&caller_and_key("a"), spent(number));
        file.take_back(&caller_and_key("a"), &spent(number).value);
        if number % 100 == 0 {
            file.write().unwrap();
        }
    }
    file.spend(&caller_and_key("a"), spent(1));
    file.write().unwrap();
    let text = fs::read_to_string(folder.path().join("failed-unwraps.jsonl")).unwrap();
    assert!(text.lines().count() <= SPARE_LINES + 300, "{}", text.lines().count());
    assert_eq!(FailedUnwraps::open(Some(folder.path())).spent(&caller_and_key("a")).len(), 1);
}

#[test]
fn a_disk_that_refuses_loses_nothing_that_it_takes_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let file = FailedUnwraps::open(Some(&path));
    file.spend(&caller_and_key("a"), spent(1));
    assert!(file.write().is_err(), "the folder is not there");
    fs::create_dir(&path).unwrap();
    file.spend(&caller_and_key("a"), spent(2));
    file.write().unwrap();
    assert_eq!(FailedUnwraps::open(Some(&path)).spent(&caller_and_key("a")).len(), 2);
}
