//! What Serin says to a client, whichever protocol that speaks.

use super::backends::Seen;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};

/// What one client sends, and what it means by that.
pub(super) trait Client: Sync {
    /// How to get it again.
    fn name(&self) -> &str;

    /// What it sends, for people.
    fn shown(&self) -> String;

    /// Sends it all and takes the answers. `methods`: of the requests that will be answered, where that is known.
    fn drive(&self, to: SocketAddr, from: Ipv4Addr, methods: &[String]) -> Said;

    /// Whether a request that was refused may have arrived all the same: one announced as empty has, when its head has.
    fn may_arrive(&self, place: usize) -> bool;

    /// Panics unless what is well-formed was seen as it was meant.
    fn is_as_meant(&self, said: &Said, seen: &[Seen]);
}

/// What came back.
#[derive(Debug)]
pub(super) struct Said {
    pub(super) answers: Vec<Answer>,
    /// Some time limit may have had its part in it.
    pub(super) late: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// To a request that the back end has taken: its method, and what it made of it.
    Taken { method: String, digest: String },
    /// nginx would not have it.
    Declined(String),
    /// Serin would not have it.
    Refused(String),
}

impl Answer {
    /// An answer with this status and these fields.
    pub(super) fn of(status: String, field: impl Fn(&str) -> Option<String>) -> Answer {
        match (field("x-digest"), field("x-method"), field("server")) {
            (Some(digest), Some(method), _) => Answer::Taken { method, digest },
            (_, _, Some(server)) if server.starts_with("nginx") => Answer::Declined(status),
            (_, _, _) => Answer::Refused(status),
        }
    }

    /// What the back end made of the request, if it has taken it.
    pub(super) fn digest(&self) -> Option<&str> {
        match self {
            Answer::Taken { digest, .. } => Some(digest),
            Answer::Declined(_) | Answer::Refused(_) => None,
        }
    }
}

impl Said {
    /// What the back end made of the requests that it has taken.
    pub(super) fn taken(&self) -> Vec<&str> {
        self.answers.iter().filter_map(Answer::digest).collect()
    }

    /// The methods of the requests that were answered.
    pub(super) fn methods(&self) -> Vec<String> {
        let method = |answer: &Answer| match answer {
            Answer::Taken { method, .. } => method.clone(),
            Answer::Declined(_) | Answer::Refused(_) => String::new(),
        };
        self.answers.iter().map(method).collect()
    }
}

/// A connection from an address of this machine's own.
pub(super) fn connect(to: SocketAddr, from: Ipv4Addr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}
