//! GraphQL over HTTP at `/graphql`: parses requests, runs operations and writes responses.
//!
//! Every response is a GraphQL response with our own messages. With status 200, it has the media type that the client
//! prefers. With any other status, it is `application/graphql-response+json`, because popular clients drop the body of
//! a failed response of type `application/json`. Invalid requests are refused as early as possible: first by header,
//! then by size, then by structure, and only then by the graph.

mod accept;
mod body;
mod client_address;
mod compression;
mod cors;
mod endpoint;
mod gate;
mod guards;
mod headers;
mod media;
mod multipart;
mod outcome;
mod params;
mod rate_headers;
mod respond;
mod router;
mod security_headers;
mod sse;
mod state;
mod stream;
pub(crate) mod write_guard;
pub(crate) mod ws;

pub use client_address::Peer;
pub use gate::Gate;
pub use router::Routes;
