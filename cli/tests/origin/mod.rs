//! A server of one file, with ranges, that counts what it sends and can be slow or encrypted.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

pub(crate) struct Origin {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    bytes: Vec<u8>,
    tls: Option<Arc<rustls::ServerConfig>>,
    sent: AtomicU64,
    requests: AtomicUsize,
    /// Milliseconds for each MiB of a connection.
    pause: AtomicU64,
}

impl Origin {
    pub(crate) fn start(bytes: Vec<u8>, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            bytes,
            tls,
            sent: AtomicU64::new(0),
            requests: AtomicUsize::new(0),
            pause: AtomicU64::new(0),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.serve(stream));
            }
        });
        Self { port, shared }
    }

    /// Bytes of bodies that were given to the system to send.
    pub(crate) fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::SeqCst)
    }

    pub(crate) fn requests(&self) -> usize {
        self.shared.requests.load(Ordering::SeqCst)
    }

    pub(crate) fn slow(&self, per_mib: Duration) {
        self.shared.pause.store(per_mib.as_millis() as u64, Ordering::SeqCst);
    }
}

impl Shared {
    fn serve(&self, stream: TcpStream) {
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(config) => {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                Box::new(rustls::StreamOwned::new(connection, stream))
            }
        };
        let mut stream = BufReader::new(stream);
        while let Some(Asked { range }) = head(&mut stream) {
            self.requests.fetch_add(1, Ordering::SeqCst);
            if self.answer(stream.get_mut(), range).is_err() {
                return;
            }
        }
    }

    fn answer(&self, stream: &mut Box<dyn Stream>, range: Option<(usize, usize)>) -> std::io::Result<()> {
        let total = self.bytes.len();
        let (first, last) = range.map_or((0, total - 1), |(first, last)| (first, last.min(total - 1)));
        let status = if range.is_some() { "206 Partial Content" } else { "200 OK" };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nETag: \"one\"\r\nContent-Range: bytes {first}-{last}/{total}\r\nContent-Length: {}\r\n\r\n",
            last + 1 - first
        )?;
        for chunk in self.bytes[first..=last].chunks(1 << 20) {
            std::thread::sleep(Duration::from_millis(self.pause.load(Ordering::SeqCst)));
            stream.write_all(chunk)?;
            self.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
        }
        stream.flush()
    }
}

/// A request: the range that it asks for.
struct Asked {
    range: Option<(usize, usize)>,
}

/// The next request; `None` at the connection's end.
fn head(stream: &mut impl BufRead) -> Option<Asked> {
    let mut range = None;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            return Some(Asked { range });
        }
        if let Some(value) = line.strip_prefix("range: bytes=") {
            let (first, last) = value.split_once('-')?;
            range = Some((first.parse().ok()?, last.parse().unwrap_or(usize::MAX)));
        }
    }
}

/// A proxy that tunnels: its port, and the heads of the requests that it got, in lower case.
pub(crate) fn proxy() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (told, heads) = mpsc::channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let told = told.clone();
            std::thread::spawn(move || tunnel(client, &told));
        }
    });
    (port, heads)
}

fn tunnel(client: TcpStream, told: &mpsc::Sender<String>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let to = head.split(' ').nth(1)?.to_owned();
    told.send(head.to_ascii_lowercase()).ok()?;
    let server = TcpStream::connect(to).ok()?;
    let (mut to_client, mut to_server) = (client, server.try_clone().ok()?);
    to_client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
    std::thread::spawn(move || std::io::copy(&mut reader, &mut to_server));
    std::io::copy(&mut { server }, &mut to_client).ok()?;
    None
}
