//! An issuer looked at for an operator: whether it can be reached and agrees with the configuration, and
//! what its kind is known for.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap};

use crate::discovery::{Document, NotDiscovered, client, document, key_set};
use crate::{Audiences, Issuer, KeySource, LEEWAY, Rules, Settings};

/// What was found out about an issuer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examined {
    /// Public keys for signatures.
    pub keys: usize,
    /// What keeps tokens from being accepted; none: nothing.
    pub trouble: Option<Trouble>,
    /// What is good to know, a sentence each.
    pub notes: Vec<String>,
}

/// What keeps tokens from being accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// A sentence, with what to do.
    pub text: String,
    /// Whether it may pass by itself.
    pub is_passing: bool,
}

/// Asks an issuer for its discovery document and keys, as the daemon does, and compares.
pub async fn examine(settings: &Settings, rules: &Rules) -> Examined {
    let mut examined = Examined::default();
    if rules.audiences == Audiences::Any {
        examined.note("audiences = \"any\": its tokens for other services are good here too");
    }
    let looked = match &settings.source {
        KeySource::File(path) => Issuer::new(settings).map_err(Trouble::lasting).map(|issuer| {
            examined.keys = issuer.known().map_or(0, |known| known.keys.count());
            let path = path.display();
            examined.note(format!("its keys are those in {path}: replace it when they change"));
        }),
        KeySource::Discovery { url, ca } => {
            look_up(&mut examined, settings, rules, url, ca.as_deref()).await
        }
    };
    examined.trouble = looked.err();
    examined
}

async fn look_up(
    examined: &mut Examined,
    settings: &Settings,
    rules: &Rules,
    url: &str,
    ca: Option<&std::path::Path>,
) -> Result<(), Trouble> {
    let client = client(ca).map_err(Trouble::lasting)?;
    let (document, headers) = document(&client, url).await.map_err(|error| Trouble::of(&error))?;
    note_quirks(examined, url);
    note_clock(examined, &headers, SystemTime::now());
    let expected = settings.name.as_deref().unwrap_or(url);
    if document.issuer != expected {
        return Err(Trouble::lasting(differs(expected, &document.issuer)));
    }
    let (keys, cache) = key_set(&client, url, &document).await.map_err(|error| {
        let of_secret = signs_with_secrets_only(&document);
        if of_secret { Trouble::lasting(SECRET.to_owned()) } else { Trouble::of(&error) }
    })?;
    examined.keys = keys.count();
    if let Some(cache) = cache {
        examined.note(format!("it says that its keys may be cached for {} s", cache.as_secs()));
    }
    check_algorithms(&document, rules)
}

const SECRET: &str = "it signs with a secret (HS256) alone, which it alone can verify: choose \
                      RS256 as signature algorithm there (Keycloak: the realm's and the client's default)";

fn signs_with_secrets_only(document: &Document) -> bool {
    let listed = document.algorithms.as_deref().unwrap_or_default();
    !listed.is_empty() && listed.iter().all(|name| name.starts_with("HS") || name == "none")
}

fn check_algorithms(document: &Document, rules: &Rules) -> Result<(), Trouble> {
    if signs_with_secrets_only(document) {
        return Err(Trouble::lasting(SECRET.to_owned()));
    }
    let listed = document.algorithms.as_deref().unwrap_or_default();
    if listed.is_empty() || listed.iter().any(|name| rules.algorithms.contains(name)) {
        return Ok(());
    }
    Err(Trouble::lasting(format!(
        "it signs with {}, and `algorithms` lists {}",
        listed.join(", "),
        rules.algorithms.join(", ")
    )))
}

