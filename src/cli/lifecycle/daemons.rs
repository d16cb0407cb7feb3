//! Every daemon by itself: clients ask whichever answers, and a rotation needs the word of each.

use std::path::PathBuf;
use std::time::Duration;

use claviger_client::{Client, Config, Error};

use crate::cli::connection::{client_file, parse_duration};
use crate::cli::failure::{Exit, Failure};

/// What a daemon answered, by its endpoint.
pub(super) type Answer<T> = (String, Result<T, Error>);

/// Where all daemons are.
#[derive(clap::Args, Debug)]
#[command(next_help_heading = "Connection")]
pub(super) struct DaemonsArgs {
    /// A client file; each of its endpoints is asked. Repeat it until every daemon that serves the key is
    /// named [default: $CLAVIGER_CLIENT, else claviger/client.toml in $XDG_CONFIG_HOME or ~/.config]
    #[arg(long = "client", value_name = "FILE")]
    clients: Vec<PathBuf>,
    /// How long to wait for the answer of each: 500ms, 10s, 2m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    timeout: Duration,
}

impl DaemonsArgs {
    /// Asks each daemon.
    pub(super) fn each<T>(
        &self,
        ask: &impl AsyncFn(&Client) -> Result<T, Error>,
    ) -> Result<Vec<Answer<T>>, Failure> {
        let mut configs: Vec<Config> = Vec::new();
        for file in self.files() {
            let config = client_file(file.as_deref())?;
            for endpoint in &config.endpoints {
                let endpoints = vec![endpoint.clone()];
                let (timeout, patience) = (self.timeout, Duration::ZERO);
                configs.push(Config { endpoints, timeout, patience, ..config.clone() });
            }
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::Failure, error.to_string()))?;
        runtime.block_on(async {
            let mut answers = Vec::new();
            for config in &configs {
                let client = Client::new(config)?;
                answers.push((config.endpoints[0].to_string(), ask(&client).await));
            }
            Ok(answers)
        })
    }

    fn files(&self) -> Vec<Option<PathBuf>> {
        match self.clients.as_slice() {
            [] => vec![None],
            files => files.iter().cloned().map(Some).collect(),
        }
    }
}
