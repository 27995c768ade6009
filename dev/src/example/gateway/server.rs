//! The HTTP server: accepts connections, and can cut a connection instead of responding.
use std::{fmt, time::Duration};

use axum::{Router, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::Service as _};
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::stopped;

/// A response extension that cuts the connection instead of sending the response.
#[derive(Debug, Clone, Copy)]
pub(super) struct CutConnection;

impl fmt::Display for CutConnection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the connection is cut by an injected fault")
    }
}

impl std::error::Error for CutConnection {}

/// Serves requests until `stop` is set, and then cuts all open connections.
pub(super) async fn run(listener: TcpListener, router: Router, mut stop: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(serve(stream, router.clone()));
                }
                // The process probably has no free file descriptor. The pause lets other connections end.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn serve(stream: TcpStream, router: Router) {
    let router = TowerToHyperService::new(router);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = router.call(request);
        async move { response.await.map_or_else(|never| match never {}, cut_or_respond) }
    });
    let _ = stream.set_nodelay(true);
    // Errors are ignored, because the client detects them.
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Returns the response, or an error if the response has the extension [`CutConnection`]. hyper closes a connection
/// without a response when the service returns an error.
fn cut_or_respond(response: Response) -> Result<Response, CutConnection> {
    if response.extensions().get::<CutConnection>().is_some() { Err(CutConnection) } else { Ok(response) }
}
