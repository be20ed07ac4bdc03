//! Upgraded connections: through, across table changes, and closed when their target is gone.

use crate::support::*;
use beanpole_protocol::proxy::TargetMode;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub async fn upgraded(address: SocketAddr) -> TcpStream {
    let mut socket = TcpStream::connect(address).await.expect("connect");
    socket
        .write_all(
            b"GET /ws HTTP/1.1\r\nHost: app.localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
              Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await
        .expect("write");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.expect("a head"));
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    socket
}

pub async fn echoes(socket: &mut TcpStream, text: &[u8]) {
    socket.write_all(text).await.expect("write");
    let mut back = vec![0; text.len()];
    socket.read_exact(&mut back).await.expect("an echo");
    assert_eq!(back, text);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_lives_through_a_change_and_ends_with_its_target() {
    let (old, new) = (Backend::start().await, Backend::start().await);
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &old)])).await;
    let mut socket = upgraded(proxy.http).await;
    echoes(&mut socket, b"one").await;

    let mut wanted = table(2, vec![serving(1, &old), serving(2, &new)]);
    wanted.pools[0].targets[0].mode = TargetMode::Drain;
    proxy.serve(&wanted).await;
    echoes(&mut socket, b"two").await;
    assert_eq!(proxy.target(1).await.in_flight, 1, "it counts as in flight");

    proxy
        .put(&table(3, vec![serving(2, &new)]))
        .await
        .expect("put");
    let mut rest = Vec::new();
    let closed = tokio::time::timeout(
        std::time::Duration::from_secs(10),
        socket.read_to_end(&mut rest),
    );
    let _ = closed.await.expect("it is closed");
    assert_eq!(proxy.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_is_counted_and_its_end_is_no_failure() {
    let backend = Backend::start().await;
    let proxy = Proxy::start().await;
    proxy.serve(&table(1, vec![serving(1, &backend)])).await;
    let mut socket = upgraded(proxy.http).await;
    echoes(&mut socket, b"x").await;
    drop(socket);
    let target = proxy
        .until_target("it is over", 1, |target| {
            target.in_flight == 0 && target.traffic.requests == 1
        })
        .await;
    assert_eq!(target.traffic.by_class, [1, 0, 0, 0, 0]);
    assert_eq!(target.traffic.failed, 0);
    assert!(target.healthy);
}
