//! `claviger rewrap FILE...`: many values, batch by batch, with progress; what is done stays done.

use std::collections::{HashSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use claviger_client::{Client, Code, Recipient, RewrapItem};
use claviger_files::NewMode;
use serde_json::json;

use super::connection::ConnectionArgs;
use super::failure::{self, Exit, Failure};
use super::input_output::{self, BytesArgs};
use super::rewrap::describe;
use super::stored;

/// Items in one call.
const BATCH_ITEMS: usize = 64;
/// Bytes in one call; a message has 64 KiB at most.
const BATCH_BYTES: usize = 60 * 1024;
/// What an item takes beside its value, public key, names and labels.
const ITEM_OVERHEAD: usize = 128;
/// A limit that asks for more patience than this fails the value.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// Batches in a row that got nothing done, before it is given up.
const IDLE_BATCHES: u32 = 30;

/// Which files, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Plan<'a> {
    /// One wrapped value in each.
    pub files: &'a [PathBuf],
    /// Where results go, under the files' names.
    pub folder: &'a Path,
    /// Pass over files that have a result.
    pub resume: bool,
    /// Bytes or text.
    pub bytes: &'a BytesArgs,
    /// One JSON object per file on stdout.
    pub json: bool,
}

/// A value on its way.
#[derive(Debug)]
struct Job {
    file: PathBuf,
    result: PathBuf,
    item: RewrapItem,
}

/// Rewraps every file as `template` says.
pub fn run(
    plan: &Plan<'_>,
    template: &RewrapItem,
    connection: &ConnectionArgs,
) -> Result<(), Failure> {
    let jobs = jobs(plan, template)?;
    let total = jobs.len();
    let failed = connection.call(async |client| Ok(rewrap_all(client, plan, jobs).await))??;
    let Some(worst) = failed.iter().copied().reduce(Exit::or_worse) else { return Ok(()) };
    let failure =
        Failure::new(worst, format!("{} of {total} values were not rewrapped", failed.len()));
    if failed.len() == total {
        return Err(failure);
    }
    Err(failure.advise("The others are done; --resume passes over them."))
}

/// All files are read, and all results are known to be free, before the daemon is asked.
fn jobs(plan: &Plan<'_>, template: &RewrapItem) -> Result<VecDeque<Job>, Failure> {
    let folder = plan.folder;
    fs::create_dir_all(folder).map_err(|error| {
        Failure::new(Exit::Usage, format!("--out: {}: {error}", folder.display()))
    })?;
    let mut names = HashSet::new();
    let mut jobs = VecDeque::new();
    for file in plan.files {
        let refused =
            |reason: &str| Failure::new(Exit::Usage, format!("{}: {reason}", file.display()));
        let name = file.file_name().ok_or_else(|| refused("is no file"))?;
        if !names.insert(name) {
            return Err(refused("another file has this name, and so would its result"));
        }
        let result = folder.join(name);
        if result.exists() {
            if plan.resume {
                continue;
            }
            return Err(refused("has a result already")
                .advise("Name another folder, or pass over such files with --resume."));
        }
        let content = stored::read_file(file, "wrapped value")?;
        let wrapped = plan.bytes.decoded(content, "wrapped value").map_err(|failure| {
            Failure::new(Exit::Data, format!("{}: {failure}", file.display()))
        })?;
        let item = RewrapItem { wrapped, ..template.clone() };
        jobs.push_back(Job { file: file.clone(), result, item });
    }
    Ok(jobs)
}

