//! The configuration's file as text that commands change: comments, order and line ends stay.

use std::io;
use std::path::{Path, PathBuf};

use claviger_files::NewMode;
use claviger_provider_api::public_key::sha256;
use time::OffsetDateTime;
use time::macros::format_description;
use toml_edit::{DocumentMut, Item, TableLike, Value};

use crate::daemon::config::Config;

/// The text with a change made in it.
pub(super) fn edit(
    text: &str,
    change: impl FnOnce(&mut DocumentMut) -> Result<(), String>,
) -> Result<String, String> {
    let mut document: DocumentMut = text.parse().map_err(|error| format!("{error}"))?;
    change(&mut document)?;
    let changed = document.to_string();
    let is_crlf = text.contains('\n') && text.matches('\n').count() == text.matches("\r\n").count();
    Ok(if is_crlf { changed.replace("\r\n", "\n").replace('\n', "\r\n") } else { changed })
}

/// The versions of a key.
pub(super) fn versions<'a>(document: &'a mut DocumentMut, key: &str) -> Option<&'a mut Item> {
    document.get_mut("keys")?.get_mut(key)?.get_mut("versions")
}

/// The table of one version.
pub(super) fn version_table(versions: &mut Item, number: u32) -> Option<&mut dyn TableLike> {
    let is_it = |table: &dyn TableLike| {
        table.get("version").and_then(Item::as_integer) == Some(i64::from(number))
    };
    match versions {
        Item::ArrayOfTables(tables) => {
            tables.iter_mut().find(|table| is_it(*table)).map(|table| table as &mut dyn TableLike)
        }
        Item::Value(Value::Array(array)) => array
            .iter_mut()
            .filter_map(Value::as_inline_table_mut)
            .find(|table| is_it(*table))
            .map(|table| table as &mut dyn TableLike),
        _ => None,
    }
}

/// Replaces the file by another with the same mode and owner, if it still is what was read.
pub(super) fn replace(config: &Config, text: &str) -> io::Result<()> {
    claviger_files::replace_unless(&config.path, text.as_bytes(), NewMode::AsBefore, |path| {
        if sha256(&std::fs::read(path)?) == config.sha256 {
            return Ok(());
        }
        Err(io::Error::other("it was changed meanwhile"))
    })
}

/// Keeps a text beside the file, under its name and the time, with its mode; gives the path.
pub(super) fn keep(path: &Path, text: &str) -> io::Result<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let form = format_description!("[year][month][day]T[hour][minute][second]Z");
    let now = OffsetDateTime::now_utc().format(form).map_err(io::Error::other)?;
    let mode = std::fs::metadata(path)?.mode() & 0o7777;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    for number in 0_u32.. {
        let suffix = if number == 0 { String::new() } else { format!(".{number}") };
        let kept = path.with_file_name(format!("{name}.{now}{suffix}"));
        match claviger_files::create(&kept, text.as_bytes(), mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => return outcome.map(|()| kept),
        }
    }
    unreachable!("one of the names is free")
}
