//! Which failures of a call are tried again, where, and for how long.
//!
//! What was never sent, or certainly not looked at, is tried again as often as time allows. What
//! may have run, because its connection broke, is sent once more at most, and so is what was
//! answered with UNAVAILABLE: each run is recorded by the daemon and counts against the caller's
//! limits. Every other answer is final.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::channel::Channel;
use crate::connect::ConnectError;
use crate::endpoints::Endpoints;
use crate::error::{self, Error, OnTheWay};

/// Between two attempts to reach anybody at all.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// A daemon that ends its connections one after another may do so as fast as we connect.
const PAUSES_WHILE_CLOSING: [u64; 5] = [0, 1, 2, 4, 8];

/// The attempts of one call.
pub(crate) struct Attempts<'a> {
    endpoints: &'a Endpoints,
    timeout: Duration,
    deadline: Instant,
    patient_until: Instant,
    avoid: Option<usize>,
    lost: bool,
    unavailable: bool,
    closing: std::slice::Iter<'static, u64>,
    current: Option<(usize, Channel)>,
}

/// Why a call that was sent has failed.
pub(crate) enum Failed {
    Silent,
    CertificateRefused(String),
    Status(Status),
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(endpoints: &'a Endpoints, timeout: Duration, patience: Duration) -> Self {
        let now = Instant::now();
        Self {
            endpoints,
            timeout,
            deadline: now + timeout,
            patient_until: now + patience.min(timeout),
            avoid: None,
            lost: false,
            unavailable: false,
            closing: PAUSES_WHILE_CLOSING.iter(),
            current: None,
        }
    }

    /// What is left of the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A connection for the next attempt.
    pub(crate) async fn connect(&mut self) -> Result<Channel, Error> {
        let connected = timeout_at(self.deadline, self.reach_anybody()).await;
        let names = || self.endpoints.names();
        let (number, channel) = connected
            .map_err(|_| Error::not_connected_within(self.timeout, &names()))?
            .map_err(|errors| Error::not_connected(&errors))?;
        self.current = Some((number, channel.clone()));
        Ok(channel)
    }

    async fn reach_anybody(&self) -> Result<(usize, Channel), Vec<ConnectError>> {
        let mut pause = FIRST_PAUSE;
        loop {
            let errors = match self.endpoints.channel(self.avoid, self.deadline).await {
                Ok(found) => return Ok(found),
                Err(errors) => errors,
            };
            let may_pass =
                errors.iter().any(|error| matches!(error, ConnectError::Unreachable { .. }));
            if !may_pass || Instant::now() + pause > self.patient_until {
                return Err(errors);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Waits for the answer to what was sent over the last connection; none: to be sent again.
    pub(crate) async fn answer<A>(
        &mut self,
        sent: impl Future<Output = Result<Response<A>, Status>>,
    ) -> Result<Option<Response<A>>, Failed> {
        let (number, channel) = self.current.take().expect("connected before sending");
        let answers = channel.answers();
        match timeout_at(self.deadline, sent).await {
            Ok(Ok(response)) => {
                self.endpoints.answered(number);
                Ok(Some(response))
            }
            Ok(Err(status)) => self.judge(status, number, &channel).await.map(|()| None),
            Err(_) => {
                // The daemon answers in time, if only that the time is over.
                if channel.answers() == answers {
                    self.endpoints.lost(number, &channel);
                }
                Err(Failed::Silent)
            }
        }
    }

    async fn judge(
        &mut self,
        status: Status,
        number: usize,
        channel: &Channel,
    ) -> Result<(), Failed> {
        if error::never_processed(&status) {
            if let Some(alert) = channel.ended_by().and_then(error::alert) {
                return Err(Failed::CertificateRefused(alert.to_owned()));
            }
            self.endpoints.closing(number, channel);
            let Some(pause) = self.closing.next() else { return Err(Failed::Status(status)) };
            sleep(Duration::from_millis(*pause)).await;
            return Ok(());
        }
        match error::on_the_way(&status) {
            Some(OnTheWay::CertificateRefused(alert)) => Err(Failed::CertificateRefused(alert)),
            Some(OnTheWay::Lost(_)) => {
                self.endpoints.lost(number, channel);
                self.avoid = Some(number);
                once(&mut self.lost, status)
            }
            None if status.code() == Code::Unavailable => {
                self.endpoints.cannot_serve(number);
                self.avoid = Some(number);
                let elsewhere = !self.endpoints.is_single();
                if self.unavailable || elsewhere || self.accepts_calls_soon(channel).await {
                    return once(&mut self.unavailable, status);
                }
                Err(Failed::Status(status))
            }
            None => {
                self.endpoints.answered(number);
                Err(Failed::Status(status))
            }
        }
    }

    /// Waits while the daemon says that it accepts no calls yet, or no more. Asking for its health
    /// is neither recorded nor counted.
    async fn accepts_calls_soon(&self, channel: &Channel) -> bool {
        let mut health = HealthClient::new(channel.clone());
        let mut pause = FIRST_PAUSE;
        while Instant::now() + pause < self.patient_until {
            let mut request = Request::new(HealthCheckRequest::default());
            request.set_timeout(self.left());
            match timeout_at(self.patient_until, health.check(request)).await {
                Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => {
                    return true;
                }
                Ok(Ok(_)) => {}
                // It is gone; whoever comes after it is reached by a new connection.
                Ok(Err(status)) if error::on_the_way(&status).is_some() => return true,
                Ok(Err(_)) | Err(_) => return false,
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        false
    }
}

/// Lets the first failure of a kind pass.
fn once(seen: &mut bool, status: Status) -> Result<(), Failed> {
    if std::mem::replace(seen, true) { Err(Failed::Status(status)) } else { Ok(()) }
}
