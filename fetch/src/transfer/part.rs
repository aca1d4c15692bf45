//! One part of a file: asked for by its range, written as it comes, again from where it broke.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use hyper::body::Incoming;
use tokio::sync::watch;

use super::{Halt, PartsHalt, Transfer, blocking};
use crate::checksum::Follower;
use crate::client::{Answer, Trouble, host_of};
use crate::error::FetchError;
use crate::partial::Partial;
use crate::source::Guard;

/// Bytes that are gathered before they are written.
const WRITE: usize = 1 << 20;
/// Fewer bytes than these are no progress: a server that drips is left after as many attempts as one
/// that is silent.
const PROGRESS: u64 = 64 * 1024;

/// How an attempt ended that did not finish the part.
enum Broken {
    Trouble(Trouble),
    Changed,
    NoRanges,
    /// The place that the server sent us to earlier no longer serves: ask the server anew, at once.
    TargetGone,
}

impl From<Trouble> for Broken {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

impl From<FetchError> for Broken {
    fn from(error: FetchError) -> Self {
        Self::Trouble(error.into())
    }
}

impl Transfer<'_> {
    pub(super) async fn part(
        &self,
        part: usize,
        partial: &Arc<Partial>,
        follower: &Follower,
        accepted: &watch::Sender<bool>,
    ) -> Result<(), PartsHalt> {
        let mut patience = self.context.http.patience();
        let length = partial.range(part).1;
        loop {
            let before = partial.done(part);
            if before == length {
                return Ok(());
            }
            let slot = self.context.slots.acquire().await.expect("never closed");
            let broken = match self.attempt(part, partial, follower, accepted).await {
                Ok(()) => continue,
                Err(broken) => broken,
            };
            drop(slot);
            if partial.done(part) - before >= PROGRESS.min(length) {
                patience.progressed();
            }
            match broken {
                Broken::Changed => return Err(Halt::Changed.into()),
                Broken::NoRanges => return Err(PartsHalt::NoRanges),
                Broken::TargetGone => {}
                Broken::Trouble(Trouble::Lasting(error)) => return Err(Halt::Failed(error).into()),
                Broken::Trouble(Trouble::Passing { why, after }) => {
                    let ask = &self.remote.ask;
                    let pause = patience.failed(&why, after).map_err(|end| Halt::Failed(end.error(ask)))?;
                    self.context.progress.note(&format!("{}: {why}; trying again", host_of(&ask.url)));
                    tracing::warn!(
                        file = %self.remote.path, host = %host_of(&ask.url), part, %why,
                        pause_ms = pause.as_millis(), "trying again"
                    );
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    async fn attempt(
        &self,
        part: usize,
        partial: &Arc<Partial>,
        follower: &Follower,
        accepted: &watch::Sender<bool>,
    ) -> Result<(), Broken> {
        let (start, length) = partial.range(part);
        let from = start + partial.done(part);
        let is_whole = partial.parts() == 1 && from == 0;
        let mut ask = self.ask();
        let was_sent = ask.start.is_some();
        if !is_whole {
            ask = ask.with(header::RANGE, &format!("bytes={from}-{}", start + length - 1))?;
        }
        match &self.remote.guard {
            Guard::IfMatch(tag) => ask = ask.with(header::IF_MATCH, tag)?,
            Guard::IfRange(tag) if !is_whole => ask = ask.with(header::IF_RANGE, tag)?,
            Guard::IfRange(_) | Guard::Nothing => {}
        }
        let answer = self.context.http.once(&ask).await?;
        self.judge(&answer, from, is_whole, partial.size())?;
        if !answer.status().is_success() {
            if was_sent
                && answer.status().is_client_error()
                && answer.status() != StatusCode::TOO_MANY_REQUESTS
            {
                self.sent_to(None);
                return Err(Broken::TargetGone);
            }
            return Err(self.context.http.judge(&self.remote.ask, answer).await.into());
        }
        if answer.redirect.is_some() {
            self.sent_to(Some(answer.url.clone()));
        }
        accepted.send_replace(true);
        self.receive(answer.response.into_body(), part, partial, follower).await
    }

    /// Whether the answer is of the bytes that were asked for.
    fn judge(&self, answer: &Answer, from: u64, is_whole: bool, size: u64) -> Result<(), Broken> {
        let headers = answer.headers();
        let wrong = |problem: &str| {
            Err(Broken::from(FetchError::Answer {
                host: host_of(&answer.url),
                what: self.remote.path.clone(),
                problem: problem.to_owned(),
            }))
        };
        let is_encoded = headers.get(header::CONTENT_ENCODING).is_some_and(|e| e != "identity");
        match answer.status() {
            status if status.is_success() && is_encoded => wrong("an encoded body, which was not asked for"),
            status if status.is_success() && self.is_other(headers) => Err(Broken::Changed),
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some((at, total)) if at == from && total.is_none_or(|total| total == size) => Ok(()),
                Some((at, Some(_))) if at == from => Err(Broken::Changed),
                _ => wrong("another range than was asked for"),
            },
            StatusCode::OK if is_whole => match content_length(headers) {
                Some(length) if length != size => Err(Broken::Changed),
                _ => Ok(()),
            },
            StatusCode::OK => Err(Broken::NoRanges),
            status if status.is_success() => wrong("a success without the file"),
            StatusCode::PRECONDITION_FAILED => Err(Broken::Changed),
            StatusCode::RANGE_NOT_SATISFIABLE if answer.redirect.is_none() => Err(Broken::Changed),
            _ => Ok(()),
        }
    }

    /// Whether the answer bears another tag than the file had when it was listed.
    fn is_other(&self, headers: &HeaderMap) -> bool {
        let (Guard::IfMatch(wanted) | Guard::IfRange(wanted)) = &self.remote.guard else { return false };
        let name = if wanted.starts_with('"') { header::ETAG } else { header::LAST_MODIFIED };
        headers.get(name).is_some_and(|found| found.as_bytes() != wanted.as_bytes())
    }

    async fn receive(
        &self,
        mut body: Incoming,
        part: usize,
        partial: &Arc<Partial>,
        follower: &Follower,
    ) -> Result<(), Broken> {
        let mut left = partial.range(part).1 - partial.done(part);
        let mut waiting: Vec<Bytes> = Vec::new();
        let mut gathered = 0;
        while left > 0 {
            let next = self.context.http.frame(&mut body).await;
            let ended = match next {
                Ok(Some(mut chunk)) => {
                    chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
                    left -= chunk.len() as u64;
                    gathered += chunk.len();
                    waiting.push(chunk);
                    None
                }
                Ok(None) => Some(Trouble::passing("the connection ended before the file did")),
                Err(trouble) => Some(trouble),
            };
            if gathered >= WRITE || left == 0 || ended.is_some() {
                self.write(part, std::mem::take(&mut waiting), partial, follower).await?;
                gathered = 0;
            }
            if let Some(trouble) = ended {
                return Err(trouble.into());
            }
        }
        // Reads the end of the body, so that the connection can be used again.
        let _ = self.context.http.frame(&mut body).await;
        Ok(())
    }

    async fn write(
        &self,
        part: usize,
        chunks: Vec<Bytes>,
        partial: &Arc<Partial>,
        follower: &Follower,
    ) -> Result<(), FetchError> {
        let bytes: usize = chunks.iter().map(Bytes::len).sum();
        let file = partial.clone();
        blocking(move || file.append(part, &chunks)).await.map_err(|e| self.disk("write", e))?;
        self.context.progress.add(&self.remote.path, bytes as u64);
        follower.reached(partial.contiguous());
        Ok(())
    }
}

/// First byte and whole length of `Content-Range`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let value = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.trim().parse().ok()?, total.trim().parse().ok()))
}

pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_RANGE, value.parse().unwrap());
            content_range(&headers)
        };
        assert_eq!(range("bytes 5-9/20"), Some((5, Some(20))));
        assert_eq!(range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(range("bytes */20"), None);
        assert_eq!(range("items 5-9/20"), None);
    }
}