/// Two names of an issuer are compared to the letter; what is usually behind a difference.
fn differs(expected: &str, found: &str) -> String {
    let why = if expected.trim_end_matches('/') == found.trim_end_matches('/') {
        "the slash at the end is part of it (Authentik and Auth0 have one)"
    } else if found.contains("sts.windows.net") || expected.trim_end_matches("/v2.0") == found {
        "only Entra ID's endpoint that ends in /v2.0 keeps to the standard; use that one, and \
         `accessTokenAcceptedVersion: 2` in the application's manifest"
    } else if expected.replacen("https://", "http://", 1) == found {
        "behind a proxy the issuer has to be told its own public URL (Keycloak: `hostname`)"
    } else {
        "its tokens say the same, so write that, if it is the right one"
    };
    format!("discovery says that its issuer is {found:?}, and {expected:?} is expected: {why}")
}

/// What the kinds of issuers are known for, by their usual addresses.
fn note_quirks(examined: &mut Examined, url: &str) {
    let quirks = [
        ("/realms/", "Keycloak: access tokens live for 5 minutes unless the realm says otherwise"),
        (
            "/application/o/",
            "Authentik: a provider with an encryption key sends encrypted tokens, which are refused; leave it out",
        ),
        (
            "login.microsoftonline.com",
            "Entra ID: refresh tokens only with the scope offline_access; groups may be ids",
        ),
        (
            "accounts.google.com",
            "Google: keys change about weekly; ID tokens alone are tokens of this kind",
        ),
        (
            "zitadel",
            "Zitadel: `aud` lists the project's id and others; write that id, or a pattern: \"^\\\\d{18}$\"",
        ),
        ("slack.com", "Slack: only ID tokens can be verified, access tokens are something else"),
    ];
    for (part, quirk) in quirks {
        if url.contains(part) {
            examined.note(quirk);
        }
    }
}

fn note_clock(examined: &mut Examined, headers: &HeaderMap, now: SystemTime) {
    let told = headers.get(DATE).and_then(|date| date.to_str().ok());
    let Some(told) = told.and_then(|date| httpdate::parse_http_date(date).ok()) else { return };
    let apart = now.duration_since(told).unwrap_or_else(|error| error.duration());
    if apart > LEEWAY + Duration::from_secs(1) {
        examined.note(format!(
            "CLOCK: this host and the issuer are {} s apart, and {} s are allowed: good tokens will be \
             refused as expired or not valid yet",
            apart.as_secs(),
            LEEWAY.as_secs()
        ));
    }
}

impl Examined {
    fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Trouble {
    fn lasting(text: String) -> Self {
        Self { text, is_passing: false }
    }

    fn of(error: &NotDiscovered) -> Self {
        let text = error.to_string();
        let advice = match error.status.map(|status| status.as_u16()) {
            Some(401 | 403) => {
                "; a Kubernetes API server shows it without a login only with the role \
                 system:service-account-issuer-discovery bound to system:unauthenticated: or write \
                 `keys` with what `kubectl get --raw /openid/v1/jwks` prints"
            }
            Some(404) => "; is `issuer` (or `discovery`) the URL in front of /.well-known?",
            _ => "",
        };
        let is_passing = error.status.is_none_or(|status| status.is_server_error());
        Self { text: format!("{text}{advice}"), is_passing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_two_names_of_an_issuer_is_said() {
        for (expected, found, why) in [
            ("https://a/o/claviger", "https://a/o/claviger/", "slash"),
            ("https://login.microsoftonline.com/t/v2.0", "https://sts.windows.net/t/", "/v2.0"),
            ("https://sso/realms/a", "http://sso/realms/a", "public URL"),
            ("https://sso", "https://other", "the same"),
        ] {
            let said = differs(expected, found);
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn clocks_that_differ_by_more_than_the_leeway_are_told() {
        let now = SystemTime::now();
        let notes = |apart: u64| {
            let date = httpdate::fmt_http_date(now + Duration::from_secs(apart));
            let headers = HeaderMap::from_iter([(DATE, date.parse().unwrap())]);
            let mut examined = Examined::default();
            note_clock(&mut examined, &headers, now);
            examined.notes
        };
        assert_eq!(notes(20), Vec::<String>::new());
        assert!(notes(90)[0].contains("CLOCK"), "{:?}", notes(90));
    }
}
