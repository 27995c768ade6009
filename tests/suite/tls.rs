//! A TLS server for tests. A private certificate authority signs its certificate.
use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
};
use url::Url;

/// The messages that a [`TlsProxy`] expects before the TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preamble {
    /// No message: the connection starts with the TLS handshake.
    Nothing,
    /// The `SSLRequest` message of PostgreSQL.
    PostgresRequest,
}

/// A server on `localhost` that terminates TLS and forwards all bytes to another server. Dropping the value closes the
/// listener, and deletes the file of [`Self::authority`].
pub struct TlsProxy {
    port: u16,
    authority: PathBuf,
    handshakes: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

impl TlsProxy {
    /// Starts a proxy in front of the server at a URL. Each proxy has a certificate authority of its own.
    pub async fn to(url: &Url, preamble: Preamble) -> Self {
        let authority = KeyPair::generate().unwrap();
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, "authority of the tests");
        let authority = CertifiedIssuer::self_signed(parameters, authority).unwrap();
        let key = KeyPair::generate().unwrap();
        let parameters = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let certificate = parameters.signed_by(&key, &authority).unwrap();
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("authority-{}.pem", uuid::Uuid::now_v7()));
        std::fs::write(&file, authority.pem()).unwrap();

        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        if preamble == Preamble::Nothing {
            config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
        }
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let target = url.socket_addrs(|| Some(5432)).unwrap()[0];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let handshakes: Arc<AtomicUsize> = Arc::default();
        let counter = Arc::clone(&handshakes);
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (acceptor, counter) = (acceptor.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    if preamble == Preamble::PostgresRequest {
                        let mut message = [0; 8];
                        stream.read_exact(&mut message).await?;
                        stream.write_all(b"S").await?;
                    }
                    let mut client = acceptor.accept(stream).await?;
                    counter.fetch_add(1, Ordering::Relaxed);
                    copy_bidirectional(&mut client, &mut TcpStream::connect(target).await?).await
                });
            }
        });
        Self { port, authority: file, handshakes, server }
    }

    /// Returns the URL of the proxy.
    pub fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Returns the port of the proxy.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the path of a file with the certificate of the authority.
    pub fn authority(&self) -> &str {
        self.authority.to_str().unwrap()
    }

    /// Returns the number of connections whose client accepted the certificate.
    pub fn handshakes(&self) -> usize {
        self.handshakes.load(Ordering::Relaxed)
    }
}

impl Drop for TlsProxy {
    fn drop(&mut self) {
        self.server.abort();
        let _removed = std::fs::remove_file(&self.authority);
    }
}
