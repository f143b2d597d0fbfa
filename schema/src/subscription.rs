//! What happens, live: events as they are committed, and what they are about as it is then.

use std::{collections::VecDeque, sync::Arc};

use async_graphql::{Context, ID, Interface, SimpleObject, Subscription};
use futures_util::{Stream, TryStreamExt, future::try_join_all, stream};
use gathering_entity::{agent, circle, conversation, event, message, task};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait};
use uuid::Uuid;

use crate::{
    agent::Agent,
    conversation::Conversation,
    ctx::{Door, Request},
    error::Error,
    event::{Event, EventFilter, EventType, Events, EventsMissed, Payload},
    id::Kind,
    live::{Feed, Item, Wanted},
    message::Message,
    read::{Pages, Rule},
    task::Task,
};

/// Most agents of one subscription.
const MAX_AGENTS: usize = 100;

/// Most messages that are read at once for one who comes back.
const MESSAGES: u64 = 100;

/// A change of a conversation that somebody follows.
#[derive(Interface)]
#[graphql(field(
    name = "conversation",
    ty = "&Conversation",
    desc = "The conversation as it is now."
))]
pub enum ConversationUpdate {
    /// A message.
    Message(MessageAdded),
    /// A turn.
    Turn(TurnCompleted),
    /// The end.
    End(ConversationEnded),
}

/// A message was added.
#[derive(SimpleObject)]
pub struct MessageAdded {
    /// The conversation as it is now.
    conversation: Conversation,
    /// The message.
    message: Message,
}

/// An agent has taken its turn.
#[derive(SimpleObject)]
pub struct TurnCompleted {
    /// The conversation as it is now.
    conversation: Conversation,
    /// The number of the turn, from 1.
    turn: i32,
    /// Who is to speak next; null when nobody is, or the viewer may not read them.
    next_speaker: Option<Agent>,
}

/// The conversation has ended.
#[derive(SimpleObject)]
pub struct ConversationEnded {
    /// The conversation as it is now.
    conversation: Conversation,
    /// Why: `completed`, `max_turns`, `marker`, `cancelled` or `failed`.
    reason: Option<String>,
}

/// What happens, live. Each field is started once and then answers for each thing that happens, in the order in which it
/// was committed, at least once.
#[derive(Default)]
pub struct Subscription;

