//! Who asks, and whether they may.
//!
//! Over the Unix socket its owner may do everything. Over TCP a request says `Authorization: Bearer SECRET`; only the
//! secret's SHA-256 is known here and hashes are compared in constant time. Without a token a client on loopback may read.
//! What a verb needs is said in the table of `routes`; a body that asks for more calls [`Identity::require`] itself.

use super::Problem;
use crate::{
    config::{Token, TokenHash, TokenRole},
    model::ServiceName,
};
use arc_swap::ArcSwap;
use http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};
use std::{net::SocketAddr, sync::Arc};
use subtle::ConstantTimeEq;

/// The tokens in force; replaced when the configuration or a secret's file has changed. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Tokens(Arc<ArcSwap<Vec<Token>>>);

impl Tokens {
    /// These tokens.
    pub fn new(tokens: Vec<Token>) -> Tokens {
        Tokens(Arc::new(ArcSwap::from_pointee(tokens)))
    }

    /// From now on these, and no others.
    pub fn replace(&self, tokens: Vec<Token>) {
        self.0.store(Arc::new(tokens));
    }

    /// Whose secret this is. Looks at every token whichever matches, so that the time taken says nothing.
    fn find(&self, secret: &str) -> Option<Token> {
        let hash = hash_of(secret);
        let mut found = None;
        for token in self.0.load().iter() {
            if bool::from(token.hash.0.ct_eq(&hash.0)) {
                found = Some(token.clone());
            }
        }
        found
    }
}

/// What is kept of a secret.
pub fn hash_of(secret: &str) -> TokenHash {
    TokenHash(Sha256::digest(secret.as_bytes()).into())
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Somebody on the network.
    Tcp(SocketAddr),
    /// A process of the socket's owner (or of root).
    Socket {
        /// The user it runs as.
        uid: u32,
    },
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The token's name, the socket's user, or `anonymous`.
    pub actor: String,
    /// What they may do.
    pub role: TokenRole,
    /// Where they may do it; absent: everywhere.
    pub services: Option<Vec<ServiceName>>,
    /// Where they come from.
    pub source: String,
    /// Nobody proved anything: reads at most, whatever the role.
    pub anonymous: bool,
}

/// The word for a role.
pub(super) const fn role_name(role: TokenRole) -> &'static str {
    match role {
        TokenRole::Viewer => "viewer",
        TokenRole::Deployer => "deployer",
        TokenRole::Approver => "approver",
        TokenRole::Admin => "admin",
    }
}

/// Where a peer comes from, for the audit.
pub(super) fn source_of(peer: Peer) -> String {
    match peer {
        Peer::Tcp(address) => address.ip().to_canonical().to_string(),
        Peer::Socket { .. } => "socket".to_owned(),
    }
}

impl Identity {
    /// Finds out who asks. A wrong token is refused even where none is needed: whoever sent it wants to know.
    pub fn of(peer: Peer, headers: &HeaderMap, tokens: &Tokens) -> Result<Identity, Problem> {
        let source = source_of(peer);
        let address = match peer {
            Peer::Socket { uid } => {
                return Ok(Identity {
                    actor: format!("uid:{uid}"),
                    role: TokenRole::Admin,
                    services: None,
                    source,
                    anonymous: false,
                });
            }
            Peer::Tcp(address) => address,
        };
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            if !address.ip().to_canonical().is_loopback() {
                return Err(unauthorised("this address is read with a token only"));
            }
            return Ok(Identity {
                actor: "anonymous".to_owned(),
                role: TokenRole::Viewer,
                services: None,
                source,
                anonymous: true,
            });
        };
        let secret = given.to_str().ok().and_then(bearer);
        let Some(secret) = secret else {
            return Err(unauthorised(
                "the Authorization field is not `Bearer` and a token",
            ));
        };
        let Some(token) = tokens.find(secret) else {
            return Err(unauthorised("this token is not known here"));
        };
        Ok(Identity {
            actor: token.name,
            role: token.role,
            services: token.services,
            source,
            anonymous: false,
        })
    }

    /// Refuses unless the role suffices. `what` completes "to … ".
    pub fn require(&self, role: TokenRole, what: &str) -> Result<(), Problem> {
        if self.anonymous && role > TokenRole::Viewer {
            return Err(unauthorised(&format!("a token is needed to {what}")));
        }
        if self.role < role {
            let (needed, has) = (role_name(role), role_name(self.role));
            return Err(forbidden(
                "roleTooLow",
                format!("to {what} takes the role `{needed}`; `{}` is `{has}`", self.actor),
            )
            .hint(format!(
                "use a token with the role `{needed}` (`admin.tokens` in the configuration)"
            )));
        }
        Ok(())
    }

    /// Whether they may see and change this service.
    pub fn may_use(&self, service: &str) -> bool {
        let limited = self.services.as_ref();
        limited.is_none_or(|services| services.iter().any(|one| one.as_str() == service))
    }

    /// Refuses unless they may use this service.
    pub fn require_service(&self, service: &str) -> Result<(), Problem> {
        if self.may_use(service) {
            return Ok(());
        }
        Err(forbidden(
            "otherService",
            format!("`{}` is not for the service `{service}`", self.actor),
        )
        .hint("use a token that names this service, or no service, in `admin.tokens`"))
    }

    /// Refuses a token that is limited to services: this concerns all of them.
    pub fn require_everywhere(&self) -> Result<(), Problem> {
        if self.services.is_none() {
            return Ok(());
        }
        Err(forbidden(
            "otherService",
            format!(
                "`{}` is limited to its services; this concerns all of them",
                self.actor
            ),
        )
        .hint("use a token without `services`"))
    }
}