/// Gives what each value that failed for good would have ended the process with.
async fn rewrap_all(
    client: &Client,
    plan: &Plan<'_>,
    mut waiting: VecDeque<Job>,
) -> Result<Vec<Exit>, Failure> {
    let total = waiting.len();
    let (mut done, mut idle) = (0, 0);
    let mut failed = Vec::new();
    while !waiting.is_empty() {
        let batch = next_batch(&mut waiting);
        let items: Vec<_> = batch.iter().map(|job| job.item.clone()).collect();
        let results = client.rewrap_batch(&items).await?;
        let before = done + failed.len();
        let mut pause = Duration::ZERO;
        for (job, result) in batch.into_iter().zip(results) {
            match result {
                Ok(rewrapped) => {
                    let encoded = plan.bytes.output().encoded(&rewrapped.wrapped);
                    write_result(&job.result, &encoded)?;
                    done += 1;
                    if plan.json {
                        let mut line = describe(&rewrapped);
                        line["file"] = job.file.display().to_string().into();
                        line["result"] = job.result.display().to_string().into();
                        input_output::print(&line.to_string())?;
                    }
                }
                Err(error) => {
                    let wait = error.retry_after.filter(|wait| *wait <= LONGEST_WAIT);
                    if let (Code::ResourceExhausted, Some(wait), true) =
                        (error.code, wait, idle < IDLE_BATCHES)
                    {
                        pause = pause.max(wait);
                        waiting.push_back(job);
                        continue;
                    }
                    let failure = Failure::from(error);
                    report(plan, &job.file, &failure)?;
                    failed.push(failure.exit());
                }
            }
        }
        idle = if done + failed.len() == before { idle + 1 } else { 0 };
        if !plan.json {
            let failures = match failed.len() {
                0 => String::new(),
                failed => format!(", {failed} failed"),
            };
            failure::tell(&format!("{done} of {total} rewrapped{failures}"));
        }
        tokio::time::sleep(pause).await;
    }
    Ok(failed)
}

fn next_batch(waiting: &mut VecDeque<Job>) -> Vec<Job> {
    let mut batch = Vec::new();
    let mut room = BATCH_BYTES;
    while let Some(job) = waiting.front() {
        let bytes = size(&job.item);
        if batch.len() == BATCH_ITEMS || (bytes > room && !batch.is_empty()) {
            break;
        }
        room = room.saturating_sub(bytes);
        batch.extend(waiting.pop_front());
    }
    batch
}

fn size(item: &RewrapItem) -> usize {
    let recipient = match &item.target.recipient {
        Recipient::Key(name) => name.len(),
        Recipient::PublicKey(spki) => spki.len(),
    };
    let labels = item.source.label.len() + item.target.label.len();
    item.wrapped.len() + item.source.key.len() + recipient + labels + ITEM_OVERHEAD
}

fn report(plan: &Plan<'_>, file: &Path, failure: &Failure) -> Result<(), Failure> {
    if !plan.json {
        failure::tell(&format!("{}: {failure}", file.display()));
        return Ok(());
    }
    let mut line = failure.to_json();
    line["file"] = json!(file.display().to_string());
    input_output::print(&line.to_string())
}

/// Whole or not at all, after a power cut too: `--resume` believes what it finds.
fn write_result(path: &Path, content: &[u8]) -> Result<(), Failure> {
    claviger_files::replace(path, content, NewMode::ByUmask).map_err(|error| {
        Failure::new(Exit::Failure, format!("{}: cannot be written: {error}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use claviger_client::{RewrapSource, RewrapTarget};

    use super::*;

    fn job(wrapped: usize, spki: usize) -> Job {
        let item = RewrapItem {
            source: RewrapSource { key: "user-keys".into(), ..Default::default() },
            wrapped: vec![0; wrapped],
            target: RewrapTarget {
                recipient: Recipient::PublicKey(vec![0; spki]),
                algorithm: "RSA-OAEP-256".into(),
                label: Vec::new(),
            },
            max_key_material_len: None,
            approval: None,
        };
        Job { file: "f".into(), result: "r".into(), item }
    }

    #[test]
    fn a_batch_has_64_items_at_most_and_fits_a_message() {
        let mut small: VecDeque<_> = (0..150).map(|_| job(256, 294)).collect();
        let sizes: Vec<_> = std::iter::from_fn(|| match next_batch(&mut small).len() {
            0 => None,
            size => Some(size),
        })
        .collect();
        assert_eq!(sizes, [64, 64, 22]);
        let mut large: VecDeque<_> = (0..64).map(|_| job(1024, 1062)).collect();
        let batch = next_batch(&mut large);
        assert!(batch.len() > 20 && batch.len() < 30, "{}", batch.len());
        assert!(batch.iter().map(|job| size(&job.item)).sum::<usize>() <= BATCH_BYTES);
    }
}
