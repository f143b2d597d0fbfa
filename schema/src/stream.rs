//! Subscriptions as they run: one answer for each thing that happens, as long as whoever asked is still signed in.

use std::{
    borrow::Cow,
    collections::VecDeque,
    future::{pending, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use async_graphql::{
    ContextSelectionSet, OutputType, PathSegment, Positioned, Response, ServerResult, Value,
    indexmap::IndexMap, parser::types::Field, registry::Registry,
};
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{
    Services,
    ctx::Request,
    error::{Code, Error},
    execute::Answer,
    limit::{Standing, Verdict},
    live::{Handler, Watch},
    load::{Gather, Waiting},
    operation::Plan,
};

/// How often it is looked whether a subscriber is still signed in. What ends a session on this instance ends its streams
/// by itself; this finds what another instance, or another program, has done.
const LOOK: Duration = Duration::from_secs(1);

/// Looks at the sessions of a user whose tokens were revoked, perhaps on another instance, and ends their streams.
pub(crate) fn watch_sign_outs(services: Arc<Services>) -> Handler {
    Handler {
        name: "sign-outs",
        handle: Arc::new(move |event| {
            let services = Arc::clone(&services);
            Box::pin(async move {
                if event.kind == "user.tokens_revoked" {
                    let Services {
                        accounts, loader, ..
                    } = &*services;
                    accounts.look(loader, event.subject_id).await?;
                }
                Ok(())
            })
        }),
    }
}

/// A subscription that has begun. No more than a burst of it is kept for who does not ask for the next answer.
pub struct Answers {
    stream: BoxStream<'static, Answer>,
    standings: Vec<Standing>,
    watch: Option<Watch>,
}

impl Answers {
    /// The session that the subscription belongs to. When it has ended, no event that was taken out before may be sent any
    /// more; the stream says why it ends.
    pub fn watch(&self) -> Option<Watch> {
        self.watch.clone()
    }

    /// How the client stands with what was asked for.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.stream.poll_next_unpin(context)
    }
}

/// What happened at once, answered one by one. Resolved together, as a list is: what all of it asks of the database is
/// one statement for each edge.
pub(crate) struct Burst<T>(Vec<Option<T>>);

/// Something to tell, and the cursor of the event that it is about.
pub(crate) type Told<T> = (T, Option<String>);

impl<T> Burst<T> {
    /// Of all that is to be told; `None` when that is nothing.
    pub(crate) fn new(
        request: &Request,
        told: impl IntoIterator<Item = Option<Told<T>>>,
    ) -> Option<Self> {
        let told = told.into_iter().flatten();
        let (told, cursors): (Vec<_>, Vec<_>) = told.map(|(it, at)| (Some(it), at)).unzip();
        if told.is_empty() {
            return None;
        }
        request.progress.passed(cursors);
        request.text.store(0, Ordering::Relaxed);
        Some(Self(told))
    }
}

/// In the schema it is one of what it is made of.
impl<T: OutputType> OutputType for Burst<T> {
    fn type_name() -> Cow<'static, str> {
        T::type_name()
    }

    fn qualified_type_name() -> String {
        T::qualified_type_name()
    }

    fn create_type_info(registry: &mut Registry) -> String {
        T::create_type_info(registry)
    }

    async fn resolve(
        &self,
        ctx: &ContextSelectionSet<'_>,
        field: &Positioned<Field>,
    ) -> ServerResult<Value> {
        self.0.resolve(ctx, field).await
    }
}

/// The answers to a burst, each as if it had been resolved alone.
fn split(mut response: Response) -> Vec<Response> {
    let burst = match &mut response.data {
        Value::Object(fields) => fields.iter_mut().find_map(|(key, value)| match value {
            Value::List(items) => Some((key.clone(), mem::take(items))),
            _ => None,
        }),
        _ => None,
    };
    let Some((key, items)) = burst else {
        return vec![response];
    };
    let answers = items.into_iter().map(|item| {
        let fields = IndexMap::from_iter([(key.clone(), item)]);
        Response::new(Value::Object(fields))
    });
    let mut answers: Vec<Response> = answers.collect();
    for mut error in response.errors {
        if let Some(PathSegment::Index(place)) = error.path.get(1).cloned() {
            error.path.remove(1);
            answers[place].errors.push(error);
        }
    }
    answers
}

/// About how long a value is in JSON, in bytes.
fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Object(fields) => {
            let fields = fields.iter();
            fields.map(|(key, value)| key.len() + weight(value)).sum()
        }
        _ => size_of::<Value>(),
    }
}

/// A subscription under way.
pub(crate) struct Live {
    pub(crate) responses: BoxStream<'static, Response>,
    pub(crate) request: Arc<Request>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) plan: Arc<Plan>,
    /// The session that it belongs to.
    pub(crate) watch: Option<Watch>,
    /// Answers that were not asked for yet.
    pub(crate) ready: VecDeque<Answer>,
}

