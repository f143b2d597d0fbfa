//! `serve`, and the signals that end a server.

use std::time::Duration;

use gathering::StartError;
use gathering::config::Config;
use gathering::server::{Options, Server};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::print;

/// Serves the database until a signal comes.
pub(super) async fn serve(
    config: Config,
    migrate: bool,
    configure: impl Fn() -> Result<Config, StartError>,
) -> Result<(), StartError> {
    let grace = config.server.grace;
    let options = Options {
        migrate,
        ..Options::default()
    };
    let mut signals = Signals::new()?;
    let Some(server) = signals.before(Server::start(config, options)).await? else {
        return Ok(());
    };
    print(&format!("listening on http://{}\n", server.address()));
    signals.end(server, grace, configure).await;
    Ok(())
}

/// Handlers of SIGTERM, Ctrl-C and SIGHUP. Created before the server starts, so that no signal is lost.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self, StartError> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| StartError::new(format!("cannot wait for signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for SIGTERM or Ctrl-C.
    async fn next(&mut self) -> SignalKind {
        tokio::select! {
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }

    /// Runs the work until it completes or a signal arrives.
    pub(super) async fn before<T>(
        &mut self,
        work: impl Future<Output = Result<T, StartError>>,
    ) -> Result<Option<T>, StartError> {
        tokio::select! {
            done = work => done.map(Some),
            _ = self.next() => Ok(None),
        }
    }

    /// Runs the server until a signal arrives, then shuts it down gracefully, unless a second signal arrives. SIGHUP
    /// reloads the rate limits; if the configuration is invalid, nothing changes.
    pub(super) async fn end(
        &mut self,
        server: Server,
        grace: Duration,
        configure: impl Fn() -> Result<Config, StartError>,
    ) {
        let is_polite = loop {
            tokio::select! {
                _ = self.terminate.recv() => break true,
                _ = self.interrupt.recv() => break false,
                _ = self.hangup.recv() => match configure() {
                    Ok(config) => {
                        server.set_rates(config.limits);
                        tracing::info!("reloaded the rate limits");
                    }
                    Err(error) => tracing::error!(%error, "the configuration cannot be read; the rate limits are unchanged"),
                },
            }
        };
        tracing::info!("shutting down");
        tokio::select! {
            () = server.shut_down(if is_polite { grace } else { Duration::ZERO }) => {}
            _ = self.next() => {}
        }
    }
}
