//! Whole logs pass; each kind of change is found where it is.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use aws_lc_rs::signature::Ed25519KeyPair;

use super::*;
use crate::daemon::records::audit::Signer;

/// A log with a checkpoint after every `every` records, and the checkpoints that were kept elsewhere.
struct Log {
    lines: Vec<Vec<u8>>,
    kept: BTreeMap<u64, [u8; 32]>,
    verifier: Verifier,
}

fn signer() -> Signer {
    let key = Ed25519KeyPair::generate().unwrap().to_pkcs8().unwrap();
    Signer::new("claviger.example.org/audit", key.as_ref()).unwrap()
}

fn log(records: u64, every: u64, signer: &Signer) -> Log {
    let (mut head, mut linked, mut kept) = (Head::START, Vec::new(), BTreeMap::new());
    for seq in 0..records {
        let line = format!(
            "{{\"seq\":{seq},\"event\":\"operation\",\"caller\":\"kc-{}\",\"outcome\":\"ok\"}}\n",
            seq % 7
        );
        head = head.link(line.as_bytes(), &mut linked);
        if (seq + 1).is_multiple_of(every) {
            kept.insert(head.records, head.sha256);
            let note = serde_json::to_string(&signer.sign(&head)).unwrap();
            let line = format!("{{\"seq\":{seq},\"event\":\"checkpoint\",\"note\":{note}}}\n");
            head = head.link(line.as_bytes(), &mut linked);
        }
    }
    let lines = linked.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
    let lines = lines.filter(|line| !line.is_empty()).collect();
    Log { lines, kept, verifier: signer.verifier() }
}

fn checked(lines: &[Vec<u8>], log: &Log) -> ChainCheck {
    let mut check = ChainCheck::new(vec![log.verifier.clone()], log.kept.clone());
    for (number, line) in (1..).zip(lines) {
        check.line("audit.jsonl", number, line);
    }
    check.end();
    check
}

fn kinds(check: &ChainCheck) -> Vec<What> {
    check.findings.iter().map(|finding| finding.what).collect()
}

#[test]
fn a_clean_log_has_no_findings_in_one_file_or_in_many() {
    let log = log(1000, 100, &signer());
    let check = checked(&log.lines, &log);
    assert_eq!(kinds(&check), []);
    assert_eq!((check.records, check.checkpoints), (1010, 10));
    assert_eq!((check.trusted_until, check.signed_until), (1009, 1009));
    // The oldest files are gone: it begins later, and fits.
    let check = checked(&log.lines[500..], &log);
    assert_eq!(kinds(&check), []);
    assert_eq!(check.first_n, Some(500));
}

type Change = fn(&mut Vec<Vec<u8>>);

#[test]
fn each_kind_of_change_is_found_and_named_with_its_line() {
    let log = log(50, 10, &signer());
    let cases: [(&str, Change, What, u64); 6] = [
        ("edited", |lines| lines[15] = replaced(&lines[15], "ok", "no"), What::WrongPrevious, 17),
        ("deleted", |lines| drop(lines.remove(15)), What::WrongNumber, 16),
        ("added", |lines| lines.insert(15, lines[14].clone()), What::WrongNumber, 16),
        ("swapped", |lines| lines.swap(15, 16), What::WrongNumber, 16),
        ("no JSON", |lines| lines[15].truncate(9), What::NotARecord, 16),
        ("no place", |lines| lines[15] = b"{\"seq\":20}".to_vec(), What::NotChained, 16),
    ];
    for (name, change, what, line) in cases {
        let mut lines = log.lines.clone();
        change(&mut lines);
        let check = checked(&lines, &log);
        assert_eq!(check.findings[0].what, what, "{name}");
        assert_eq!(check.findings[0].line, Some(line), "{name}");
        assert!(check.trusted_until <= 15, "{name}: {}", check.trusted_until);
        assert!(check.signed_until <= 10, "{name}: {}", check.signed_until);
    }
}

#[test]
fn a_first_line_that_claims_a_later_place_makes_no_record_trusted() {
    let log = log(50, 10, &signer());
    let mut lines = log.lines.clone();
    lines[0] = replaced(&lines[0], "\"n\":0", "\"n\":4");
    assert_ne!(lines[0], log.lines[0]);
    let check = checked(&lines, &log);
    assert_eq!((check.findings[0].what, check.findings[0].line), (What::WrongNumber, Some(2)));
    assert_eq!((check.trusted_until, check.signed_until), (0, 0));
}

fn replaced(line: &[u8], from: &str, to: &str) -> Vec<u8> {
    String::from_utf8(line.to_vec()).unwrap().replace(from, to).into_bytes()
}

#[test]
fn what_is_cut_off_at_the_end_is_known_to_a_checkpoint_that_was_kept_elsewhere() {
    let log = log(50, 10, &signer());
    let check = checked(&log.lines[..40], &log);
    assert_eq!(kinds(&check), [What::CutOff, What::CutOff]);
    assert_eq!([check.findings[0].n, check.findings[1].n], [Some(42), Some(53)]);
}

#[test]
fn a_log_that_was_made_anew_without_the_key_is_found_by_signature_and_by_what_was_kept() {
    let ours = log(50, 10, &signer());
    let anew = log(50, 10, &signer());
    let check = checked(&anew.lines, &ours);
    let (signatures, rewritten) = (What::BadSignature, What::Rewritten);
    assert_eq!(kinds(&check).iter().filter(|what| **what == signatures).count(), 5);
    // The records before the first checkpoint are the same in both.
    assert_eq!(kinds(&check).iter().filter(|what| **what == rewritten).count(), 4);
    assert_eq!(check.signed_until, 10);
}