/// The secret of `Bearer SECRET`.
fn bearer(value: &str) -> Option<&str> {
    let (scheme, secret) = value.split_once(' ')?;
    let secret = secret.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

fn unauthorised(detail: &str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, "unauthorised", detail).hint(
        "send `Authorization: Bearer TOKEN` (command line: --token-file or SERIN_TOKEN_FILE), or use the local socket",
    )
}

fn forbidden(code: &str, detail: String) -> Problem {
    Problem::new(StatusCode::FORBIDDEN, code, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn tokens() -> Tokens {
        let token = |name: &str, role, services: Option<&[&str]>| Token {
            name: name.to_owned(),
            role,
            services: services.map(|all| all.iter().map(|one| ServiceName::new(one).unwrap()).collect()),
            hash: hash_of(&format!("secret-of-{name}")),
        };
        Tokens::new(vec![
            token("ci", TokenRole::Deployer, Some(&["shop"])),
            token("boss", TokenRole::Admin, None),
        ])
    }

    fn ask(from: &str, authorization: Option<&str>) -> Result<Identity, Problem> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
        }
        Identity::of(Peer::Tcp(from.parse().unwrap()), &headers, &tokens())
    }

    #[test]
    fn without_a_token_loopback_reads_and_nobody_writes() {
        for loopback in ["127.0.0.1:4", "[::1]:4", "[::ffff:127.0.0.1]:4"] {
            let who = ask(loopback, None).unwrap();
            assert!(who.require(TokenRole::Viewer, "read").is_ok());
            let refused = who.require(TokenRole::Deployer, "abort").unwrap_err();
            assert_eq!((refused.status, refused.code.as_str()), (401, "unauthorised"));
        }
        assert_eq!(ask("10.0.0.1:4", None).unwrap_err().status, 401);
    }

    #[test]
    fn a_wrong_or_malformed_token_is_refused_even_on_loopback() {
        for bad in [
            "Bearer nope",
            "Bearer ",
            "Basic secret-of-ci",
            "secret-of-ci",
            "Bearer secret-of-CI",
        ] {
            assert_eq!(ask("127.0.0.1:4", Some(bad)).unwrap_err().status, 401, "{bad}");
        }
    }

    #[test]
    fn a_token_is_held_to_its_role_and_services() {
        let who = ask("10.0.0.1:4", Some("bearer  secret-of-ci")).unwrap();
        assert_eq!(who.actor, "ci");
        assert!(who.require(TokenRole::Deployer, "deploy").is_ok());
        assert_eq!(
            who.require(TokenRole::Approver, "promote").unwrap_err().status,
            403
        );
        assert!(who.require_service("shop").is_ok());
        assert_eq!(who.require_service("till").unwrap_err().code, "otherService");
        assert!(who.require_everywhere().is_err());
    }

    #[test]
    fn a_replaced_token_is_not_known_any_more() {
        let tokens = tokens();
        assert!(tokens.find("secret-of-boss").is_some());
        tokens.replace(Vec::new());
        assert!(tokens.find("secret-of-boss").is_none());
    }

    #[test]
    fn the_socket_has_full_rights() {
        let who = Identity::of(Peer::Socket { uid: 7 }, &HeaderMap::new(), &tokens()).unwrap();
        assert_eq!((who.actor.as_str(), who.source.as_str()), ("uid:7", "socket"));
        assert!(who.require(TokenRole::Admin, "everything").is_ok());
    }
}