impl Live {
    /// Starts it: what its arguments say is looked at before anything is answered.
    ///
    /// # Errors
    /// A request error: nothing was started.
    pub(crate) async fn start(mut self, mut verdict: Verdict) -> Result<Answers, Answer> {
        let (responses, progress) = (&mut self.responses, &self.request.progress);
        let first = poll_fn(|context| match responses.poll_next_unpin(context) {
            Poll::Pending if progress.is_started() => Poll::Ready(None),
            Poll::Ready(first) => Poll::Ready(Some(first)),
            Poll::Pending => Poll::Pending,
        });
        let services = Arc::clone(&self.request.services);
        let first = Gather::new(&self.waiting, first);
        let first = match tokio::time::timeout(services.limits.timeout, first).await {
            Err(_) => Err(Error::timeout().into()),
            Ok(None) => Ok(()),
            Ok(Some(None)) => Err(Error::internal().into()),
            Ok(Some(Some(response))) => {
                self.take_in(response);
                if self.request.progress.is_started() {
                    Ok(())
                } else {
                    let refusal = self.ready.pop_front();
                    Err(refusal.map_or_else(|| Error::internal().into(), Answer::without_data))
                }
            }
        };
        if let Err(answer) = first {
            if answer.code() == Some(Code::ValidationFailed) {
                services.limiter.give_back(&mut verdict).await;
            }
            return Err(answer.with_standings(verdict.standings));
        }
        // All look at the same moments, so that few statements serve them all.
        let passed = services.began.elapsed().as_secs();
        let next = services.began + Duration::from_secs(passed) + LOOK;
        let mut looks = interval_at(next.into(), LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = self.watch.clone();
        let answers = stream::unfold(Some((self, looks)), |state| async {
            let (mut live, mut looks) = state?;
            let (answer, goes_on) = live.next(&mut looks).await?;
            Some((answer, goes_on.then_some((live, looks))))
        });
        // The first answer tells how the client stands since it asked.
        let mut untold = Some(verdict.standings.clone());
        let answers = answers.map(move |answer| match untold.take() {
            Some(standings) => answer.with_standings(standings),
            None => answer,
        });
        Ok(Answers {
            stream: answers.boxed(),
            standings: verdict.standings,
            watch,
        })
    }

    /// The next answer, and whether there may be another.
    async fn next(&mut self, looks: &mut Interval) -> Option<(Answer, bool)> {
        let watch = self.watch.clone();
        let ended = async {
            match &watch {
                Some(watch) => watch.ended().await,
                None => pending().await,
            }
        };
        let mut ended = pin!(ended);
        loop {
            tokio::select! {
                biased;
                () = &mut ended => return Some((Error::token_revoked().into(), false)),
                _ = looks.tick() => {}
                answer = self.answer() => {
                    let answer = answer?;
                    if answer.cursor().is_some() {
                        self.request.services.bus.given();
                    }
                    return Some((answer, !self.request.progress.has_failed()));
                }
            }
            while let Err(error) = self.request.still_signed_in().await {
                if !error.is_passing() {
                    return Some((error.into(), false));
                }
                // Nothing is sent as long as it is not known whether it may be.
                tokio::select! {
                    () = &mut ended => return Some((Error::token_revoked().into(), false)),
                    _ = looks.tick() => {}
                }
            }
        }
    }

    async fn answer(&mut self) -> Option<Answer> {
        if self.ready.is_empty() {
            let response = Gather::new(&self.waiting, self.responses.next()).await?;
            self.take_in(response);
        }
        self.ready.pop_front()
    }

    fn take_in(&mut self, response: Response) {
        let request_id = &self.request.client.request_id;
        let mut cursors = self.request.progress.take_cursors().into_iter();
        let has_failed = self.request.progress.has_failed();
        let responses = split(response);
        let weight = responses.iter().map(|response| weight(&response.data));
        self.request.progress.weighed(responses.len(), weight.sum());
        let answers = responses.into_iter().map(|response| {
            let answer = Answer::of(response, Arc::clone(&self.plan), request_id);
            if has_failed {
                answer.without_data()
            } else {
                answer.at(cursors.next().flatten())
            }
        });
        self.ready.extend(answers);
    }
}

#[cfg(test)]
mod tests {
    use async_graphql::{ServerError, value};

    use super::*;

    #[test]
    fn an_error_goes_with_the_answer_that_it_belongs_to() {
        let mut response = Response::new(value!({ "all": [{ "id": 1 }, null, { "id": 3 }] }));
        let field = |name: &str| PathSegment::Field(name.to_owned());
        let path = vec![field("all"), PathSegment::Index(1), field("id")];
        response.errors = vec![ServerError::new("no", None).with_path(path)];
        let answers = split(response);
        let data: Vec<_> = answers.iter().map(|answer| &answer.data).collect();
        let expected = [
            value!({ "all": { "id": 1 } }),
            value!({ "all": null }),
            value!({ "all": { "id": 3 } }),
        ];
        assert_eq!(data, expected.iter().collect::<Vec<_>>());
        let errors: Vec<_> = answers.iter().map(|answer| answer.errors.len()).collect();
        assert_eq!(errors, [0, 1, 0]);
        assert_eq!(answers[1].errors[0].path, [field("all"), field("id")]);
    }
}