#[test]
fn records_of_a_version_without_a_chain_are_counted_at_the_start_and_refused_behind_it() {
    let log = log(5, 10, &signer());
    let mut lines = vec![b"{\"seq\":0,\"event\":\"start\"}".to_vec()];
    lines.extend(log.lines.iter().cloned());
    let check = checked(&lines, &log);
    assert_eq!((kinds(&check), check.before_chain), (vec![], 1));
    lines.push(b"{\"seq\":0,\"event\":\"start\"}".to_vec());
    assert_eq!(kinds(&checked(&lines, &log)), [What::NotChained]);
}

fn below(limit: usize) -> usize {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).unwrap();
    (u64::from_le_bytes(bytes) % limit as u64) as usize
}

/// Every random edit, deletion, swap, truncation and splice before the last line is found: that one is
/// a checkpoint, which only the next one will speak of.
fn attack(records: u64, attacks: usize) {
    let log = log(records, 10, &signer());
    assert_eq!(kinds(&checked(&log.lines, &log)), []);
    for attack in 0..attacks {
        let mut lines = log.lines.clone();
        let at = below(lines.len() - 1);
        match attack % 5 {
            0 => {
                let byte = below(lines[at].len());
                // One bit of one byte, but no line end: that would be another line.
                lines[at][byte] ^= 1 << below(8);
                if lines[at][byte] == b'\n' {
                    continue;
                }
            }
            // Without its first lines a log is one whose oldest files are gone: that is said, and no
            // finding.
            1 if at == 0 => continue,
            1 => drop(lines.remove(at)),
            2 => {
                let other = below(lines.len() - 1);
                if at == other {
                    continue;
                }
                lines.swap(at, other);
            }
            3 => lines.truncate(at),
            _ => {
                let other = below(lines.len());
                let part: Vec<_> = lines[at.min(other)..=at.max(other)].to_vec();
                let to = below(lines.len());
                lines.splice(to..to, part);
            }
        }
        let check = checked(&lines, &log);
        assert!(!check.findings.is_empty(), "attack {attack} at {at} was not found");
        let first_changed = lines.iter().zip(&log.lines).position(|(a, b)| a != b);
        let first_changed = first_changed.unwrap_or(lines.len().min(log.lines.len()));
        let trusted = check.trusted_until as usize;
        // A genuine part that was moved to the front has other places than its lines.
        let moved = matches!(attack % 5, 2 | 4);
        assert!(
            moved || trusted <= first_changed,
            "attack {attack}: {trusted} trusted, {first_changed}"
        );
    }
}

#[test]
fn random_changes_of_a_log_with_checkpoints_are_all_found() {
    attack(60, 2000);
}

#[test]
#[ignore = "long: 10,000 changes of a longer log"]
fn ten_thousand_random_changes_of_a_longer_log_are_all_found() {
    attack(600, 10_000);
}

/// As a key in an HSM does it: the checkpoint stands some lines behind what it speaks of.
#[test]
fn a_checkpoint_that_was_written_later_than_it_was_signed_confirms_what_it_speaks_of() {
    let signer = signer();
    let (mut head, mut linked) = (Head::START, Vec::new());
    let mut spoken_of = head;
    for seq in 0..30 {
        head = head.link(format!("{{\"seq\":{seq}}}\n").as_bytes(), &mut linked);
        if seq == 9 {
            spoken_of = head;
        }
        if seq == 14 {
            let note = serde_json::to_string(&signer.sign(&spoken_of)).unwrap();
            let line = format!("{{\"event\":\"checkpoint\",\"note\":{note}}}\n");
            head = head.link(line.as_bytes(), &mut linked);
        }
    }
    let lines = linked.split(|byte| *byte == b'\n').map(<[u8]>::to_vec);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty()).collect();
    let verifier = signer.verifier();
    let log = Log { lines, kept: BTreeMap::new(), verifier };
    let check = checked(&log.lines, &log);
    assert_eq!((kinds(&check), check.signed_until), (vec![], 10));
    // The files with what it speaks of are gone: nothing is wrong, and nothing confirmed.
    let check = checked(&log.lines[12..], &log);
    assert_eq!((kinds(&check), check.signed_until), (vec![], 0));
    // Made anew up to the checkpoint, which cannot be signed again.
    let mut anew = Vec::new();
    let mut head = Head::START;
    for (at, line) in log.lines.iter().enumerate() {
        let text = String::from_utf8(line.clone()).unwrap();
        let body = text.split(",\"n\":").next().unwrap();
        let body = if at == 3 { "{\"seq\":4" } else { body };
        head = head.link(format!("{body}}}\n").as_bytes(), &mut anew);
    }
    let anew: Vec<_> = anew.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let check = checked(&anew[..anew.len() - 1], &log);
    assert_eq!(kinds(&check), [What::WrongCheckpoint]);
}

#[test]
fn several_keys_verify_where_one_followed_another() {
    let (first, second) = (log(50, 10, &signer()), log(50, 10, &signer()));
    let verifiers = vec![second.verifier.clone(), first.verifier.clone()];
    let mut check = ChainCheck::new(verifiers, first.kept.clone());
    for (number, line) in (1..).zip(&first.lines) {
        check.line("audit.jsonl", number, line);
    }
    check.end();
    assert_eq!((kinds(&check), check.signed_until), (vec![], 54));
}
