//! Services that speak first: SMTP (RFC 5321), FTP (RFC 959) and SSH (RFC 4253).

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Answer, outcome_of, wrong};
use crate::core::probe::ProbeOutcome;

/// Longest line that is read, in bytes.
const LINE_BYTES_MAX: usize = 1024;
/// An SSH server may say so many lines before its banner.
const LINES_MAX: usize = 32;
/// How long a service has to react to a farewell.
const FAREWELL: Duration = Duration::from_secs(1);

/// A greeting with the code 220, answered with QUIT so that the service has nothing to complain about in its log.
pub(super) async fn ask_220(mut stream: TcpStream) -> Answer {
    let line = line(&mut stream).await?;
    let greets = line.starts_with(b"220") && matches!(line.get(3), None | Some(b' ' | b'-' | b'\r'));
    if !greets {
        return Err(wrong("220", &line));
    }
    tokio::spawn(timeout(FAREWELL, async move {
        // Whether it takes leave as well does not matter.
        let _ = stream.write_all(b"QUIT\r\n").await;
        let _ = tokio::io::copy(&mut stream.take(LINE_BYTES_MAX as u64), &mut tokio::io::sink()).await;
    }));
    Ok(())
}

/// A line that begins with `SSH-`.
pub(super) async fn ask_ssh(mut stream: TcpStream) -> Answer {
    let mut first = Vec::new();
    for _ in 0..LINES_MAX {
        let line = line(&mut stream).await?;
        if line.starts_with(b"SSH-") {
            return Ok(());
        }
        if first.is_empty() {
            first = line;
        }
    }
    Err(wrong("SSH-", &first))
}

/// One line without its end; what a service sends without one is cut.
pub(super) async fn line(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, ProbeOutcome> {
    let mut line = Vec::new();
    while line.len() < LINE_BYTES_MAX {
        // A greeting is short, and no byte behind the line may be taken.
        match stream.read_u8().await {
            Ok(b'\n') => return Ok(line),
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof && line.is_empty() => {
                return Err(ProbeOutcome::Refused("the connection is closed without a word".to_owned()));
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(line),
            Err(error) => return Err(outcome_of(&error)),
        }
    }
    Ok(line)
}
