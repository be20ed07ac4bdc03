//! Clients that are announced to applications by the PROXY protocol.

use crate::support::*;
use beanpole_protocol::proxy::{ProxyProtocol, RoutingTable, TargetMode};
use http::Method;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Has a request take the long way.
const ODD: &str = "X_Odd: 1\r\n";

/// An app that expects a line of the PROXY protocol on every connection, and tells what it says in every answer
/// there; and what it has heard on all of them.
async fn expecting() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let all = heard.clone();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let mut socket = BufReader::new(socket);
                let mut said = String::new();
                let _ = socket.read_line(&mut said).await;
                let said = said.trim_end().to_owned();
                all.lock().expect("no panic").push(said.clone());
                let mut line = String::new();
                while socket.read_line(&mut line).await.is_ok_and(|read| read > 0) {
                    if line == "\r\n" {
                        let length = said.len();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{said}");
                        let _ = socket.write_all(answer.as_bytes()).await;
                    }
                    line.clear();
                }
            });
        }
    });
    (address, heard)
}

fn announcing(address: SocketAddr, version: ProxyProtocol) -> RoutingTable {
    let mut only = target(1, address, TargetMode::Serve);
    only.upstream.announce = Some(version);
    table(1, vec![only])
}

#[tokio::test(flavor = "multi_thread")]
async fn every_connection_says_whose_it_is_and_serves_nobody_else() {
    let (app, heard) = expecting().await;
    let proxy = Proxy::start().await;
    proxy.serve(&announcing(app, ProxyProtocol::V1)).await;
    assert!(
        heard
            .lock()
            .expect("no panic")
            .iter()
            .all(|said| said == "PROXY UNKNOWN")
    );
    heard.lock().expect("no panic").clear();
    let mut told = Vec::new();
    for odd in [&[][..], &[("x_odd", "1")]] {
        for _ in 0..2 {
            let socket = TcpStream::connect(proxy.http).await.expect("connect");
            let own = socket.local_addr().expect("address");
            let mut client = Client::over(socket).await;
            for _ in 0..3 {
                let answer = client.send(request(Method::GET, HOST, "/", odd)).await;
                let wanted = format!(
                    "PROXY TCP4 127.0.0.1 127.0.0.1 {} {}",
                    own.port(),
                    proxy.http.port()
                );
                assert_eq!(answer.expect("an answer").text(), wanted);
                told.push(wanted);
            }
        }
    }
    told.dedup();
    let heard = heard.lock().expect("no panic");
    let of_clients = heard.iter().filter(|said| *said != "PROXY UNKNOWN");
    assert!(
        of_clients.eq(&told),
        "one connection for each client: {heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_version_is_binary_and_checks_are_local() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("address");
    let heard: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let all = heard.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let all = all.clone();
            tokio::spawn(async move {
                let mut head = [0; 16];
                let _ = socket.read_exact(&mut head).await;
                let mut rest = vec![0; usize::from(head[15])];
                let _ = socket.read_exact(&mut rest).await;
                all.lock()
                    .expect("no panic")
                    .push([&head[12..], &rest].concat());
                let mut sink = [0; 4096];
                let _ = socket.read(&mut sink).await;
                let _ = socket
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    .await;
            });
        }
    });
    let proxy = Proxy::start().await;
    proxy.serve(&announcing(address, ProxyProtocol::V2)).await;
    let whole = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{ODD}Connection: close\r\n\r\n");
    let answer = raw(proxy.http, whole.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let heard = heard.lock().expect("no panic");
    assert!(heard.contains(&vec![0x20, 0, 0, 0]), "LOCAL: {heard:?}");
    let proxied = heard.iter().find(|said| said[0] == 0x21).expect("PROXY");
    assert_eq!(proxied[1..12], [0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1]);
    assert_eq!(proxied[14..16], proxy.http.port().to_be_bytes());
}
