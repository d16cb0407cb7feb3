//! What to say of a key that its backend lets do more than the configuration asks for.

/// A note for the operator; none where the key can do no more than it is for.
pub(super) fn note(rights: &[String]) -> Option<String> {
    (!rights.is_empty()).then(|| {
        format!(
            "its backend also allows {} with it, which nothing here needs: make keys without",
            rights.join(", ")
        )
    })
}
