//! Clients that send texts which the service must reject, clients that send slowly, and clients that never read.
use std::{net::SocketAddr, time::Duration};

use reqwest::{Client, RequestBuilder, header};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use url::Url;
use uuid::Uuid;

use crate::{environment::database::CUSTOMER, http};

/// Number of clients of each kind at each replica: clients that send slowly, and clients that never read.
const SLOW_CLIENTS: usize = 4;

/// Pause between two bytes of a slow body. A client that never reads pauses for the same time when the connection
/// accepts no more data.
const SEND_INTERVAL: Duration = Duration::from_millis(200);

/// Time after which the service must have closed a slow connection. In a campaign, the service's own timeouts are nine
/// seconds for reading a body and five seconds for writing a response.
const MAX_CONNECTION_TIME: Duration = Duration::from_secs(20);

/// Receive buffer of a client that never reads, in bytes.
const RECEIVE_BUFFER_BYTES: u32 = 8 * 1024;

/// Sends texts with NUL, half of a surrogate pair, or too many characters, in bodies, paths, queries and a header.
/// Returns the responses that the API contract does not allow: every status except 4xx, 503 and 504.
pub(super) async fn send_hostile_texts(api: Url) -> Vec<String> {
    let Ok(client) = http::client(Duration::from_secs(15)) else { return Vec::new() };
    let mut violations = Vec::new();
    let token = log_in(&client, &api).await.unwrap_or_default();
    for (name, request) in hostile_requests(&client, &api, &token) {
        let Ok(response) = request.send().await else { continue };
        let status = response.status().as_u16();
        if !matches!(status, 400..=499 | 503 | 504) {
            let text: String = response.text().await.unwrap_or_default().chars().take(200).collect();
            violations.push(format!("{name}: {status} {text}"));
        }
    }
    violations
}

async fn log_in(client: &Client, api: &Url) -> Option<String> {
    let login = json!({ "email": CUSTOMER.email, "password": CUSTOMER.password });
    let request = client.post(api.join("v1/sessions").ok()?).json(&login);
    let session: Value = request.send().await.ok()?.json().await.ok()?;
    Some(session.get("token")?.as_str()?.to_owned())
}

fn hostile_requests(client: &Client, api: &Url, token: &str) -> Vec<(String, RequestBuilder)> {
    let url = |path: &str| format!("{api}{path}");
    let key = || Uuid::now_v7().to_string();
    let long = "x".repeat(20_000);
    let texts = [
        ("NUL", r#""a\u0000b@example.com""#.to_owned()),
        ("half of a surrogate pair", r#""a\ud800b@example.com""#.to_owned()),
        ("an over-long text", format!("\"{long}@example.com\"")),
    ];
    let order = Uuid::now_v7();
    let mut requests = Vec::new();
    for (what, text) in &texts {
        let email = format!("\"{}@example.com\"", order.simple());
        for (path, body) in [
            ("v1/users", format!(r#"{{"email":{text},"password":"open sesame {order}","name":"Ada"}}"#)),
            ("v1/users", format!(r#"{{"email":{email},"password":"open sesame {order}","name":{text}}}"#)),
            ("v1/sessions", format!(r#"{{"email":{text},"password":{text}}}"#)),
            ("v1/orders", format!(r#"{{"items":[{{"product_id":{text},"quantity":1}}]}}"#)),
            (&format!("v1/orders/{order}/payments"), format!(r#"{{"payment_method":{text}}}"#)),
        ] {
            let request = client.post(url(path)).bearer_auth(token).header("idempotency-key", key());
            let request = request.header(header::CONTENT_TYPE, "application/json").body(body);
            requests.push((format!("{what} to /{path}"), request));
        }
    }
    for path in [
        "v1/orders?status=%00",
        "v1/orders?cursor=%00",
        "v1/orders?cursor=%ED%A0%80",
        "v1/orders/%00",
        "v1/payments/%ED%A0%80",
        &format!("v1/orders?cursor={long}"),
    ] {
        let name = format!("GET /{}", path.chars().take(30).collect::<String>());
        requests.push((name, client.get(url(path)).bearer_auth(token)));
    }
    let body = json!({ "items": [{ "product_id": order, "quantity": 1 }] });
    let with_key = client.post(url("v1/orders")).bearer_auth(token).header("idempotency-key", &long);
    requests.push(("an over-long Idempotency-Key".to_owned(), with_key.json(&body)));
    requests
}

/// Opens connections that send a body slowly, and connections that never read their responses. Returns a violation for
/// each connection that the service does not end within [`MAX_CONNECTION_TIME`].
pub(super) async fn run_slow_clients(replicas: Vec<SocketAddr>) -> Vec<String> {
    let mut clients = JoinSet::new();
    for replica in replicas {
        for _ in 0..SLOW_CLIENTS {
            clients.spawn(async move {
                let ended = timeout(MAX_CONNECTION_TIME, send_slowly(replica)).await.is_ok();
                (!ended).then_some("a slow body keeps its connection")
            });
            clients.spawn(async move {
                let ended = timeout(MAX_CONNECTION_TIME, never_read(replica)).await.is_ok();
                (!ended).then_some("a client that never reads keeps its connection")
            });
        }
    }
    clients.join_all().await.into_iter().flatten().map(ToOwned::to_owned).collect()
}

/// Sends a body byte by byte, until the service responds or closes the connection. A failed connection also ends the
/// function, because a replica may be down.
async fn send_slowly(replica: SocketAddr) -> std::io::Result<()> {
    let mut connection = TcpStream::connect(replica).await?;
    let head = format!(
        "POST /v1/sessions HTTP/1.1\r\nhost: {replica}\r\ncontent-type: application/json\r\n\
         content-length: 10000\r\n\r\n{{"
    );
    connection.write_all(head.as_bytes()).await?;
    let mut response = [0; 64];
    loop {
        tokio::select! {
            read = connection.read(&mut response) => return read.map(drop),
            () = sleep(SEND_INTERVAL) => connection.write_all(b" ").await?,
        }
    }
}

/// Sends requests and reads no response, until the service closes the connection.
async fn never_read(replica: SocketAddr) -> std::io::Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    let connection = socket.connect(replica).await?;
    let request = format!("GET /openapi.json HTTP/1.1\r\nhost: {replica}\r\n\r\n");
    let mut unsent = Vec::new();
    loop {
        if unsent.is_empty() {
            unsent.extend_from_slice(request.as_bytes());
        }
        match connection.try_write(&unsent) {
            Ok(sent) => drop(unsent.drain(..sent)),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => sleep(SEND_INTERVAL).await,
            Err(closed) => return Err(closed),
        }
    }
}
