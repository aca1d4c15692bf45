//! A file whose server sends it only whole: one connection, from the beginning each time.

use bytes::Bytes;
use http::header;

use super::part::content_length;
use super::{Halt, Transfer, blocking};
use crate::checksum::{self, Sums};
use crate::client::{Trouble, host_of};
use crate::error::{FetchError, at};
use crate::partial::create;

const WRITE: usize = 1 << 20;

impl Transfer<'_> {
    /// The size of the file, and its checksums.
    pub(super) async fn streamed(&self) -> Result<(u64, Sums), Halt> {
        let mut patience = self.context.http.patience();
        let ask = &self.remote.ask;
        loop {
            let slot = self.context.slots.acquire().await.expect("never closed");
            let mut written = 0;
            let (why, after) = match self.stream_once(&mut written).await {
                Ok(()) => break,
                Err(Trouble::Lasting(error)) => return Err(Halt::Failed(error)),
                Err(Trouble::Passing { why, after }) => (why, after),
            };
            drop(slot);
            self.context.progress.take_back(written);
            let pause = patience.failed(&why, after).map_err(|end| end.error(ask))?;
            self.context.progress.note(&format!("{}: {why}; trying again", host_of(&ask.url)));
            tracing::warn!(
                file = %self.remote.path, host = %host_of(&ask.url), %why,
                pause_ms = pause.as_millis(), "trying again from the beginning"
            );
            tokio::time::sleep(pause).await;
        }
        let (path, asked) = (self.places.file.clone(), self.remote.checksum.clone());
        let sums = blocking(move || {
            let file = std::sync::Arc::new(create(&path, false)?);
            file.sync_all()?;
            Ok((file.metadata()?.len(), checksum::of_file(file, asked)?))
        });
        Ok(sums.await.map_err(at("read", &self.places.file))?)
    }

    async fn stream_once(&self, written: &mut u64) -> Result<(), Trouble> {
        let http = &self.context.http;
        let answer = http.once(&self.remote.ask).await?;
        if answer.status() != http::StatusCode::OK {
            return Err(http.judge(&self.remote.ask, answer).await);
        }
        let wrong = |problem: &str| FetchError::Answer {
            host: host_of(&answer.url),
            what: self.remote.path.clone(),
            problem: problem.to_owned(),
        };
        if answer.headers().get(header::CONTENT_ENCODING).is_some_and(|e| e != "identity") {
            return Err(wrong("an encoded body, which was not asked for").into());
        }
        let promised = self.remote.size.or(content_length(answer.headers()));
        let path = self.places.file.clone();
        let open = blocking(move || {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            create(&path, true)
        });
        let file = std::sync::Arc::new(open.await.map_err(at("open", &self.places.file))?);
        let mut body = answer.response.into_body();
        let mut waiting: Vec<Bytes> = Vec::new();
        let mut gathered = 0;
        loop {
            let chunk = http.frame(&mut body).await?;
            let is_end = chunk.is_none();
            if let Some(chunk) = chunk {
                gathered += chunk.len();
                waiting.push(chunk);
            }
            if gathered >= WRITE || is_end {
                let (chunks, file, at) = (std::mem::take(&mut waiting), file.clone(), *written);
                let write = move || {
                    use std::os::unix::fs::FileExt;
                    chunks.iter().try_fold(at, |at, chunk| {
                        file.write_all_at(chunk, at)?;
                        Ok(at + chunk.len() as u64)
                    })
                };
                blocking(write).await.map_err(|e| self.disk("write", e))?;
                *written += gathered as u64;
                self.context.progress.add(&self.remote.path, gathered as u64);
                gathered = 0;
            }
            if is_end {
                return match promised {
                    Some(promised) if *written != promised => {
                        Err(Trouble::passing(format!("{written} bytes came of {promised}")))
                    }
                    _ => Ok(()),
                };
            }
        }
    }
}
