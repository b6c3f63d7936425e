//! A minimal Redis client, for inspecting a server independently of the tested code.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

/// Where a server listens.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    Unix(PathBuf),
    Port(u16),
}

#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    Text(Vec<u8>),
    Number(i64),
    List(Vec<Reply>),
    Nil,
    Error(String),
}

pub struct Wire(BufReader<Box<dyn Stream>>);

trait Stream: Read + Write + Send {}
impl<S: Read + Write + Send> Stream for S {}

impl Address {
    pub fn uri(&self) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}", path.display()),
            Self::Port(port) => format!("redis://127.0.0.1:{port}"),
        }
    }

    /// For a user with the password `pw`.
    pub fn uri_as(&self, user: &str) -> String {
        match self {
            Self::Unix(path) => format!("unix://{}?user={user}&pass=pw", path.display()),
            Self::Port(port) => format!("redis://{user}:pw@127.0.0.1:{port}"),
        }
    }

    pub fn port(&self) -> u16 {
        match self {
            Self::Unix(_) => panic!("a unix socket has no port"),
            Self::Port(port) => *port,
        }
    }

    /// Asks once.
    pub fn ask(&self, command: &[&str]) -> Reply {
        Wire::connect(self).and_then(|mut wire| wire.try_ask(command)).unwrap_or_else(|e| Reply::Error(e.to_string()))
    }

    /// A field of `INFO`, or nothing.
    pub fn info(&self, section: &str, field: &str) -> String {
        let text = self.ask(&["INFO", section]).text();
        let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_default().trim_end().to_owned()
    }
}

impl Wire {
    pub fn connect(address: &Address) -> io::Result<Self> {
        let patience = Some(Duration::from_secs(60));
        let stream: Box<dyn Stream> = match address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
            Address::Port(port) => {
                let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, *port))?;
                stream.set_nodelay(true)?;
                stream.set_read_timeout(patience)?;
                Box::new(stream)
            }
        };
        Ok(Self(BufReader::new(stream)))
    }

    pub fn ask(&mut self, command: &[&str]) -> Reply {
        self.try_ask(command).unwrap()
    }

    pub fn try_ask(&mut self, command: &[&str]) -> io::Result<Reply> {
        let mut bytes = format!("*{}\r\n", command.len()).into_bytes();
        for part in command {
            bytes.extend(format!("${}\r\n{part}\r\n", part.len()).bytes());
        }
        self.send(&bytes)
    }

    /// Sends bytes as they are, such as those that a client has sent before, and gives the first answer.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<Reply> {
        self.0.get_mut().write_all(bytes)?;
        self.read()
    }

    fn read(&mut self) -> io::Result<Reply> {
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (kind, rest) = line.trim_end().split_at(1);
        let number = || rest.parse::<i64>().map_err(io::Error::other);
        Ok(match kind {
            "+" => Reply::Text(rest.as_bytes().to_vec()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(number()?),
            "$" | "*" if number()? < 0 => Reply::Nil,
            "$" => {
                let mut text = vec![0; number()? as usize + 2];
                self.0.read_exact(&mut text)?;
                text.truncate(text.len() - 2);
                Reply::Text(text)
            }
            "*" => Reply::List((0..number()?).map(|_| self.read()).collect::<io::Result<_>>()?),
            _ => return Err(io::Error::other("not RESP")),
        })
    }
}

impl Reply {
    pub fn text(&self) -> String {
        match self {
            Self::Text(text) => String::from_utf8_lossy(text).into_owned(),
            _ => String::new(),
        }
    }

    pub fn number(&self) -> i64 {
        match self {
            Self::Number(number) => *number,
            other => panic!("not a number: {other:?}"),
        }
    }

    pub fn list(self) -> Vec<Reply> {
        match self {
            Self::List(list) => list,
            other => panic!("not a list: {other:?}"),
        }
    }

    pub fn is_error(&self) -> bool {
        matches!(self, Self::Error(_))
    }
}
