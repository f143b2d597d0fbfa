//! The media types of responses at `/graphql`.

/// The media types of responses at `/graphql`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Response,
    Html,
    /// Server-Sent Events.
    Events,
    /// Parts of one response, as in Apollo's multipart subscriptions.
    Multipart,
}

/// Media types for a query or mutation.
pub(super) const OFFERS: [Media; 4] = [
    Media::Json,
    Media::Response,
    Media::Events,
    Media::Multipart,
];

/// Media types for a subscription.
pub(super) const STREAMS: [Media; 2] = [Media::Events, Media::Multipart];

impl Media {
    pub(super) const fn essence(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Response => "application/graphql-response+json",
            Self::Html => "text/html",
            Self::Events => "text/event-stream",
            Self::Multipart => "multipart/mixed",
        }
    }

    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json; charset=utf-8",
            Self::Response => "application/graphql-response+json; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
            Self::Events => "text/event-stream; charset=utf-8",
            Self::Multipart => "multipart/mixed; boundary=\"graphql\"; subscriptionSpec=1.0",
        }
    }

    /// How precisely a media range matches this type: 3 for the full name, 2 for `type/*`, 1 for `*/*`. Streams match
    /// only by their full name: a client that accepts everything does not expect a stream.
    pub(super) fn matched_by(self, range: &str, parameters: &str) -> Option<u8> {
        let essence = self.essence();
        if range.eq_ignore_ascii_case(essence) {
            // `multipart/mixed` has other uses.
            let fits =
                self != Self::Multipart || parameter(parameters, "subscriptionSpec") == Some("1.0");
            return fits.then_some(3);
        }
        if STREAMS.contains(&self) {
            return None;
        }
        match range.strip_suffix("/*")? {
            "*" => Some(1),
            kind => essence
                .split_once('/')
                .is_some_and(|(first, _)| first.eq_ignore_ascii_case(kind))
                .then_some(2),
        }
    }
}

/// A parameter of a media range.
pub(super) fn parameter<'a>(parameters: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = parameters
        .split(';')
        .filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(known, _)| known.trim().eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim().trim_matches('"'))
}
