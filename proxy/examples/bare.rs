//! What pingora itself costs: a proxy with one fixed upstream and nothing else, on sockets that are
//! buffered like Beanpole's, beside Beanpole's proxy with a table of one target.
//!
//! ```text
//! bare bare LISTEN UPSTREAM [LISTEN CERTIFICATE KEY]    pingora alone, one thread; HTTPS too if given
//! bare full LISTEN UPSTREAM [LOG]                       Beanpole's proxy, one thread, with an access log if given
//! ```

#[path = "../src/buffered.rs"]
#[expect(dead_code, reason = "the bare proxy needs less of it")]
mod buffered;
#[path = "../src/calm.rs"]
mod calm;
#[path = "../src/exchange/chunked.rs"]
mod chunked;
#[path = "../src/connection.rs"]
#[expect(dead_code, reason = "the bare proxy needs less of it")]
mod connection;
mod exchange {
    pub use crate::chunked::Chunked;
}

use async_trait::async_trait;
use beanpole_protocol::content::PoolContent;
use beanpole_protocol::proxy::{
    Algorithm, HealthCheck, PoolLimits, PoolRules, Probe, Route, RoutingTable, Target, TargetMode,
    TargetPool, Upstream, WeightedPool,
};
use beanpole_protocol::{
    ApplicationName, EnvironmentId, EnvironmentName, Generation, Incarnation, InstanceId,
    ReleaseNumber,
};
use beanpole_proxy::ProxyConfig;
use buffered::Buffered;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::tls::Acceptor;
use pingora_core::modules::http::HttpModules;
use pingora_core::protocols::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::Result;
use pingora_proxy::{HttpProxy, ProxyHttp, Session, http_proxy};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::error::Error;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

struct Fixed(SocketAddr);

#[async_trait]
impl ProxyHttp for Fixed {
    type CTX = ();

    fn new_ctx(&self) {}

    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.0, false, String::new())))
    }
}

/// TLS as Beanpole's proxy has it, with one certificate.
fn tls(certificate: &str, key: &str) -> Result<Arc<ServerConfig>, Box<dyn Error>> {
    let chain = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_file(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

async fn bare(
    listen: SocketAddr,
    upstream: SocketAddr,
    https: Option<(SocketAddr, Arc<ServerConfig>)>,
) -> Result<(), Box<dyn Error>> {
    let conf = ServerConf {
        threads: 1,
        upstream_keepalive_pool_size: 1024,
        ..ServerConf::default()
    };
    let app = Arc::new(http_proxy(&Arc::new(conf), Fixed(upstream)));
    let (_stop, stopping) = watch::channel(false);
    let http = accept(app.clone(), listen, None, stopping.clone());
    match https {
        None => http.await,
        Some((listen, tls)) => {
            let https = accept(app, listen, Some(tls), stopping);
            tokio::try_join!(http, https).map(drop)
        }
    }
}

async fn accept(
    app: Arc<HttpProxy<Fixed>>,
    listen: SocketAddr,
    tls: Option<Arc<ServerConfig>>,
    stopping: watch::Receiver<bool>,
) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (socket, peer) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let io = Buffered::accepted(socket, peer, listen);
        let (app, stopping, tls) = (app.clone(), stopping.clone(), tls.clone());
        tokio::spawn(async move {
            let stream: Stream = match tls {
                None => Box::new(io),
                Some(tls) => match Acceptor::from_server_config(tls).tls_handshake(io).await {
                    Ok(io) => Box::new(io),
                    Err(_) => return,
                },
            };
            let mut next = Some(stream);
            while let Some(stream) = next {
                next = app.process_new(stream, &stopping).await;
            }
        });
    }
}

fn table(upstream: SocketAddr) -> Result<RoutingTable, Box<dyn Error>> {
    let pool = TargetPool {
        name: "main".to_owned(),
        environment: EnvironmentId::from_bits(1),
        environment_name: EnvironmentName::new("bench")?,
        application: ApplicationName::new("bench")?,
        algorithm: Algorithm::RoundRobin,
        hold: None,
        limits: PoolLimits::default(),
        content: PoolContent::default(),
        rules: PoolRules::default(),
        targets: vec![Target {
            process: String::new(),
            instance: InstanceId::from_bits(1),
            incarnation: Incarnation(1),
            release: ReleaseNumber(1),
            address: upstream,
            mode: TargetMode::Serve,
            tried: None,
            upstream: Upstream::default(),
            check: HealthCheck {
                probe: Probe::Tcp,
                ..HealthCheck::default()
            },
        }],
    };
    Ok(RoutingTable {
        generation: Generation(1),
        routes: vec![Route {
            host: "127.0.0.1".to_owned(),
            pools: vec![WeightedPool {
                pool: "main".to_owned(),
                weight: 1,
            }],
            ..Route::default()
        }],
        pools: vec![pool],
        ..RoutingTable::default()
    })
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, listen, upstream, rest @ ..] = arguments.as_slice() else {
        return Err("bare (bare|full) LISTEN UPSTREAM [LOG | LISTEN CERTIFICATE KEY]".into());
    };
    let (listen, upstream) = (listen.parse()?, upstream.parse()?);
    if mode == "bare" {
        let https = match rest {
            [listen, certificate, key] => Some((listen.parse()?, tls(certificate, key)?)),
            _ => None,
        };
        return bare(listen, upstream, https).await;
    }
    let directory = tempfile::tempdir()?;
    beanpole_daemon::files::write_json(
        &directory.path().join("table.json"),
        &table(upstream)?,
        0o600,
    )?;
    let mut config = ProxyConfig::new(directory.path(), directory.path().join("proxy.sock"));
    config.http = vec![listen];
    config.threads = 1;
    config.access_log = rest.first().map(Into::into);
    beanpole_proxy::run(config, CancellationToken::new()).await?;
    Ok(())
}
