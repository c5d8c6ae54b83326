//! Who may speak to the server: requests that name it by one of its own names, and no page of another site.
//!
//! A page that a browser shows can send requests to this machine. It tells its site in `Origin`; where its site's name has come to
//! mean this machine (DNS rebinding), it still tells that name in `Host`.

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use std::net::IpAddr;
use std::sync::Arc;

/// The names of a server: those of this machine for itself, the address it is bound to, and those allowed beside them.
#[derive(Debug, Clone)]
pub struct Names {
    pub bound: IpAddr,
    pub more: Vec<String>,
}

impl Names {
    /// Whether `host` or `host:port` is one of them, whatever the port: it may be forwarded.
    fn has(&self, authority: &str) -> bool {
        let Ok(authority) = authority.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host().trim_end_matches('.');
        if self.more.iter().any(|name| name.eq_ignore_ascii_case(host)) {
            return true;
        }
        match host.trim_matches(['[', ']']).parse::<IpAddr>() {
            // An address is no name that could be bound to another machine. Of a server on all addresses each is its own.
            Ok(ip) => ip.is_loopback() || ip == self.bound || self.bound.is_unspecified(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        }
    }

    /// Why a request is refused.
    fn objection(&self, headers: &HeaderMap) -> Option<String> {
        let Some(host) = headers.get(HOST).and_then(|host| host.to_str().ok()) else {
            return Some("the request names no host".into());
        };
        if !self.has(host) {
            return Some(format!("{host:?} is not a name of this server: start it with --allow-host NAME to add one"));
        }
        let origin = headers.get(ORIGIN)?;
        let same =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).is_some_and(|(_, from)| from == host);
        (!same).then(|| format!("pages of {origin:?} may not use this server"))
    }
}

/// Passes on the requests that may be answered.
pub async fn check(State(names): State<Arc<Names>>, request: Request, next: Next) -> Response {
    // A request may name its host in its first line, too.
    let named = request.uri().authority().is_none_or(|authority| names.has(authority.as_str()));
    let objection = if named { names.objection(request.headers()) } else { Some("it names another server".into()) };
    match objection {
        None => next.run(request).await,
        Some(why) => (StatusCode::FORBIDDEN, axum::Json(json!({ "detail": why }))).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_answers_to_its_own_names_only() {
        let names = |bound: &str| Names { bound: bound.parse().unwrap(), more: vec!["games.example.org".into()] };
        let local = names("127.0.0.1");
        for own in [
            "localhost",
            "LOCALHOST:9000",
            "localhost.:1",
            "127.0.0.1:8000",
            "127.8.8.8",
            "[::1]:8000",
            "Games.example.org",
        ] {
            assert!(local.has(own), "{own}");
        }
        for other in [
            "evil.example.org",
            "localhost.evil.org",
            "127.0.0.1.evil.org",
            "10.0.0.7",
            "a@localhost",
            "",
            "local host",
        ] {
            assert!(!local.has(other), "{other}");
        }
        assert!(names("10.0.0.7").has("10.0.0.7:80") && !names("10.0.0.7").has("10.0.0.8"));
        assert!(names("0.0.0.0").has("10.0.0.8") && !names("0.0.0.0").has("evil.example.org"));
    }

    #[test]
    fn a_page_may_use_the_server_it_came_from_only() {
        let names = Names { bound: "127.0.0.1".parse().unwrap(), more: Vec::new() };
        let refused = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, host.parse().unwrap());
            origin.map(|origin| headers.insert(ORIGIN, origin.parse().unwrap()));
            names.objection(&headers).is_some()
        };
        assert!(!refused("127.0.0.1:8000", None));
        assert!(!refused("127.0.0.1:8000", Some("http://127.0.0.1:8000")));
        for foreign in ["http://evil.example.org", "http://127.0.0.1:8001", "http://localhost:8000", "null", ""] {
            assert!(refused("127.0.0.1:8000", Some(foreign)), "{foreign}");
        }
        assert!(refused("evil.example.org", Some("http://evil.example.org")), "DNS rebinding");
        assert!(names.objection(&HeaderMap::new()).is_some());
    }
}
