//! Names of fields: dotted paths, and what was probably meant by one that is not known.

/// `path.name`, with the name quoted where TOML would quote it.
pub fn joined(path: &str, name: &str) -> String {
    let bare = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let dot = if path.is_empty() { "" } else { "." };
    if !name.is_empty() && name.bytes().all(bare) {
        format!("{path}{dot}{name}")
    } else {
        format!("{path}{dot}{name:?}")
    }
}

/// What to say about an unknown field.
pub fn unknown_field(name: &str, known: &[&str]) -> String {
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("is not a known field; did you mean {near:?}?"),
        None if known.is_empty() => "is not a known field; there are none here".to_owned(),
        None => format!("is not a known field; known are {}", known.join(", ")),
    }
}

/// The name that was probably meant: about a third of its letters may differ.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let letters = name.chars().count();
    let most = if letters <= 2 { 0 } else { letters.min(63).div_ceil(3) };
    // Each letter more or less is a difference, whatever the others are.
    let as_long = known.into_iter().filter(|near| near.chars().count().abs_diff(letters) <= most);
    let with_distance = as_long.map(|near| (strsim::levenshtein(name, near), near));
    with_distance.min().filter(|(distance, _)| *distance <= most).map(|(_, near)| near)
}
