//! Signing in with a browser that comes back over loopback (RFC 8252 section 7.3).

use std::process::{Command, Stdio};

use claviger_tokens::{Granted, Pkce, SignIn, random_text};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

/// The longest line of a request that is read, in bytes.
const LONGEST: u64 = 16 << 10;

const DONE: &str = "You are logged in: this window can be closed.";
const NOT_DONE: &str = "You are not logged in: the terminal says why.";

/// Sends the person to the issuer, and waits until they come back.
pub(super) async fn sign_in(sign_in: &SignIn, open: bool) -> Result<Granted, String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await;
    let listener = listener.map_err(|error| format!("cannot listen on loopback: {error}"))?;
    let port = listener.local_addr().map_err(|error| error.to_string())?.port();
    let redirect = format!("http://127.0.0.1:{port}/callback");
    let (state, pkce) = (random_text(), Pkce::new());
    let address = sign_in.address(&redirect, &state, &pkce)?;
    eprintln!("Sign in with a browser on this host:\n{address}");
    if open {
        open_browser(&address);
    }
    loop {
        let (stream, _) = listener.accept().await.map_err(|error| error.to_string())?;
        let mut stream = BufReader::new(stream);
        let Some(target) = target(&mut stream).await else { continue };
        let Some(answer) = Answer::parse(&target, &state) else {
            reply(stream.get_mut(), "404 Not Found", "").await;
            continue;
        };
        let outcome = match answer {
            Answer::Code { iss, .. } if !sign_in.is_of_issuer(iss.as_deref()) => {
                Err("the answer is another issuer's".to_owned())
            }
            Answer::Code { code, .. } => sign_in.exchange(&code, &redirect, &pkce).await,
            Answer::Error(error) => Err(format!("the issuer refused it: {error}")),
        };
        let page = if outcome.is_ok() { DONE } else { NOT_DONE };
        reply(stream.get_mut(), "200 OK", page).await;
        return outcome;
    }
}

/// What the browser brings.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Code { code: String, iss: Option<String> },
    Error(String),
}

impl Answer {
    /// None for what is no answer to this sign-in: other programs may ask this port too.
    fn parse(target: &str, state: &str) -> Option<Self> {
        let url = Url::parse(&format!("http://127.0.0.1{target}")).ok()?;
        let get = |name: &str| {
            let value = url.query_pairs().find(|(other, _)| other == name);
            value.map(|(_, value)| value.into_owned())
        };
        if url.path() != "/callback" || get("state")? != state {
            return None;
        }
        if let Some(error) = get("error") {
            let description = get("error_description").map(|text| format!(": {text}"));
            return Some(Self::Error(error + &description.unwrap_or_default()));
        }
        Some(Self::Code { code: get("code")?, iss: get("iss") })
    }
}

/// The target of a GET.
async fn target(stream: &mut BufReader<TcpStream>) -> Option<String> {
    use tokio::io::AsyncReadExt;
    let mut line = String::new();
    stream.take(LONGEST).read_line(&mut line).await.ok()?;
    let target = line.strip_prefix("GET ")?.split(' ').next()?;
    Some(target.to_owned())
}

async fn reply(stream: &mut TcpStream, status: &str, text: &str) {
    let head =
        "content-type: text/plain; charset=utf-8\r\ncache-control: no-store\r\nconnection: close";
    let len = text.len();
    let answer = format!("HTTP/1.1 {status}\r\n{head}\r\ncontent-length: {len}\r\n\r\n{text}");
    // A browser that has left needs no answer.
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

/// As far as there is one; the address was printed.
fn open_browser(address: &str) {
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = Command::new(program);
    command.arg(address).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    drop(command.spawn());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_answer_to_this_sign_in_is_taken() {
        let code = Answer::parse("/callback?code=a%2Bb&state=s&iss=https%3A%2F%2Fa", "s");
        let iss = Some("https://a".to_owned());
        assert_eq!(code, Some(Answer::Code { code: "a+b".to_owned(), iss }));
        let refused = Answer::parse("/callback?error=access_denied&state=s", "s");
        assert_eq!(refused, Some(Answer::Error("access_denied".to_owned())));
        for other in
            ["/", "/favicon.ico", "/callback", "/callback?code=a", "/callback?code=a&state=t"]
        {
            assert_eq!(Answer::parse(other, "s"), None, "{other}");
        }
    }
}