/// What happens, live. Each field is started once and then answers for each thing that happens, in the order in which it
/// was committed, at least once.
#[Subscription]
impl Subscription {
    /// What happens in what the signed-in user may read. With `after` it goes on behind an event without a gap, as long as
    /// that is kept; else the first is `EventsMissed`.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Narrows what is sent.")] filter: Option<EventFilter>,
        #[graphql(desc = "The `cursor` of the last event that was received.")] after: Option<
            String,
        >,
    ) -> Result<impl Stream<Item = Result<Event, Error>> + use<>, Error> {
        let wanted = EventFilter::wanted(filter)?;
        let feed = follow(ctx.shared(), wanted, after).await?;
        Ok(ending(ctx.shared(), events(feed)))
    }

    /// What happens in a circle, as long as the signed-in user may read it.
    async fn circle_events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The circle.")] circle_id: ID,
        #[graphql(desc = "Only events of these types; an empty list matches nothing.")]
        types: Option<Vec<EventType>>,
        #[graphql(desc = "The `cursor` of the last event that was received.")] after: Option<
            String,
        >,
    ) -> Result<impl Stream<Item = Result<Event, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        let wanted = Wanted {
            types: types.map(|types| types.into_iter().map(EventType::dotted).collect()),
            circle: Some(readable_circle(&request, &circle_id).await?),
            ..Wanted::default()
        };
        let feed = follow(request, wanted, after).await?;
        Ok(ending(ctx.shared(), events(feed)))
    }

    /// Tasks as they are after each of their changes: those of a circle, those of an agent, or those of an agent in a
    /// circle; `BAD_USER_INPUT` without either. Several changes of one task at once may be told as one. A task that is
    /// gone is not told.
    async fn task_updated(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only tasks of this circle.")] circle_id: Option<ID>,
        #[graphql(desc = "Only tasks that this agent has, or had before the change.")]
        assignee_id: Option<ID>,
    ) -> Result<impl Stream<Item = Result<Task, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        if circle_id.is_none() && assignee_id.is_none() {
            let message = "Give `circleId`, `assigneeId`, or both.";
            return Err(Error::bad_input(message).field("circleId"));
        }
        let circle = match &circle_id {
            Some(id) => Some(readable_circle(&request, id).await?),
            None => None,
        };
        let assignee = match &assignee_id {
            Some(id) => Some(readable_agent(&request, id, "assigneeId").await?),
            None => None,
        };
        let wanted = Wanted {
            types: Some(EventType::all_of("task")),
            circle,
            ..Wanted::default()
        };
        let feed = follow(Arc::clone(&request), wanted, None).await?;
        let told = stream::try_unfold(feed, move |mut feed| {
            let request = Arc::clone(&request);
            async move {
                loop {
                    let (rows, subject) = latest(&mut feed).await?;
                    let rule = &request.viewer()?.rules().task;
                    let task = request.readable_later::<task::Entity>(rule, subject);
                    let concerns = |task: &Arc<task::Model>| {
                        assignee.is_none_or(|agent| {
                            task.assignee_id == Some(agent)
                                || rows.iter().any(|row| mentions(row, agent))
                        })
                    };
                    if let Some(task) = task.await?.filter(concerns) {
                        return Ok(Some((Task(task), feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), told))
    }

    /// Agents as they are when they turn idle, busy or offline. Several changes of one agent at once may be told as one.
    async fn agent_status_changed(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "At most 100 agents that the signed-in user may read; without it, the user's own."
        )]
        agent_ids: Option<Vec<ID>>,
    ) -> Result<impl Stream<Item = Result<Agent, Error>> + use<>, Error> {
        let request = ctx.shared();
        let viewer = request.viewer()?.id();
        let agents = match &agent_ids {
            Some(ids) if ids.len() > MAX_AGENTS => {
                let message = format!("`agentIds` must have at most {MAX_AGENTS} entries.");
                return Err(Error::bad_input(message).field("agentIds"));
            }
            Some(ids) => {
                let agents = ids
                    .iter()
                    .map(|id| readable_agent(&request, id, "agentIds"));
                Some(try_join_all(agents).await?)
            }
            None => None,
        };
        let wanted = Wanted {
            types: Some(vec![EventType::AgentStatusChanged.dotted()]),
            ..Wanted::default()
        };
        let feed = follow(Arc::clone(&request), wanted, None).await?;
        // Whoever may read an agent may know what it does, whatever circle it does it in.
        let feed = feed.unguarded();
        let told = stream::try_unfold(feed, move |mut feed| {
            let (request, agents) = (Arc::clone(&request), agents.clone());
            async move {
                loop {
                    let (rows, subject) = latest(&mut feed).await?;
                    let concerns = match &agents {
                        Some(agents) => agents.contains(&subject),
                        None => rows.iter().any(|row| row.owner_id == Some(viewer)),
                    };
                    if !concerns {
                        continue;
                    }
                    let rule = &request.viewer()?.rules().agent;
                    let agent = request.readable_later::<agent::Entity>(rule, subject);
                    if let Some(agent) = agent.await? {
                        return Ok(Some((Agent(agent), feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), told))
    }

    /// A conversation as it goes on: its messages, its turns and its end, as long as the signed-in user may read it. With
    /// `afterSeq` it begins with the messages behind that number.
    async fn conversation_updates(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The conversation.")] conversation_id: ID,
        #[graphql(desc = "The `seq` of the last message that was received; 0 for all messages.")]
        after_seq: Option<i32>,
    ) -> Result<impl Stream<Item = Result<ConversationUpdate, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        let id = Kind::Conversation.parse(&conversation_id, "conversationId")?;
        let row = readable_conversation(&request, id).await?;
        row.ok_or_else(|| Error::not_found("conversationId"))?;
        if after_seq.is_some_and(|seq| seq < 0) {
            return Err(Error::bad_input("`afterSeq` must not be negative.").field("afterSeq"));
        }
        let types = [
            EventType::MessageAdded,
            EventType::ConversationTurnCompleted,
            EventType::ConversationEnded,
        ];
        let wanted = Wanted {
            // Not the circle's alone: a conversation outlives its circle.
            types: Some(types.map(EventType::dotted).to_vec()),
            ..Wanted::default()
        };
        let follower = Follower {
            // First the feed, then the messages: what is added in between is in both, and told once.
            feed: follow(Arc::clone(&request), wanted, None)
                .await?
                .unguarded(),
            request,
            id,
            earlier: after_seq.map(|_| VecDeque::new()),
            told: after_seq.unwrap_or_default(),
        };
        let told = stream::try_unfold(follower, async |mut follower| {
            let update = follower.next().await?;
            Ok(Some((update, follower)))
        });
        Ok(ending(ctx.shared(), told))
    }
}

/// Somebody who follows a conversation.
struct Follower {
    request: Arc<Request>,
    id: Uuid,
    feed: Feed,
    /// Messages that were there before; `None` when all of them are told.
    earlier: Option<VecDeque<Arc<message::Model>>>,
    /// The number of the last message that was told.
    told: i32,
}

impl Follower {
    async fn next(&mut self) -> Result<ConversationUpdate, Error> {
        self.request.progress.started();
        loop {
            let update = match self.earlier().await? {
                Some(message) => self.message(message).await?,
                None => self.change().await?,
            };
            if let Some(update) = update {
                return Ok(update);
            }
        }
    }

    async fn earlier(&mut self) -> Result<Option<Arc<message::Model>>, Error> {
        let Some(earlier) = &mut self.earlier else {
            return Ok(None);
        };
        if earlier.is_empty() {
            let select = message::Entity::find()
                .filter(message::Column::Seq.gt(self.told))
                .order_by_asc(message::Column::Seq)
                .limit(MESSAGES)
                .into_query();
            let parent = message::Column::ConversationId.as_column_ref();
            let pages = Pages::<message::Model>::new("messages", select, Some(parent));
            earlier.extend(self.request.load(pages, self.id).await?.iter().cloned());
        }
        let next = earlier.pop_front();
        if next.is_none() {
            self.earlier = None;
        }
        Ok(next)
    }

    async fn message(
        &mut self,
        message: Arc<message::Model>,
    ) -> Result<Option<ConversationUpdate>, Error> {
        self.told = message.seq;
        let conversation = readable_conversation(&self.request, self.id).await?;
        Ok(conversation.map(|conversation| {
            ConversationUpdate::Message(MessageAdded {
                conversation: Conversation(conversation),
                message: Message(message),
            })
        }))
    }

    async fn change(&mut self) -> Result<Option<ConversationUpdate>, Error> {
        let row = event_of(&mut self.feed).await?;
        if row.kind == EventType::MessageAdded.dotted() {
            let is_new = row.number("seq").is_some_and(|seq| seq > self.told);
            if row.uuid("conversationId") != Some(self.id) || !is_new {
                return Ok(None);
            }
            let everybody = Rule::default();
            let message = self
                .request
                .readable_later::<message::Entity>(&everybody, row.subject_id);
            return match message.await? {
                Some(message) => self.message(message).await,
                None => Ok(None),
            };
        }
        if row.subject_id != self.id {
            return Ok(None);
        }
        let conversation = readable_conversation(&self.request, self.id).await?;
        let Some(conversation) = conversation.map(Conversation) else {
            return Ok(None);
        };
        if row.kind == EventType::ConversationEnded.dotted() {
            return Ok(Some(ConversationUpdate::End(ConversationEnded {
                conversation,
                reason: row.text("reason").map(str::to_owned),
            })));
        }
        let next = match row.uuid("nextSpeakerId") {
            Some(id) => {
                let rule = &self.request.viewer()?.rules().agent;
                self.request
                    .readable_later::<agent::Entity>(rule, id)
                    .await?
            }
            None => None,
        };
        Ok(Some(ConversationUpdate::Turn(TurnCompleted {
            conversation,
            turn: row.number("turn").unwrap_or_default(),
            next_speaker: next.map(Agent),
        })))
    }
}

/// A feed from now on, or from where the client says that it was.
async fn follow(
    request: Arc<Request>,
    wanted: Wanted,
    after: Option<String>,
) -> Result<Feed, Error> {
    request.viewer()?;
    // What a client says when it comes back is newer than what it said when it first came.
    let after = match request.progress.after.as_ref().or(after.as_ref()) {
        Some(cursor) => Some(Events::position(request.services.epoch, cursor)?),
        None => None,
    };
    Feed::open(request, wanted, after).await
}

/// A feed as a stream of events that ends with its first error.
fn events(feed: Feed) -> impl Stream<Item = Result<Event, Error>> {
    stream::try_unfold(feed, async |mut feed| {
        loop {
            let event = match feed.next().await? {
                Item::Event(row) => Event::of(&row),
                Item::Missed(oldest) => Some(Event::Missed(EventsMissed::new(oldest, feed.now()))),
            };
            if let Some(event) = event {
                return Ok(Some((event, feed)));
            }
        }
    })
}

/// Has a stream that ends with an error say so, so that nobody takes it for one that is complete.
fn ending<T>(
    request: Arc<Request>,
    stream: impl Stream<Item = Result<T, Error>>,
) -> impl Stream<Item = Result<T, Error>> {
    stream.inspect_err(move |_| request.progress.failed())
}

/// The next event of a feed whose subscriber is told how things are, and not what has happened to them.
async fn event_of(feed: &mut Feed) -> Result<Arc<event::Model>, Error> {
    match feed.next().await? {
        Item::Event(row) => Ok(row),
        Item::Missed(_) => Err(Error::bad_input(
            "Some of what you have missed is no longer kept. Read how things are, and subscribe anew.",
        )
        .field("after")),
    }
}

/// The next events of one subject as far as they are known, in order, and the subject.
async fn latest(feed: &mut Feed) -> Result<(Vec<Arc<event::Model>>, Uuid), Error> {
    let row = event_of(feed).await?;
    let subject = row.subject_id;
    let mut rows = vec![row];
    rows.extend(feed.take_of(subject));
    Ok((rows, subject))
}

/// Whether an event says that a task went to an agent, or away from it.
fn mentions(row: &event::Model, agent: Uuid) -> bool {
    row.agent_id == Some(agent)
        || row.uuid("assigneeId") == Some(agent)
        || row.uuid("fromAssigneeId") == Some(agent)
}

async fn readable_circle(request: &Request, id: &ID) -> Result<Uuid, Error> {
    let id = Kind::Circle.parse(id, "circleId")?;
    let rule = &request.viewer()?.rules().circle;
    let row = request.readable::<circle::Entity>(rule, id).await?;
    row.map(|row| row.id)
        .ok_or_else(|| Error::not_found("circleId"))
}

async fn readable_agent(request: &Request, id: &ID, field: &str) -> Result<Uuid, Error> {
    let id = Kind::Agent.parse(id, field)?;
    let rule = &request.viewer()?.rules().agent;
    let row = request.readable::<agent::Entity>(rule, id).await?;
    row.map(|row| row.id).ok_or_else(|| Error::not_found(field))
}

async fn readable_conversation(
    request: &Request,
    id: Uuid,
) -> Result<Option<Arc<conversation::Model>>, Error> {
    let rule = &request.viewer()?.rules().conversation;
    request
        .readable_later::<conversation::Entity>(rule, id)
        .await
}
