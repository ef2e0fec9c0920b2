//! What an operator asks over HTTP: metrics, health, and the leases. Nothing can be changed this way.
//!
//! A connection carries one request, and has [`PATIENCE`] for all of it. When [`MAX_CONNECTIONS`] are
//! open, the next one closes the oldest: whoever says nothing keeps nobody else out.
//!
//! # Which requests are answered
//!
//! Whoever can connect may ask. A browser can connect to the loopback addresses of its host, and a
//! web page can make it ask there under a name that it lets point to them (DNS rebinding). So a server
//! that listens on a loopback address refuses requests for a host that is neither an IP address nor
//! `localhost`. On any other address the network's operators have given the host names that the server
//! cannot know, and all are answered.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use http_body_util::channel::Sender;
use http_body_util::{Channel, Either, Full};
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::http::uri::Authority;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::timeout;
use tracing::info;

use crate::metrics;
use crate::serve::{Shared, accept_failed};
use crate::server::Server;

/// The most connections at one time.
const MAX_CONNECTIONS: usize = 16;

/// How long a connection may last: to send a request, and to read its answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most bytes of a request's line and headers. It is the least that hyper can be told.
const MAX_REQUEST: usize = 8192;

/// How many leases are looked up at a time. Each may take a file of `/proc`, and the server's other
/// clients wait meanwhile.
const LEASES_AT_ONCE: usize = 32;

const INDEX: &str = "\
portserver

/metrics  metrics for Prometheus
/healthz  `ok`, or status 503 when the server is about to end
/leases   who has which port, as JSON
";

type Body = Either<Full<Bytes>, Channel<Bytes>>;

/// Starts to answer at `listener`.
pub(crate) fn start(listener: TcpListener, shared: &Rc<Shared>) -> io::Result<()> {
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    info!("metrics at http://{address}/metrics");
    spawn_local(accept(listener, address, Rc::clone(shared)));
    Ok(())
}

async fn accept(listener: tokio::net::TcpListener, address: SocketAddr, shared: Rc<Shared>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|connection| !connection.is_finished());
                if open.len() == MAX_CONNECTIONS
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let attended = attend(stream, address, Rc::clone(&shared));
                open.push_back(spawn_local(timeout(PATIENCE, attended)).abort_handle());
            }
            Err(err) => accept_failed(&err, &shared).await,
        }
    }
}

