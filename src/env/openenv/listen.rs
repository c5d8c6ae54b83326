//! The server's connections: how many, how long a request may take to come, and how they end.

use axum::Router;
use axum::body::{HttpBody, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

/// Longest message or body of a request, bytes.
pub const LONGEST: usize = 1 << 20;
/// Most connections that are no sessions (yet); more wait until one ends.
const CONNECTIONS: u32 = 256;
/// Time for what is under way when the server ends.
pub const GRACE: Duration = Duration::from_secs(5);

/// Bounds of a server.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// Most sessions at once, and HTTP requests that play; one more is told that there is no room.
    pub sessions: usize,
    /// A session that says nothing for so long is closed, as is another connection after so long.
    pub idle: Duration,
    /// Longest time for the head of a request to come, the next one on the same connection included, and for its body.
    pub request: Duration,
}

/// Resolves when `stop` holds true.
pub async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error: nobody is left who could stop it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// Serves `routes` until `stop` holds true.
pub async fn serve(listener: TcpListener, routes: Router, bounds: Bounds, mut stop: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS as usize));
    let service = TowerToHyperService::new(routes);
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(bounds.request);
    loop {
        let (stream, place) = select! {
            accepted = accept(&listener, &room) => accepted,
            () = stopped(&mut stop) => break,
        };
        let connection = http.serve_connection(TokioIo::new(stream), service.clone()).with_upgrades();
        let mut stop = stop.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // A client that breaks its connection is its own affair.
            select! {
                _ = timeout(bounds.idle, connection.as_mut()) => {}
                () = stopped(&mut stop) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = timeout(GRACE, connection).await;
                }
            }
            drop(place);
        });
    }
    drop(listener);
    // All places are free when all connections have ended.
    let _ = timeout(GRACE, room.acquire_many(CONNECTIONS)).await;
}

/// The next connection, when there is a place for it.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // It is never closed.
    let place = room.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                return (stream, place);
            }
            // Too many open files, say: some will be closed.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

/// Passes on a request with its whole body, if that comes in time.
pub async fn whole(State(patience): State<Duration>, request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > LONGEST as u64 {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    match timeout(patience, to_bytes(body, LONGEST)).await {
        Ok(Ok(bytes)) => next.run(Request::from_parts(head, bytes.into())).await,
        Ok(Err(_)) => StatusCode::PAYLOAD_TOO_LARGE.into_response(),
        Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
    }
}
