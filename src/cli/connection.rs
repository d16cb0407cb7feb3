//! Where the daemon is: a client file or flags; and one call to it.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use claviger_client::{Client, ClientFile, Config, Error};
use claviger_provider_api::options;

use super::failure::{Exit, Failure};
use super::login::stored;

/// How a command finds the daemon.
#[derive(Args, Debug)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionArgs {
    /// A TOML file with endpoint, ca, certificate and private_key [default: $CLAVIGER_CLIENT, else
    /// claviger/client.toml in $XDG_CONFIG_HOME or ~/.config]
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    client: Option<PathBuf>,
    /// In the place of a client file: https://host:port or unix:/path; repeat it for daemons that
    /// stand in for each other
    #[arg(long, value_name = "URL")]
    endpoint: Vec<String>,
    /// The CA certificates that the daemon's certificate is verified with, PEM
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    ca: Option<PathBuf>,
    /// The certificate to show, PEM
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    certificate: Option<PathBuf>,
    /// Its private key, PEM, not readable by others
    #[arg(long, value_name = "FILE", requires = "endpoint")]
    private_key: Option<PathBuf>,
    /// How long to wait for the answer: 500ms, 10s, 2m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
    /// Instead of --timeout: keep trying for this long while the daemon or the key's backend
    /// cannot be reached, or has no room
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, conflicts_with = "timeout")]
    wait: Option<Duration>,
    /// Your own id for this call, recorded by the daemon beside its own
    #[arg(long, value_name = "ID")]
    request_id: Option<String>,
}

impl ConnectionArgs {
    /// Runs `call` with a client of the daemon.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(&Client) -> Result<T, Error>,
    ) -> Result<T, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::new(Exit::Failure, format!("cannot start: {error}")))?;
        runtime.block_on(async {
            let config = Config {
                timeout: self.wait.unwrap_or(self.timeout),
                // Without --wait a person learns at once that nothing can be reached.
                patience: Duration::ZERO,
                wait: self.wait.is_some(),
                ..self.config().await?
            };
            let mut client = Client::new(&config)?;
            if let Some(request_id) = &self.request_id {
                client = client.with_request_id(request_id)?;
            }
            Ok(call(&client).await?)
        })
    }

    /// With the token of a login, where there is one for these daemons.
    async fn config(&self) -> Result<Config, Failure> {
        if !self.endpoint.is_empty() {
            let [ca, certificate, private_key] =
                [&self.ca, &self.certificate, &self.private_key].map(Option::as_deref);
            let token = stored::token(&self.endpoint).await?;
            let token = token.as_deref();
            return Config::with_token(&self.endpoint, ca, certificate, private_key, token)
                .map_err(|error| {
                    let message = error.to_string().replacen("private_key", "private-key", 1);
                    Failure::new(Exit::Usage, format!("--{message}"))
                });
        }
        let file = ClientFile::read(find_client_file(self.client.as_deref())?)?;
        let token = stored::token(file.endpoints()).await?;
        Ok(file.config(token.as_deref())?)
    }
}

/// The daemons that a login is for.
#[derive(Args, Debug)]
#[command(next_help_heading = "Daemons")]
pub struct EndpointArgs {
    /// The client file that names them [default: as of the commands that call the daemon]
    #[arg(long, value_name = "FILE", conflicts_with = "endpoint")]
    client: Option<PathBuf>,
    /// In the place of a client file: https://host:port or unix:/path; repeat it for several
    #[arg(long, value_name = "URL")]
    endpoint: Vec<String>,
}

impl EndpointArgs {
    /// Their addresses, as they are written.
    pub(super) fn named(&self) -> Result<Vec<String>, Failure> {
        if !self.endpoint.is_empty() {
            return Ok(self.endpoint.clone());
        }
        let file = ClientFile::read(find_client_file(self.client.as_deref())?)?;
        Ok(file.endpoints().to_vec())
    }
}

/// What a client file says: the one that was given, else the default one.
pub(super) fn client_file(given: Option<&Path>) -> Result<Config, Failure> {
    Ok(Config::from_file(find_client_file(given)?)?)
}

fn find_client_file(given: Option<&Path>) -> Result<PathBuf, Failure> {
    let file = match given {
        Some(file) => file.to_owned(),
        None => default_file().ok_or_else(|| {
            Failure::new(Exit::Configuration, "there is no home directory to find a client file in")
                .advise("Name one with --client, or give --endpoint.")
        })?,
    };
    if !file.exists() {
        let message = format!("there is no client file at {}", file.display());
        return Err(Failure::new(Exit::Configuration, message).advise(
            "Write one with endpoint, ca, certificate and private_key, name another with \
             --client, or give --endpoint.",
        ));
    }
    Ok(file)
}

fn default_file() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CLAVIGER_CLIENT").or_else(|| {
        let folder = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
        Some(folder.join("claviger/client.toml"))
    })
}

/// `500ms`, `10s`, `2m`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = options::duration(text)
        .ok_or("a duration is a whole number with a unit: 500ms, 10s, 2m")?;
    if duration.is_zero() || duration > Duration::from_hours(1) {
        return Err("a timeout is between 1ms and 60m".into());
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit_and_a_bound() {
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_mins(2)));
        for bad in ["", "10", "s", "0s", "61m", "2h", "1.5s", "-1s", "99999999999999999999s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}