async fn attend(stream: TcpStream, address: SocketAddr, shared: Rc<Shared>) {
    let answer = service_fn(|request| {
        let response = respond(&request, address.ip(), &shared);
        async { Ok::<_, Infallible>(response) }
    });
    // It fails if the client hangs up or sends garbage; then hyper has told it so.
    _ = http1::Builder::new()
        .keep_alive(false)
        // `printf 'GET / HTTP/1.0\n\n' | nc -N` is a client too.
        .half_close(true)
        .max_buf_size(MAX_REQUEST)
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// Answers one request that came in at an address of ours.
fn respond<B>(request: &Request<B>, address: IpAddr, shared: &Rc<Shared>) -> Response<Body> {
    if address.is_loopback() && !names_this_host(request) {
        let text = "this server has no name: ask it by its IP address, or as localhost\n";
        return response(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let answer: fn(&Rc<Shared>) -> Response<Body> = match request.uri().path() {
        "/" => |_| response(StatusCode::OK, INDEX),
        "/healthz" => |shared| health(&shared.server),
        "/leases" => leases,
        "/metrics" => |shared| {
            let text = metrics::text(&shared.server.borrow());
            typed(response(StatusCode::OK, text), metrics::CONTENT_TYPE)
        },
        _ => return response(StatusCode::NOT_FOUND, "not found: see /\n"),
    };
    // hyper leaves out the body where HEAD asks for it.
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(header::ALLOW, allowed);
        return response;
    }
    answer(shared)
}

/// Tells whether a request is for an IP address or for `localhost`, whatever the port. One that does
/// not say, as in HTTP/1.0, comes from no browser.
pub(crate) fn names_this_host<B>(request: &Request<B>) -> bool {
    let is_ours = |host: &str| {
        let host = host.to_ascii_lowercase();
        let address = host
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        address.unwrap_or(&host).parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
    };
    let named = request.headers().get_all(header::HOST).iter();
    request.uri().host().is_none_or(is_ours)
        && named
            .map(HeaderValue::as_bytes)
            .all(|host| Authority::try_from(host).is_ok_and(|authority| is_ours(authority.host())))
}

fn health(server: &RefCell<Server>) -> Response<Body> {
    if server.borrow().is_stopping() {
        response(StatusCode::SERVICE_UNAVAILABLE, "stopping\n")
    } else {
        response(StatusCode::OK, "ok\n")
    }
}

/// Answers with all leases, as `list` of the extended protocol does.
///
/// However many there are, they are looked up a few at a time, and as fast as the client reads them.
/// What it gets is ascending by port, and each lease was there when its turn came.
fn leases(shared: &Rc<Shared>) -> Response<Body> {
    let (sender, body) = Channel::new(1);
    spawn_local(send_leases(sender, Rc::clone(shared)));
    typed(Response::new(Either::Right(body)), "application/json")
}

async fn send_leases(mut sender: Sender<Bytes>, shared: Rc<Shared>) {
    let mut text = String::from(r#"{"ok":true,"leases":["#);
    let mut next = Some(0);
    let mut is_first = true;
    while let Some(first) = next {
        let leases: Vec<_> = {
            let server = shared.server.borrow();
            server.leases_from(first).take(LEASES_AT_ONCE).collect()
        };
        next = leases.last().and_then(|lease| lease.port.checked_add(1));
        for lease in leases {
            if !std::mem::take(&mut is_first) {
                text.push(',');
            }
            text.push_str(&serde_json::to_string(&lease).expect("it has only texts and numbers"));
        }
        if next.is_none() {
            text.push_str("]}\n");
        }
        // It waits until the client has read what was before. An error: it has hung up.
        if sender
            .send_data(std::mem::take(&mut text).into())
            .await
            .is_err()
        {
            return;
        }
    }
}

fn response(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(text.into())));
    *response.status_mut() = status;
    typed(response, "text/plain; charset=utf-8")
}

fn typed(mut response: Response<Body>, content_type: &'static str) -> Response<Body> {
    let headers = response.headers_mut();
    let content_type = HeaderValue::from_static(content_type);
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // A tag is anybody's text: no browser is to take it for a page.
    let nosniff = HeaderValue::from_static("nosniff");
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_ends_when_the_server_is_told_to_stop() {
        let server = RefCell::new(Server::new("1".parse().unwrap(), None).unwrap());
        assert_eq!(health(&server).status(), StatusCode::OK);
        server.borrow_mut().stop();
        assert_eq!(health(&server).status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn addresses_and_localhost_are_names_of_this_host() {
        for host in [
            "127.0.0.1",
            "127.0.0.1:9469",
            "10.0.0.7:80",
            "[::1]",
            "[::1]:9469",
            "localhost",
            "LocalHost:9469",
            "a.localhost",
        ] {
            assert!(asks_for(&[host]), "{host}");
        }
        assert!(asks_for(&[]));
    }

    #[test]
    fn other_names_are_not_of_this_host() {
        for host in [
            "example.com",
            "example.com:9469",
            "127.0.0.1.example.com",
            "localhost.example.com",
            "notlocalhost",
            "user@example.com",
            "",
            " ",
            "\u{fc}",
        ] {
            assert!(!asks_for(&[host]), "{host}");
        }
        assert!(!asks_for(&["localhost", "example.com"]));
        assert!(!names_this_host(
            &Request::get("http://example.com/").body(()).unwrap()
        ));
    }

    fn asks_for(hosts: &[&str]) -> bool {
        let mut request = Request::get("/");
        for host in hosts {
            request = request.header(
                header::HOST,
                HeaderValue::from_bytes(host.as_bytes()).unwrap(),
            );
        }
        names_this_host(&request.body(()).unwrap())
    }
}
