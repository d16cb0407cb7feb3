//! Which of an issuer's people are meant: `subject` and `claims` of a configuration.

use std::collections::BTreeMap;

use claviger_configuration::{Node, all};

use crate::{ClaimValue, Claims};

/// `sub`, if it matters, and the claims that do.
pub type Person = (Option<String>, BTreeMap<String, Vec<ClaimValue>>);

/// Reads `subject` and `claims`, of which one is needed: `would` is what each bearer of the issuer's
/// tokens would do without.
pub fn person(node: &Node<'_>, would: &str) -> Option<Person> {
    let subject = match node.field("subject") {
        Some(node) => Some(node.parsed(subject)?),
        None => None,
    };
    let claims = match node.field("claims") {
        Some(node) => claims(&node)?,
        None => BTreeMap::new(),
    };
    if subject.is_none() && claims.is_empty() {
        node.error(format_args!("has an issuer alone, so that each of its tokens {would}; add subject = \"…\", or claims = {{ groups = \"…\" }}"));
        return None;
    }
    Some((subject, claims))
}

fn subject(text: &str) -> Result<String, String> {
    if (1..=512).contains(&text.len()) {
        return Ok(text.to_owned());
    }
    Err("has not 1 to 512 bytes; write what `sub` is in the tokens, to the letter".to_owned())
}

fn claims(node: &Node<'_>) -> Option<BTreeMap<String, Vec<ClaimValue>>> {
    const OF_ITS_OWN: [&str; 7] = ["iss", "sub", "aud", "exp", "nbf", "iat", "cnf"];
    let entries = node.entries();
    let read = all(entries.iter().map(|(name, node)| {
        if OF_ITS_OWN.contains(name) {
            node.error("is judged by itself; leave it out here (`sub` is `subject`)");
            return None;
        }
        Some(((*name).to_owned(), claim_values(node)?))
    }))?;
    Some(read.into_iter().collect()).filter(|_| node.is_table())
}

/// A value, or a list of which one is enough.
fn claim_values(node: &Node<'_>) -> Option<Vec<ClaimValue>> {
    let elements = node.elements();
    let one_or_many = if elements.is_empty() { vec![node.clone()] } else { elements };
    let mut values = all(one_or_many.iter().map(claim_value))?;
    values.sort_unstable();
    values.dedup();
    Some(values)
}

fn claim_value(node: &Node<'_>) -> Option<ClaimValue> {
    let value = (node.text().map(|text| ClaimValue::Text(text.to_owned())))
        .or_else(|| node.truth().map(ClaimValue::Flag))
        .or_else(|| node.number().map(|number| ClaimValue::Number(number.into())));
    if value.is_none() {
        node.error("is neither text, true or false, nor a whole number, nor a list of them; write what the claim must be or hold");
    }
    value
}

/// Whether a token's subject and claims are those of such a person.
pub fn is_person((wanted, needed): &Person, subject: &str, claims: &Claims) -> bool {
    wanted.as_deref().is_none_or(|wanted| wanted == subject)
        && needed.iter().all(|(name, values)| claims.has(name, values))
}
