//! Each of the 117 requests of `tests/cases/cases.json`, whose README says what its fields mean: the
//! answer of a real Key Connector, or the better one that is written beside it.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::request::{Reply, send};
use crate::services::{Connector, Services, Stored, VAULT, folder, new_key, new_user};

#[test]
fn each_case_is_answered_as_written_in_shared_key_mode() {
    let services = Services::software();
    let connector = services.start(&Stored::shared(services.sqlite("cases.db")));
    run_all(&services, &connector);
}

#[test]
fn each_case_is_answered_as_written_in_per_user_mode() {
    let services = Services::softhsm();
    let connector = services.start(&Stored::per_user(services.sqlite("cases.db")));
    run_all(&services, &connector);
}

pub(crate) fn run_all(services: &Services, connector: &Connector) {
    let text = std::fs::read_to_string(folder("cases/cases.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(cases.len(), 117);
    let failed: Vec<String> =
        cases.iter().filter_map(|case| Case::new(services, connector, case).run().err()).collect();
    assert!(
        failed.is_empty(),
        "{} cases:\n{}\n{}",
        failed.len(),
        failed.join("\n"),
        connector.log()
    );
}

struct Case<'a> {
    services: &'a Services,
    connector: &'a Connector,
    written: &'a Value,
    user: String,
    first: String,
}

impl<'a> Case<'a> {
    fn new(services: &'a Services, connector: &'a Connector, case: &'a Value) -> Self {
        Self { services, connector, written: case, user: new_user(), first: new_key() }
    }

    fn run(&self) -> Result<(), String> {
        if self.written["user"] == "enrolled" {
            let reply = self.services.write(self.connector, "POST", &self.user, &self.first);
            assert_eq!(reply.status, 200, "{reply:?}\n{}", self.connector.log());
        }
        let reply = self.send();
        let name = self.written["name"].as_str().unwrap();
        self.judge(&reply).map_err(|wrong| format!("{name}: {wrong}: {reply:?}"))
    }

    fn send(&self) -> Reply {
        let token = match &self.written["token"] {
            Value::Null => None,
            token => Some(
                self.services.issuer.token_with(&self.user, token, &|text| self.fill(text, "")),
            ),
        };
        let token = token.unwrap_or_default();
        let mut headers: Vec<(String, String)> = Vec::new();
        match self.written["authorization"].as_str() {
            Some("") => {}
            Some(text) => headers.push(("authorization".into(), self.fill(text, &token))),
            None if token.is_empty() => {}
            None => headers.push(("authorization".into(), format!("Bearer {token}"))),
        }
        for (name, value) in self.written["headers"].as_object().into_iter().flatten() {
            headers.push((name.clone(), self.fill(value.as_str().unwrap(), &token)));
        }
        let headers: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let path = self.fill(self.written["path"].as_str().unwrap(), &token);
        let body = self.written["body"].as_str().map(|body| self.fill(body, &token));
        let method = self.written["method"].as_str().unwrap();
        send(self.connector.address, method, &path, &headers, body.as_deref())
    }

    fn judge(&self, reply: &Reply) -> Result<(), String> {
        let (answer, want) = (&self.written["answer"], &self.written["want"]);
        let status = want["status"].as_u64().or(answer["status"].as_u64()).unwrap();
        if u64::from(reply.status) != status {
            return Err(format!("{status} was expected"));
        }
        if want.is_null() {
            self.judge_headers(reply, answer)?;
            match answer["body"].as_str() {
                Some("\"TIME\"") => a_time(&reply.body)?,
                Some(body) if body != reply.body => return Err(format!("{body:?} was expected")),
                _ => {}
            }
            if answer["key"] == "{first}" && reply.key() != self.first {
                return Err("another key".to_owned());
            }
        }
        self.judge_afterwards(want.is_null())
    }

    fn judge_headers(&self, reply: &Reply, answer: &Value) -> Result<(), String> {
        for (name, value) in answer["headers"].as_object().into_iter().flatten() {
            let expected = self.fill(value.as_str().unwrap(), "");
            let found = reply.header(name).unwrap_or_default();
            let same = match name.as_str() {
                "www-authenticate" => {
                    // The description is not compared.
                    expected.split(", error_description").next() == Some(found.as_str())
                }
                _ => found == expected,
            };
            if !same {
                return Err(format!("{name}: {expected} was expected"));
            }
        }
        let allowed = "access-control-allow-origin";
        if answer["headers"][allowed].is_null() && reply.header(allowed).is_some() {
            return Err("another origin is let in".to_owned());
        }
        Ok(())
    }

    /// What `GET` gives the same user then. Where we refuse what the original takes, what was before.
    fn judge_afterwards(&self, as_the_original: bool) -> Result<(), String> {
        let then = &self.written["then_get"];
        if then.is_null() {
            return Ok(());
        }
        let reply = self.services.get(self.connector, &self.user);
        let good = match then {
            Value::String(key) if as_the_original => reply.key() == self.fill(key, ""),
            Value::Number(status) if status.as_u64().unwrap() < 1000 => {
                Some(u64::from(reply.status)) == status.as_u64()
            }
            _ => reply.status == 404,
        };
        if good { Ok(()) } else { Err(format!("afterwards {reply:?} instead of {then}")) }
    }

    fn fill(&self, text: &str, token: &str) -> String {
        let text = text
            .replace("{{sub}}", &format!("{{{}}}", self.user))
            .replace("{sub:upper}", &self.user.to_uppercase())
            .replace("{sub:plain}", &self.user.replace('-', ""))
            .replace("{sub}", &self.user)
            .replace("{issuer}", &self.services.issuer.name())
            .replace("{vault}", VAULT)
            .replace("{first}", &self.first)
            .replace("{token:-4}", token.get(..token.len().saturating_sub(4)).unwrap_or_default())
            .replace("{token}", token);
        let Some((before, rest)) = text.split_once("{bytes:").or_else(|| text.split_once("{x:"))
        else {
            return text;
        };
        let (number, after) = rest.split_once('}').unwrap();
        let number: usize = number.parse().unwrap();
        let letters = if text.contains("{bytes:") { number.div_ceil(3) * 4 } else { number };
        format!("{before}{}{after}", "A".repeat(letters))
    }
}

fn a_time(body: &str) -> Result<(), String> {
    let text = body.trim_matches('"');
    let is_time = body.starts_with("\"20") && text.ends_with('Z') && text.contains('T');
    if is_time { Ok(()) } else { Err("no time".to_owned()) }
}

#[test]
fn the_limits_of_one_user_and_of_one_address_are_their_own() {
    let services = Services::software();
    let mut stored = Stored::shared(services.sqlite("limits.db"));
    stored.further = "[limits]\nuser = '3/h'\nrefused = '3/h'".to_owned();
    let connector = services.start(&stored);
    let (one, other) = (new_user(), new_user());
    let status = |user: &str| services.get(&connector, user).status;
    assert_eq!([(); 4].map(|()| status(&one)), [404, 404, 404, 429]);
    assert_eq!(status(&other), 404, "another user has a budget of their own");
    // Refused requests spend the address's; who has a good token is not kept out by them.
    let bad = || connector.user_keys("GET", "garbage", None);
    assert_eq!([(); 4].map(|()| bad().status), [401, 401, 401, 429]);
    assert!(bad().header("retry-after").is_some());
    assert_eq!(status(&other), 404);
    // The address is what the proxy says, and no further.
    let from = |address: &str| {
        send(connector.address, "GET", "/user-keys", &[("x-forwarded-for", address)], None).status
    };
    assert_eq!(from("203.0.113.7"), 401);
    assert_eq!(from("1.1.1.1, 127.0.0.1"), 401);
}

#[test]
fn a_key_is_in_no_log_line_whatever_the_level() {
    let services = Services::software();
    let mut stored = Stored::shared(services.sqlite("marker.db"));
    stored.further += "\n[log]\nfilter = 'trace'";
    let connector = services.start(&stored);
    let (user, key) = (new_user(), new_key());
    assert_eq!(services.write(&connector, "POST", &user, &key).status, 200);
    assert_eq!(services.get(&connector, &user).key(), key);
    let token = services.issuer.token(&user);
    let begun = Instant::now();
    while !connector.log().contains("a user was enrolled") {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    let log = connector.log();
    assert!(log.contains(&user), "the user is named");
    assert!(!log.contains(&key) && !log.contains(&token), "{log}");
    let hex = hex::encode(base64_bytes(&key));
    let list = format!("{:?}", base64_bytes(&key));
    assert!(!log.contains(&hex) && !log.contains(list.trim_matches(['[', ']'])), "{log}");
}

fn base64_bytes(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).unwrap()
}
