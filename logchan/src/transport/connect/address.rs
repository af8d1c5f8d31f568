//! Where a primary listens.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::ConnectError;

/// `HOST:PORT` for TCP, `unix:PATH` for shared memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// One attempt, of at most `limit`.
    pub(super) fn connect(&self, limit: Duration) -> io::Result<OwnedFd> {
        Ok(match self {
            Self::Tcp(address) => TcpStream::connect_timeout(address, limit)?.into(),
            Self::Unix(path) => UnixStream::connect(path)?.into(),
        })
    }
}

impl FromStr for Address {
    type Err = ConnectError;

    /// Resolves a host's name: may take a while.
    fn from_str(text: &str) -> Result<Self, ConnectError> {
        let wrong = |why: String| ConnectError::Address {
            found: text.to_owned(),
            why,
        };
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err(wrong("the path is empty".into()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let mut found = text
            .to_socket_addrs()
            .map_err(|error| wrong(error.to_string()))?;
        found
            .next()
            .map(Self::Tcp)
            .ok_or_else(|| wrong("the host's name has no address".into()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
