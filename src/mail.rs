//! Sends mails by SMTP, or writes them to the log of `gathering demo`.

use std::error::Error as _;
use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use gathering_schema::auth::{Mail, MailError, Mailer, Retry};
use lettre::message::Mailbox;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Tls, TlsParameters};
use lettre::transport::smtp::extension::ClientId;
use lettre::{Address, AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};

use crate::StartError;
use crate::config::{self, Encryption};

/// Creates the mailer of a configuration; `None` if no mail server is configured.
///
/// # Errors
/// The sender is missing, or the system's TLS certificates cannot be used.
pub fn mailer(settings: &config::Mail) -> Result<Option<Arc<dyn Mailer>>, StartError> {
    let Some(server) = settings.url.server() else {
        return Ok(None);
    };
    let from: Mailbox = settings.from.parse().map_err(|_| {
        StartError::new(format!(
            "mail.from must be an e-mail address such as Gathering <gathering@example.com>, not {:?}",
            settings.from
        ))
    })?;
    let tls = match server.encryption {
        Encryption::None => Tls::None,
        Encryption::Required | Encryption::Immediate => {
            let parameters = TlsParameters::new(server.host.clone());
            let parameters = parameters.map_err(|error| {
                StartError::new(format!("mail.url: TLS cannot be used: {error}"))
            })?;
            if server.encryption == Encryption::Immediate {
                Tls::Wrapper(parameters)
            } else {
                Tls::Required(parameters)
            }
        }
    };
    let mut smtp = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(server.host)
        .port(server.port)
        .tls(tls)
        .hello_name(ClientId::Domain(from.email.domain().to_owned()));
    if let Some((user, password)) = server.credentials {
        smtp = smtp.credentials(Credentials::new(user, password));
    }
    let smtp = smtp.build();
    Ok(Some(Arc::new(Smtp { smtp, from })))
}

/// Sends mails by SMTP (RFC 5321).
struct Smtp {
    smtp: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
}

impl Mailer for Smtp {
    fn send(&self, mail: Mail) -> BoxFuture<'_, Result<(), MailError>> {
        Box::pin(async move {
            let to: Address = mail.to.parse().map_err(|_| impossible("not an address"))?;
            let is_ascii = mail.to.is_ascii();
            // No program must answer (RFC 3834).
            let automatic = HeaderName::new_from_ascii_str("Auto-Submitted");
            let message = Message::builder()
                .from(self.from.clone())
                .to(Mailbox::new(None, to))
                .message_id(Some(format!("<{}@{}>", mail.id, self.from.email.domain())))
                .subject(mail.subject)
                .raw_header(HeaderValue::new(automatic, "auto-generated".to_owned()))
                .header(ContentType::TEXT_PLAIN)
                .body(mail.text)
                .map_err(|_| impossible("not a message"))?;
            let sent = self.smtp.send(message).await;
            sent.map(drop).map_err(|error| {
                // The server does not support SMTPUTF8 (RFC 6531). Other errors of the client, such as missing STARTTLS,
                // end when the configuration is corrected.
                if error.is_client() && !is_ascii {
                    return impossible("not an ASCII address, and no SMTPUTF8");
                }
                let reason = reason(&error);
                let retry = if error.is_permanent() {
                    Retry::Later
                } else {
                    Retry::Soon
                };
                MailError { reason, retry }
            })
        })
    }
}

/// The failure of a mail that no attempt can send.
fn impossible(reason: &str) -> MailError {
    MailError {
        reason: reason.to_owned(),
        retry: Retry::Never,
    }
}

/// Describes a failure without the response of the server, which may contain the address of the recipient.
fn reason(error: &lettre::transport::smtp::Error) -> String {
    if let Some(status) = error.status() {
        return format!("status {status}");
    }
    let cause = error.source().and_then(|source| source.downcast_ref());
    let cause = cause.map(|cause: &io::Error| cause.kind().to_string());
    cause.unwrap_or_else(|| {
        let kind = [(error.is_timeout(), "timeout"), (error.is_tls(), "TLS")];
        let kind = kind.into_iter().find(|(holds, _)| *holds);
        kind.map_or("no usable response", |(_, name)| name)
            .to_owned()
    })
}

/// Writes mails to the log, tokens included.
pub(crate) struct LogMailer;

impl Mailer for LogMailer {
    fn send(&self, mail: Mail) -> BoxFuture<'_, Result<(), MailError>> {
        tracing::info!(to = mail.to, subject = mail.subject, "mail:\n{}", mail.text);
        Box::pin(async { Ok(()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(url: &str, from: &str) -> Result<bool, StartError> {
        let settings = config::Mail {
            url: url.parse().expect("a URL"),
            from: from.to_owned(),
            ..config::Mail::default()
        };
        mailer(&settings).map(|mailer| mailer.is_some())
    }

    #[test]
    fn a_mail_server_needs_a_sender() {
        let from = "Gathering <gathering@example.com>";
        assert!(!made("", "").expect("needs no sender"));
        for url in [
            "smtp://localhost",
            "smtp://me:secret@mail.example.com",
            "smtps://me:secret@mail.example.com",
        ] {
            assert!(made(url, from).expect("fits"), "{url}");
            for wrong in ["", "gathering", "Gathering <gathering>"] {
                let error = made(url, wrong).expect_err("has no sender").to_string();
                assert!(
                    error.starts_with("mail.from") && !error.contains("secret"),
                    "{error}"
                );
            }
        }
    }
}
