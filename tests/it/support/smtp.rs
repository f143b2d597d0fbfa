//! A mail server on a local port, which keeps what it receives (RFC 5321, as much as a client needs).

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use gathering::config::Config;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};
use tokio::task::JoinSet;

use super::wait::{until, until_some};

/// A received mail.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) to: String,
    pub(crate) subject: String,
    /// The whole message.
    pub(crate) text: String,
}

impl Received {
    /// The token in the mail.
    pub(crate) fn token(&self) -> String {
        let token = token_in(&self.text);
        token.unwrap_or_else(|| panic!("no token: {}", self.text))
    }
}

/// The first token in a text.
pub(crate) fn token_in(text: &str) -> Option<String> {
    let rest = &text[text.find("gtr_")?..];
    let token: String = rest.chars().take(4 + 64).collect();
    let is_token = token.len() == 68 && token[4..].bytes().all(|byte| byte.is_ascii_hexdigit());
    is_token.then_some(token)
}

/// Mails of a server, kept when the server stops.
type Mails = Arc<Mutex<Vec<Received>>>;

/// A running mail server. Dropping it closes its port and its connections.
pub(crate) struct MailServer {
    address: SocketAddr,
    mails: Mails,
    accepts: Arc<RwLock<()>>,
    _tasks: JoinSet<()>,
}

impl MailServer {
    pub(crate) async fn start() -> Self {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), Mails::default()).await
    }

    /// Ends the server. Another one can start at its address.
    pub(crate) fn stop(self) -> StoppedMailServer {
        StoppedMailServer {
            address: self.address,
            mails: Arc::clone(&self.mails),
        }
    }

    async fn at(address: SocketAddr, mails: Mails) -> Self {
        let listener = TcpListener::bind(address).await.expect("binds");
        let address = listener.local_addr().expect("an address");
        let mut tasks = JoinSet::new();
        let received = Arc::clone(&mails);
        let accepts = Arc::new(RwLock::new(()));
        let accepting = Arc::clone(&accepts);
        tasks.spawn(async move {
            let mut sessions = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let session = session(stream, Arc::clone(&received), Arc::clone(&accepting));
                sessions.spawn(session);
            }
        });
        Self {
            address,
            mails,
            accepts,
            _tasks: tasks,
        }
    }

    /// Sends the mails of a server here.
    pub(crate) fn configure(&self, config: &mut Config) {
        let url = format!("smtp://{}", self.address);
        config.mail.url = url.parse().expect("a URL");
        "Gathering <gathering@example.com>".clone_into(&mut config.mail.from);
    }

    /// Delays the answer to a received mail until the guard is dropped.
    pub(crate) async fn hold(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.accepts).write_owned().await
    }

    /// The URL of the server, for the environment of a program.
    pub(crate) fn url(&self) -> String {
        format!("smtp://{}", self.address)
    }

    /// The mails to an address, oldest first.
    pub(crate) fn mails_to(&self, address: &str) -> Vec<Received> {
        let mails = self.mails.lock().unwrap_or_else(PoisonError::into_inner);
        let to = mails.iter().filter(|mail| mail.to == address);
        to.cloned().collect()
    }

    /// Waits until an address has this many mails, and returns the last one.
    pub(crate) async fn nth_mail(&self, address: &str, count: usize) -> Received {
        until_some(format!("mail {count} to {address}"), async || {
            let mails = self.mails_to(address);
            assert!(mails.len() <= count, "{mails:?}");
            mails.into_iter().nth(count - 1)
        })
        .await
    }

    /// Waits until an address has a mail with this subject, and returns its token.
    pub(crate) async fn token_for(&self, address: &str, subject: &str) -> String {
        let found = until_some(format!("{subject:?} to {address}"), async || {
            let mut mails = self.mails_to(address).into_iter();
            mails.find(|mail| mail.subject == subject)
        });
        found.await.token()
    }

    /// The number of mails.
    pub(crate) fn count(&self) -> usize {
        let mails = self.mails.lock().unwrap_or_else(PoisonError::into_inner);
        mails.len()
    }

    /// Waits until there are this many mails.
    pub(crate) async fn until_received(&self, count: usize) {
        until(format!("{count} mails"), async || self.count() >= count).await;
    }
}

/// A mail server that does not answer.
pub(crate) struct StoppedMailServer {
    address: SocketAddr,
    mails: Mails,
}

impl StoppedMailServer {
    pub(crate) async fn restart(self) -> MailServer {
        MailServer::at(self.address, self.mails).await
    }
}

/// Serves one connection.
async fn session(stream: TcpStream, mails: Mails, accepts: Arc<RwLock<()>>) {
    let (input, mut output) = stream.into_split();
    let mut lines = BufReader::new(input).lines();
    let mut to = String::new();
    let mut answer = "220 localhost ESMTP";
    loop {
        if output
            .write_all(format!("{answer}\r\n").as_bytes())
            .await
            .is_err()
        {
            return;
        }
        let Ok(Some(line)) = lines.next_line().await else {
            return;
        };
        let (verb, rest) = line.split_once([' ', ':']).unwrap_or((&line, ""));
        answer = match verb.to_uppercase().as_str() {
            "EHLO" => "250 8BITMIME",
            "RCPT" => {
                let address = rest.split(['<', '>']).nth(1);
                address.unwrap_or_default().clone_into(&mut to);
                "250 OK"
            }
            "DATA" => {
                if output.write_all(b"354 Go on\r\n").await.is_err() {
                    return;
                }
                let mut text = String::new();
                while let Ok(Some(line)) = lines.next_line().await {
                    if line == "." {
                        break;
                    }
                    text.push_str(line.strip_prefix('.').unwrap_or(&line));
                    text.push('\n');
                }
                let subject = text.lines().find_map(|line| line.strip_prefix("Subject: "));
                let mail = Received {
                    to: to.clone(),
                    subject: subject.unwrap_or_default().to_owned(),
                    text,
                };
                mails
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(mail);
                let _accepts = accepts.read().await;
                "250 Queued"
            }
            "QUIT" => "221 Bye",
            _ => "250 OK",
        };
    }
}
