//! The page of the operations listener: the daemon at a glance, kept up to date while it is open.
//!
//! Files that are part of the program, and a stream of server-sent events. It only reads. Pages that
//! are open share what is rendered for them, and nothing is rendered while none is.

mod frame;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use http::header::{CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame as BodyFrame};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::reader::Reader;
use super::{Body, OperationsState, text, whole, with_body};
use frame::Frame;

/// Pages that may be open at a time.
pub(crate) const MOST_PAGES: usize = 16;
/// How long one may be open; then the browser asks anew.
pub(super) const LONGEST: Duration = Duration::from_hours(1);
/// How often open pages are told what has changed.
const INTERVAL: Duration = Duration::from_secs(2);
/// Rendering rests so many times as long as it took: it takes no more than a twentieth of a processor.
const REST: u32 = 20;

const SCRIPT: &str = "text/javascript; charset=utf-8";
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

/// A file of the page; none where the path is not one.
pub(super) fn file(path: &str) -> Option<Response<Body>> {
    let (content_type, content) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("page.html")),
        "/page.css" => ("text/css; charset=utf-8", include_str!("page.css")),
        "/page.js" => (SCRIPT, include_str!("page.js")),
        "/attention.js" => (SCRIPT, include_str!("attention.js")),
        "/lists.js" => (SCRIPT, include_str!("lists.js")),
        "/words.js" => (SCRIPT, include_str!("words.js")),
        "/icon.svg" => ("image/svg+xml", include_str!("icon.svg")),
        _ => return None,
    };
    let mut response = whole(StatusCode::OK, content_type, content);
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Some(response)
}

/// The open pages, and what they were told last.
#[derive(Debug)]
pub(super) struct Pages {
    places: Arc<Semaphore>,
    opened: Notify,
    newest: watch::Sender<Option<Arc<Frame>>>,
}

impl Default for Pages {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(MOST_PAGES));
        Self { places, opened: Notify::new(), newest: watch::Sender::new(None) }
    }
}

/// One open page.
struct Page {
    reader: Arc<Reader>,
    newest: watch::Receiver<Option<Arc<Frame>>>,
    /// The number of the frame that it was sent last.
    seen: Option<u64>,
    _place: OwnedSemaphorePermit,
}

impl Pages {
    /// The stream of events for one more page, as long as it may read; refused where as many as allowed
    /// are open.
    pub(super) fn open(&self, reader: Arc<Reader>) -> Response<Body> {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "as many pages as allowed are open\n");
        };
        let newest = self.newest.subscribe();
        let page = Page { reader, newest, seen: None, _place: place };
        self.opened.notify_one();
        let events = futures::stream::unfold(page, |mut page| async move {
            let event = page.next().await?;
            Some((event, page))
        });
        let events = events.map(|event| Ok::<_, Infallible>(BodyFrame::data(event)));
        let body = StreamBody::new(events).boxed_unsync();
        with_body(StatusCode::OK, "text/event-stream", body)
    }

    /// Renders what open pages are to be told, for ever; waits while none is open.
    pub(super) async fn keep_up_to_date(&self, state: &OperationsState) {
        loop {
            while self.newest.receiver_count() == 0 {
                // What was rendered for pages that have gone is old.
                self.newest.send_replace(None);
                self.opened.notified().await;
            }
            let begun = Instant::now();
            let before = self.newest.borrow().clone();
            let rendered = state
                .rendered(move |sources| Frame::after(before.as_deref(), sources.status()))
                .await;
            if let Ok(frame) = rendered {
                self.newest.send_replace(Some(Arc::new(frame)));
            }
            tokio::time::sleep(INTERVAL.max(begun.elapsed() * REST)).await;
        }
    }
}

impl Page {
    /// The next event; none once it may not read any more.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let newest = self.newest.borrow_and_update().clone();
            if let Some(frame) = newest.filter(|frame| self.seen != Some(frame.number())) {
                if !self.reader.may_read() {
                    return None;
                }
                let event = frame.since(self.seen);
                self.seen = Some(frame.number());
                return Some(event);
            }
            self.newest.changed().await.ok()?;
        }
    }
}

#[cfg(test)]
mod tests;
