//! `claviger audit verify`: reads whole logs and says what does not fit.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::json;

use super::chain_check::{self, ChainCheck, Finding, What};
use super::lines::{Files, cannot_read, each_line};
use crate::cli::failure::{Exit, Failure};
use crate::cli::input_output;
use crate::daemon::records::audit::{CheckpointError, Verifier, parse_checkpoint};

/// Checkpoints by the number of lines before them, and a finding for each without a good signature.
type Kept = (BTreeMap<u64, [u8; 32]>, Vec<Finding>);

/// The arguments of `claviger audit verify`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The public key of the checkpoints: a file as `claviger audit public-key` prints it; several where
    /// one key followed another
    #[arg(long, value_name = "FILE")]
    public_key: Vec<PathBuf>,
    /// Checkpoints that were kept elsewhere: signed notes, with an empty line between them
    #[arg(long, value_name = "FILE", requires = "public_key")]
    checkpoints: Option<PathBuf>,
    #[command(flatten)]
    files: Files,
}

/// Verifies the files as one log. The exit code is 65 where something does not fit.
pub(super) fn run(args: &Args, json: bool) -> Result<ExitCode, Failure> {
    let keys = args.public_key.iter().map(|path| read_public_keys(path));
    let verifiers = keys.collect::<Result<Vec<_>, _>>()?.concat();
    let mut kept = BTreeMap::new();
    let mut unsigned = Vec::new();
    if let Some(file) = &args.checkpoints {
        (kept, unsigned) = read_checkpoints(file, &verifiers)?;
    }
    let mut check = ChainCheck::new(verifiers, kept);
    check.findings = unsigned;
    let files = args.files.oldest_first();
    each_line(&files, |line| {
        if line.is_whole {
            check.line(line.file, line.number, line.bytes);
        } else {
            check.torn(line.file, line.number);
        }
        Ok(())
    })?;
    check.end();
    report(&check, files.len(), json)?;
    let good = check.findings.is_empty();
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(Exit::Data as u8) })
}

/// The keys in a file, a line each.
fn read_public_keys(path: &Path) -> Result<Vec<Verifier>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| cannot_read(path, &error))?;
    let keys = text.trim().lines().map(Verifier::parse).collect::<Result<Vec<_>, _>>();
    let keys =
        keys.and_then(
            |keys| {
                if keys.is_empty() { Err(CheckpointError::NotAPublicKey) } else { Ok(keys) }
            },
        );
    keys.map_err(|error| Failure::new(Exit::Configuration, format!("{}: {error}", path.display())))
}

/// The checkpoints in a file, and a finding for each that none of these keys signed.
fn read_checkpoints(path: &Path, verifiers: &[Verifier]) -> Result<Kept, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| cannot_read(path, &error))?;
    let (mut kept, mut findings) = (BTreeMap::new(), Vec::new());
    let paragraphs: Vec<&str> = text.split("\n\n").filter(|part| !part.trim().is_empty()).collect();
    for (index, note) in paragraphs.chunks(2).enumerate() {
        let note = note.join("\n\n");
        if let Ok(head) = chain_check::verify(verifiers, note.trim_start_matches('\n')) {
            kept.insert(head.records, head.sha256);
            continue;
        }
        let n = parse_checkpoint(&note).ok().map(|(_, head)| head.records);
        let (file, line) = (Some(path.display().to_string()), Some(index as u64 + 1));
        findings.push(Finding { file, line, n, what: What::BadSignature });
    }
    Ok((kept, findings))
}

fn report(check: &ChainCheck, files: usize, json: bool) -> Result<(), Failure> {
    let trusted = check.trusted_until;
    if json {
        let result = json!({
            "records": check.records,
            "files": files,
            "first_n": check.first_n,
            "before_chain": check.before_chain,
            "checkpoints": check.checkpoints,
            "trusted_until": trusted,
            "signed_until": check.signed_until,
            "findings": check.findings,
            "more_findings": check.more_findings,
        });
        return input_output::print(&result.to_string());
    }
    let mut lines: Vec<String> = check.findings.iter().map(ToString::to_string).collect();
    if check.more_findings > 0 {
        lines.push(format!("and {} more", check.more_findings));
    }
    let records = check.records;
    if lines.is_empty() {
        lines.push(format!(
            "{records} records in {files} file(s): every one follows the one before it"
        ));
    } else {
        lines.push(format!("{records} records in {files} file(s): records before {trusted} are as they were written; trust nothing behind"));
    }
    if check.before_chain > 0 {
        lines.push(format!(
            "the first {} records have no chain: a version without one wrote them",
            check.before_chain
        ));
    }
    if let Some(first) = check.first_n.filter(|first| *first > 0) {
        lines.push(format!("these files begin at record {first}; what was before is not here"));
    }
    lines.push(match (check.signed_until, check.checkpoints) {
        (0, 0) => {
            "no checkpoints: the last record could be changed, and records cut off, without a trace"
                .to_owned()
        }
        (0, _) => "checkpoints were not verified; name their key with --public-key".to_owned(),
        (until, _) => format!("signed checkpoints confirm the records before {until}"),
    });
    input_output::print(&lines.join("\n"))
}
