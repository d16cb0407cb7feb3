//! A token's claims: JSON in which no name is there twice, at any depth.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::Fault;

/// The claims of a token. A claim that no rule names is not judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims(Value);

/// What a claim must be, or hold where it is a list.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClaimValue {
    /// This string, to the letter.
    Text(String),
    /// True or false.
    Flag(bool),
    /// This whole number.
    Number(i64),
}

impl Claims {
    /// Reads a JSON object. Two readers of an object with a name twice may see different ones, so it is
    /// refused (RFC 7519 section 4).
    pub fn parse(json: &[u8]) -> Result<Self, Fault> {
        let Once(value) = serde_json::from_slice(json).map_err(|_| Fault::Claims)?;
        if value.is_object() { Ok(Self(value)) } else { Err(Fault::Claims) }
    }

    /// A claim by its name, or by a JSON pointer (RFC 6901) where the name begins with a slash.
    pub fn get(&self, name: &str) -> Option<&Value> {
        if name.starts_with('/') { self.0.pointer(name) } else { self.0.get(name) }
    }

    /// A claim that is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// Whether a claim is one of the values, or a list that holds one of them.
    pub fn has(&self, name: &str, values: &[ClaimValue]) -> bool {
        let is_one = |value: &Value| values.iter().any(|wanted| wanted.is(value));
        match self.get(name) {
            Some(Value::Array(list)) => list.iter().any(is_one),
            Some(value) => is_one(value),
            None => false,
        }
    }
}

impl ClaimValue {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Text(text) => value.as_str() == Some(text),
            Self::Flag(flag) => value.as_bool() == Some(*flag),
            Self::Number(number) => value.as_i64() == Some(*number),
        }
    }
}

/// A JSON value whose objects have each name once.
pub(crate) struct Once(pub(crate) Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Self)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Once(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = object.next_key::<String>()? {
            let Once(value) = object.next_value()?;
            if map.insert(name, value).is_some() {
                return Err(A::Error::custom("a name is there twice"));
            }
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(json: &str) -> Claims {
        Claims::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_at_any_depth_and_so_is_what_is_no_object() {
        for bad in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":{"b":1,"b":2}}"#,
            r#"{"a":[{"b":1,"b":2}]}"#,
            "[1]",
            "\"text\"",
            "",
            "{}x",
            &"[".repeat(1000),
        ] {
            assert_eq!(Claims::parse(bad.as_bytes()), Err(Fault::Claims), "{bad:.40}");
        }
        let good = claims(r#"{"a":{"b":[1,-2,1.5,true,null,"c"]},"b":1}"#);
        assert_eq!(good.0["a"]["b"].as_array().unwrap().len(), 6);
    }

    #[test]
    fn a_claim_is_the_value_or_a_list_with_it_and_nothing_else() {
        let token = claims(
            r#"{"groups":["a","hsm-approvers"],"role":"admin","ok":true,"n":3,
            "realm_access":{"roles":["x"]},"kubernetes.io":{"namespace":"ns"},"a/b":"slash"}"#,
        );
        let text = |text: &str| vec![ClaimValue::Text(text.to_owned())];
        for (name, values) in [
            ("groups", text("hsm-approvers")),
            ("role", text("admin")),
            ("ok", vec![ClaimValue::Flag(true)]),
            ("n", vec![ClaimValue::Text("3".to_owned()), ClaimValue::Number(3)]),
            ("/realm_access/roles", text("x")),
            ("/kubernetes.io/namespace", text("ns")),
            ("/a~1b", text("slash")),
            ("a/b", text("slash")),
        ] {
            assert!(token.has(name, &values), "{name}");
        }
        for (name, values) in [
            ("groups", text("hsm-approver")),
            ("groups", text("a,hsm-approvers")),
            ("role", text("admin ")),
            ("ok", text("true")),
            ("n", text("3")),
            ("realm_access", text("x")),
            ("absent", text("")),
            ("groups", Vec::new()),
        ] {
            assert!(!token.has(name, &values), "{name}: {values:?}");
        }
    }
}
