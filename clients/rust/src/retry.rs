//! Which failures of a call are tried again, where, and for how long.
//!
//! What was never sent, or certainly not looked at, is tried again as often as time allows. What
//! may have run, because its connection broke, is sent once more at most. What was answered with
//! UNAVAILABLE is sent to each other endpoint once and, when all have said it and one of them then
//! says that it accepts calls, to each once more: each run is recorded by the daemon and counts
//! against the caller's limits. Every other answer is final.

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
/// One that says nothing about its health keeps nobody from asking the others.
const LONGEST_QUESTION: Duration = Duration::from_secs(1);
/// A daemon that ends its connections one after another may do so as fast as we connect.
const PAUSES_WHILE_CLOSING: [u64; 5] = [0, 1, 2, 4, 8];

/// The attempts of one call.
pub(crate) struct Attempts<'a> {
    endpoints: &'a Endpoints,
    timeout: Duration,
    deadline: Instant,
    patient_until: Instant,
    /// Endpoints that this call was in vain at, the latest at the end: nobody asks them while there
    /// is another one.
    failed_endpoints: Vec<usize>,
    connection_lost: bool,
    /// Whether the endpoints are asked for the second time, as each had said UNAVAILABLE.
    again: bool,
    closing: std::slice::Iter<'static, u64>,
    /// Found already, for the next attempt.
    next: Option<(usize, Channel)>,
    current: Option<(usize, Channel)>,
    answered: Option<usize>,
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
            failed_endpoints: Vec::new(),
            connection_lost: false,
            again: false,
            closing: PAUSES_WHILE_CLOSING.iter(),
            next: None,
            current: None,
            answered: None,
        }
    }

    /// What is left of the deadline.
    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// A connection for the next attempt.
    pub(crate) async fn connect(&mut self) -> Result<Channel, Error> {
        if let Some((number, channel)) = self.next.take() {
            self.current = Some((number, channel.clone()));
            return Ok(channel);
        }
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
            let errors = match self.endpoints.channel(&self.failed_endpoints, self.deadline).await {
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
                self.answered = Some(number);
                Ok(Some(response))
            }
            Ok(Err(status)) => self.judge(status, number, &channel).await.map(|()| None),
            Err(_) => {
                // The daemon answers in time, if only that the time is over.
                if channel.answers() == answers {
                    self.endpoints.connection_lost(number, &channel);
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
                self.endpoints.connection_lost(number, channel);
                self.failed_at(number);
                if std::mem::replace(&mut self.connection_lost, true) {
                    return Err(Failed::Status(status));
                }
                Ok(())
            }
            None if status.code() == Code::Unavailable => {
                self.endpoints.cannot_serve(number);
                self.failed_at(number);
                self.find_another(status).await
            }
            None => {
                self.endpoints.answered(number);
                Err(Failed::Status(status))
            }
        }
    }

    fn failed_at(&mut self, number: usize) {
        self.failed_endpoints.retain(|&other| other != number);
        self.failed_endpoints.push(number);
    }

    /// After an answer that another endpoint may know better: whether there is one that was not
    /// asked yet and that can be reached. The next attempt goes there.
    pub(crate) async fn elsewhere(&mut self) -> bool {
        let Some(number) = self.answered.take().filter(|_| !self.endpoints.is_single()) else {
            return false;
        };
        self.failed_at(number);
        let found = timeout_at(
            self.deadline,
            self.endpoints.channel(&self.failed_endpoints, self.deadline),
        );
        self.next = found.await.ok().and_then(Result::ok);
        self.next.take_if(|(number, _)| self.failed_endpoints.contains(number));
        self.next.is_some()
    }

    /// The last answer was better than those before it: other calls go elsewhere first, too.
    pub(crate) fn was_better(&self) {
        for &number in &self.failed_endpoints {
            self.endpoints.cannot_serve(number);
        }
    }

    /// After UNAVAILABLE: finds an endpoint that was not asked yet. When there is none waits for one
    /// that accepts calls, new or again, and begins anew, once. Asking for its health is neither
    /// recorded nor counted.
    async fn find_another(&mut self, status: Status) -> Result<(), Failed> {
        let mut pause = FIRST_PAUSE;
        loop {
            let found = timeout_at(
                self.deadline,
                self.endpoints.channel(&self.failed_endpoints, self.deadline),
            )
            .await;
            let found = found.ok().and_then(Result::ok);
            if let Some((number, _)) = &found
                && !self.failed_endpoints.contains(number)
            {
                self.next = found;
                return Ok(());
            }
            if self.again || Instant::now() + pause >= self.patient_until {
                return Err(Failed::Status(status));
            }
            if let Some((number, channel)) = found {
                match self.health(&channel).await {
                    Ok(ServingStatus::Serving) => {
                        self.again = true;
                        self.failed_endpoints.clear();
                        self.next = Some((number, channel));
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(error) => match error::on_the_way(&error) {
                        // It is gone; the process that comes after it is reached by a new connection.
                        Some(OnTheWay::Lost(_)) => self.endpoints.connection_lost(number, &channel),
                        Some(OnTheWay::CertificateRefused(alert)) => {
                            return Err(Failed::CertificateRefused(alert));
                        }
                        // From what stands in front of it, or from one that is slow.
                        None if matches!(
                            error.code(),
                            Code::Unavailable | Code::DeadlineExceeded
                        ) => {}
                        None => return Err(Failed::Status(status)),
                    },
                }
                self.failed_at(number);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Whether the daemon accepts calls, by its own word.
    async fn health(&self, channel: &Channel) -> Result<ServingStatus, Status> {
        let mut request = Request::new(HealthCheckRequest::default());
        request.set_timeout(LONGEST_QUESTION);
        let mut health = HealthClient::new(channel.clone());
        let until = self.patient_until.min(Instant::now() + LONGEST_QUESTION);
        let answer = timeout_at(until, health.check(request)).await;
        let answer = answer.map_err(|_| Status::deadline_exceeded("no answer in time"))?;
        Ok(answer?.get_ref().status())
    }
}
