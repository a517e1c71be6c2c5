//! The embedded server for tests, in this process on a free port.

use std::{net::SocketAddr, time::Duration};

use lattice_rdzv::{
    backend::etcd::{EtcdBackend, EtcdOptions},
    server::{Contents, Server, ServerOptions, bind},
};
use tokio::{net::TcpListener, time::sleep};

use super::{etcd::free_port, within};

/// A server that can be stopped and started again with its data.
pub(crate) struct Embedded {
    address: SocketAddr,
    contents: Contents,
    server: Option<Server>,
}

impl Embedded {
    /// A server without TLS.
    pub(crate) async fn start() -> Self {
        Self::with(ServerOptions::default()).await
    }

    /// A server with these options.
    pub(crate) async fn with(options: ServerOptions) -> Self {
        let server = Server::start(bind("127.0.0.1", free_port()).await.unwrap(), options).unwrap();
        Self { address: server.address(), contents: server.contents(), server: Some(server) }
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    /// The endpoint for clients.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// A new client of the server.
    pub(crate) fn backend(&self) -> EtcdBackend {
        EtcdBackend::connect(EtcdOptions::new([self.endpoint()])).unwrap()
    }

    pub(crate) async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop().await;
        }
    }

    /// Serves again at the same endpoint, with its data.
    pub(crate) async fn go_on(&mut self) {
        self.serve(Some(self.contents.clone())).await;
    }

    /// Serves again at the same endpoint, as a new process would.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.serve(None).await;
    }

    async fn serve(&mut self, contents: Option<Contents>) {
        let listener = listener_again(self.address).await;
        let server = Server::start(listener, ServerOptions { contents, ..ServerOptions::default() }).unwrap();
        self.contents = server.contents();
        self.server = Some(server);
    }
}

/// A listener at an address where another one was closed: a program that another test started meanwhile holds a copy of
/// that one until its exec(2).
async fn listener_again(address: SocketAddr) -> TcpListener {
    within("a listener at the same address", async {
        loop {
            match bind("127.0.0.1", address.port()).await {
                Ok(listener) => return listener,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        }
    })
    .await
}
