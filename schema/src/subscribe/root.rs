//! Subscriptions: events as they are committed, and objects in their state after a change.

use std::sync::Arc;

use async_graphql::{Context, ID, Interface, SimpleObject, Subscription};
use futures_util::{Stream, TryStreamExt, future::try_join_all, stream};
use gathering_entity::{agent, circle, conversation, event, message, task};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait};
use uuid::Uuid;

use crate::{
    agent::Agent,
    conversation::{Conversation, messages::Message},
    db::{PageQuery, Rule},
    error::Error,
    event::{Event, EventFilter, Events, EventsMissed, Payload},
    events::{EventType, FeedFilter, SHARING},
    id::Kind,
    request::{Request, RequestExt},
    subscribe::{Burst, Feed, Item, Update},
    task::Task,
};

/// Maximum number of agents of one subscription.
const MAX_AGENTS: usize = 100;

/// An update of a conversation: a message, a completed turn or the end.
#[derive(Interface)]
#[graphql(field(
    name = "conversation",
    ty = "&Conversation",
    desc = "The conversation in its current state."
))]
pub(crate) enum ConversationUpdate {
    /// A message.
    Message(MessageAdded),
    /// A completed turn.
    Turn(TurnCompleted),
    /// The end of the conversation.
    End(ConversationEnded),
}

/// A message was added.
#[derive(SimpleObject)]
pub(crate) struct MessageAdded {
    /// The conversation in its current state.
    conversation: Conversation,
    /// The message.
    message: Message,
}

/// An agent has completed its turn.
#[derive(SimpleObject)]
pub(crate) struct TurnCompleted {
    /// The conversation in its current state.
    conversation: Conversation,
    /// The number of the turn, from 1.
    turn: i32,
    /// The next speaker; null if there is none or the viewer may not read it.
    next_speaker: Option<Agent>,
}

/// The conversation has ended.
#[derive(SimpleObject)]
pub(crate) struct ConversationEnded {
    /// The conversation in its current state.
    conversation: Conversation,
    /// The reason for the end: `completed`, `max_turns`, `marker`, `cancelled` or `failed`.
    reason: Option<String>,
}

/// The root of subscriptions: live updates.
/// Each field delivers one response per update, in commit order, at least once.
#[derive(Default)]
pub(crate) struct Subscription;

/// The root of subscriptions: live updates.
/// Each field delivers one response per update, in commit order, at least once.
#[Subscription]
impl Subscription {
    /// Streams the events that the caller may read.
    /// With `after`, the stream resumes after that event without a gap while it is stored; otherwise the first event is
    /// `EventsMissed`.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Filters the events.")] filter: Option<EventFilter>,
        #[graphql(desc = "The `cursor` of the last event received.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Burst<Event>, Error>> + use<>, Error> {
        let filter = EventFilter::feed_filter(filter)?;
        let feed = follow(ctx.shared(), filter, after).await?;
        Ok(ending(ctx.shared(), events(feed, None)))
    }

    /// Streams the events of a circle.
    /// Ends when the circle is deleted or no longer shared with the caller; with an API key of an agent, also when the
    /// agent leaves the circle.
    async fn circle_events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The circle.")] circle_id: ID,
        #[graphql(desc = "Only events of these types; an empty list matches nothing.")]
        types: Option<Vec<EventType>>,
        #[graphql(desc = "The `cursor` of the last event received.")] after: Option<String>,
    ) -> Result<impl Stream<Item = Result<Burst<Event>, Error>> + use<>, Error> {
        let request = ctx.shared();
        let agent = request.viewer()?.agent();
        let id = Kind::Circle.parse(&circle_id, "circleId")?;
        let types: Option<Vec<&'static str>> =
            types.map(|types| crate::db::distinct(types.into_iter().map(EventType::dotted)));
        // These events end the stream, so they are received even if the client filters them out.
        let removed = agent.map(|_| EventType::MemberRemoved);
        let last = SHARING.into_iter().chain(removed).map(EventType::dotted);
        let last: Vec<_> = last.collect();
        let filter = FeedFilter {
            types: types.clone().map(|types| [types, last].concat()),
            circle: Some(id),
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), filter, after).await?;
        // The feed is open already, so it contains any change after this check.
        readable_circle(&request, id).await?;
        Ok(ending(request, events(feed, Some((id, types)))))
    }

    /// Streams tasks, each in its state after a change.
    /// Selects the tasks of a circle, of an agent, or of an agent in a circle; `BAD_USER_INPUT` if neither is given.
    /// Several changes of one task at the same time may be combined into one update. Deleted tasks are not sent.
    async fn task_updated(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only tasks of this circle.")] circle_id: Option<ID>,
        #[graphql(
            desc = "Only tasks that are, or were before the change, assigned to this agent."
        )]
        assignee_id: Option<ID>,
    ) -> Result<impl Stream<Item = Result<Burst<Task>, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        if circle_id.is_none() && assignee_id.is_none() {
            let message = "At least one of `circleId` and `assigneeId` is required.";
            return Err(Error::bad_input(message).field("circleId"));
        }
        let circle = match &circle_id {
            Some(id) => {
                let id = Kind::Circle.parse(id, "circleId")?;
                readable_circle(&request, id).await?;
                Some(id)
            }
            None => None,
        };
        let assignee = match &assignee_id {
            Some(id) => Some(readable_agent(&request, id, "assigneeId").await?),
            None => None,
        };
        let filter = FeedFilter {
            types: Some(EventType::all_of("task")),
            circle,
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), filter, None).await?;
        let updates = stream::try_unfold(feed, move |mut feed| {
            let request = Arc::clone(&request);
            async move {
                loop {
                    let changes = Changes::next(&mut feed).await?;
                    let rule = &request.viewer()?.rules().task;
                    let tasks = changes.iter().map(async |change| {
                        let task = request.readable_later::<task::Entity>(rule, change.subject);
                        let concerns = |task: &Arc<task::Model>| {
                            assignee.is_none_or(|agent| {
                                task.assignee_id == Some(agent)
                                    || change.rows.iter().any(|row| mentions(row, agent))
                            })
                        };
                        let task = task.await?.filter(concerns);
                        Ok::<_, Error>(task.map(|task| (Task(task), change.cursor(&request))))
                    });
                    let updates = try_join_all(tasks).await?;
                    if let Some(burst) = Burst::new(&request, updates) {
                        return Ok(Some((burst, feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), updates))
    }

    /// Streams agents whose status has changed, in their current state.
    /// Several changes of one agent at the same time may be combined into one update.
    async fn agent_status_changed(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "At most 100 agents that the caller may read; defaults to the caller's own."
        )]
        agent_ids: Option<Vec<ID>>,
    ) -> Result<impl Stream<Item = Result<Burst<Agent>, Error>> + use<>, Error> {
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
        let filter = FeedFilter {
            types: Some(vec![EventType::AgentStatusChanged.dotted()]),
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), filter, None).await?;
        // A reader of an agent may see its status in every circle, so the events are not filtered by circle.
        let feed = feed.unguarded();
        let updates = stream::try_unfold(feed, move |mut feed| {
            let (request, agents) = (Arc::clone(&request), agents.clone());
            async move {
                loop {
                    let mut changes = Changes::next(&mut feed).await?;
                    changes.retain(|change| match &agents {
                        Some(agents) => agents.contains(&change.subject),
                        None => change.rows.iter().any(|row| row.owner_id == Some(viewer)),
                    });
                    let rule = &request.viewer()?.rules().agent;
                    let agents = changes.iter().map(async |change| {
                        let agent = request.readable_later::<agent::Entity>(rule, change.subject);
                        let agent = agent.await?;
                        Ok::<_, Error>(agent.map(|agent| (Agent(agent), change.cursor(&request))))
                    });
                    let updates = try_join_all(agents).await?;
                    if let Some(burst) = Burst::new(&request, updates) {
                        return Ok(Some((burst, feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), updates))
    }

    /// Streams the updates of a conversation: its messages, its turns and its end.
    /// Ends with the first update that the caller may no longer read. With `afterSeq`, it starts with the messages
    /// after that sequence number.
    async fn conversation_updates(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The conversation.")] conversation_id: ID,
        #[graphql(desc = "The `seq` of the last message received; 0 for all messages.")]
        after_seq: Option<i32>,
    ) -> Result<impl Stream<Item = Result<Burst<ConversationUpdate>, Error>> + use<>, Error> {
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
        let filter = FeedFilter {
            // Not limited to the events of the circle, because a conversation outlives its circle.
            types: Some(types.map(EventType::dotted).to_vec()),
            ..FeedFilter::default()
        };
        // A client that resumes from a cursor has received the earlier messages already.
        let is_behind = after_seq.is_some() && request.progress.after.is_none();
        let follower = Follower {
            // The feed is opened before the messages are read. A message added in between is in both and is sent once.
            feed: follow(Arc::clone(&request), filter, None)
                .await?
                .unguarded(),
            request,
            id,
            is_behind,
            last_seq: after_seq.unwrap_or_default(),
        };
        let updates = stream::try_unfold(follower, async |mut follower| {
            let burst = follower.next().await?;
            Ok(burst.map(|burst| (burst, follower)))
        });
        Ok(ending(ctx.shared(), updates))
    }
}

/// Updates of a conversation that are sent together.
type Updates = Vec<Option<Update<ConversationUpdate>>>;

/// A subscriber of a conversation.
struct Follower {
    request: Arc<Request>,
    id: Uuid,
    feed: Feed,
    /// Whether there are earlier messages still to be sent.
    is_behind: bool,
    /// The sequence number of the last message sent.
    last_seq: i32,
}

impl Follower {
    /// The next updates; `None` if the viewer may no longer read the conversation.
    async fn next(&mut self) -> Result<Option<Burst<ConversationUpdate>>, Error> {
        self.request.progress.started();
        loop {
            let updates = if self.is_behind {
                self.earlier().await?
            } else {
                self.changes().await?
            };
            let Some(updates) = updates else {
                return Ok(None);
            };
            let burst = Burst::new(&self.request, updates);
            if burst.is_some() {
                return Ok(burst);
            }
        }
    }

    /// The next batch of the earlier messages.
    async fn earlier(&mut self) -> Result<Option<Updates>, Error> {
        let select = message::Entity::find()
            .filter(message::Column::Seq.gt(self.last_seq))
            .order_by_asc(message::Column::Seq)
            .limit(self.request.progress.burst() as u64)
            .into_query();
        let parent = message::Column::ConversationId.as_column_ref();
        let pages = PageQuery::<message::Model>::new("messages", select, Some(parent));
        let messages = self.request.load(pages, self.id).await?;
        match messages.last() {
            Some(last) => self.last_seq = last.seq,
            None => self.is_behind = false,
        }
        let conversation = readable_conversation(&self.request, self.id).await?;
        Ok(conversation.map(|conversation| {
            let added = |message| added(Arc::clone(&conversation), Arc::clone(message));
            let updates = messages.iter().map(|message| Some((added(message), None)));
            updates.collect()
        }))
    }

    /// The next updates from the feed.
    async fn changes(&mut self) -> Result<Option<Updates>, Error> {
        let mut rows = rows(&mut self.feed).await?;
        rows.retain(|row| {
            if row.kind != EventType::MessageAdded.dotted() {
                return row.subject_id == self.id;
            }
            let seq = row.number("seq").filter(|seq| *seq > self.last_seq);
            let is_new = seq.is_some() && row.uuid("conversationId") == Some(self.id);
            if is_new {
                self.last_seq = seq.unwrap_or(self.last_seq);
            }
            is_new
        });
        if rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Some(conversation) = readable_conversation(&self.request, self.id).await? else {
            return Ok(None);
        };
        let updates = rows.iter().map(|row| self.change(&conversation, row));
        try_join_all(updates).await.map(Some)
    }

    async fn change(
        &self,
        conversation: &Arc<conversation::Model>,
        row: &event::Model,
    ) -> Result<Option<Update<ConversationUpdate>>, Error> {
        let conversation = Arc::clone(conversation);
        let update = if row.kind == EventType::MessageAdded.dotted() {
            let everybody = Rule::default();
            let message = self
                .request
                .readable_later::<message::Entity>(&everybody, row.subject_id);
            message.await?.map(|message| added(conversation, message))
        } else if row.kind == EventType::ConversationEnded.dotted() {
            Some(ConversationUpdate::End(ConversationEnded {
                conversation: Conversation(conversation),
                reason: row.text("reason").map(str::to_owned),
            }))
        } else {
            let next = match row.uuid("nextSpeakerId") {
                Some(id) => {
                    let rule = &self.request.viewer()?.rules().agent;
                    self.request
                        .readable_later::<agent::Entity>(rule, id)
                        .await?
                }
                None => None,
            };
            Some(ConversationUpdate::Turn(TurnCompleted {
                conversation: Conversation(conversation),
                turn: row.number("turn").unwrap_or_default(),
                next_speaker: next.map(Agent),
            }))
        };
        let cursor = Events::cursor(self.request.services.epoch, row);
        Ok(update.map(|update| (update, Some(cursor))))
    }
}

fn added(
    conversation: Arc<conversation::Model>,
    message: Arc<message::Model>,
) -> ConversationUpdate {
    ConversationUpdate::Message(MessageAdded {
        conversation: Conversation(conversation),
        message: Message(message),
    })
}

/// Opens a feed that starts now, or after the client's cursor.
async fn follow(
    request: Arc<Request>,
    filter: FeedFilter,
    after: Option<String>,
) -> Result<Feed, Error> {
    request.viewer()?;
    // The cursor of a reconnecting client is newer than the one in the operation.
    let after = match request.progress.after.as_ref().or(after.as_ref()) {
        Some(cursor) => Some(Events::position(request.services.epoch, cursor)?),
        None => None,
    };
    Feed::open(request, filter, after).await
}

/// Turns a feed into a stream of events that ends with its first error. The stream of a circle contains only events of
/// the given types and ends when the viewer may no longer read the circle.
fn events(
    feed: Feed,
    circle: Option<(Uuid, Option<Vec<&'static str>>)>,
) -> impl Stream<Item = Result<Burst<Event>, Error>> {
    stream::try_unfold(Some((feed, circle)), async |state| {
        let Some((mut feed, circle)) = state else {
            return Ok(None);
        };
        loop {
            let items = feed.next().await?;
            let (request, now) = (feed.request(), feed.request().now());
            let viewer = request.viewer()?;
            let continues = match &circle {
                Some((id, _)) if items.iter().any(|item| item.changes_access(viewer)) => {
                    let rule = &viewer.rules().circle;
                    let circle = request.readable_later::<circle::Entity>(rule, *id);
                    circle.await?.is_some()
                }
                _ => true,
            };
            let types = circle.as_ref().and_then(|(_, types)| types.as_ref());
            let is_wanted =
                |row: &event::Model| types.is_none_or(|types| types.contains(&row.kind.as_str()));
            let epoch = request.services.epoch;
            let updates = items.into_iter().map(|item| match item {
                Item::Event(row) if is_wanted(&row) => {
                    Some((Event::of(&row)?, Some(Events::cursor(epoch, &row))))
                }
                Item::Event(_) => None,
                Item::Missed(oldest) => {
                    let missed = EventsMissed::new(oldest, now);
                    let cursor = missed.before(epoch);
                    Some((Event::Missed(missed), Some(cursor)))
                }
            });
            match Burst::new(request, updates) {
                Some(burst) => return Ok(Some((burst, continues.then_some((feed, circle))))),
                None if continues => {}
                None => return Ok(None),
            }
        }
    })
}

/// Records that a stream ended with an error, so that the client does not take it for complete.
fn ending<T>(
    request: Arc<Request>,
    stream: impl Stream<Item = Result<T, Error>>,
) -> impl Stream<Item = Result<T, Error>> {
    stream.inspect_err(move |_| request.progress.failed())
}

/// The next events of a feed whose subscriber receives current states rather than events.
async fn rows(feed: &mut Feed) -> Result<Vec<Arc<event::Model>>, Error> {
    let items = feed.next().await?.into_iter();
    let rows = items.map(|item| match item {
        Item::Event(row) => Ok(row),
        Item::Missed(_) => Err(Error::bad_input(
            "Some missed events are no longer stored. Query the current state and subscribe again.",
        )
        .field("after")),
    });
    rows.collect()
}

/// Changes of one object that are combined into one update.
struct Changes {
    subject: Uuid,
    rows: Vec<Arc<event::Model>>,
}

impl Changes {
    /// The next changes of a feed, in the order of the first event of each object.
    async fn next(feed: &mut Feed) -> Result<Vec<Self>, Error> {
        let mut all: Vec<Self> = Vec::new();
        for row in rows(feed).await? {
            let subject = row.subject_id;
            match all.iter_mut().find(|changes| changes.subject == subject) {
                Some(changes) => changes.rows.push(row),
                None => all.push(Self {
                    subject,
                    rows: vec![row],
                }),
            }
        }
        Ok(all)
    }

    /// The cursor after which all later updates can be received again.
    fn cursor(&self, request: &Request) -> Option<String> {
        let first = self.rows.first()?;
        Some(Events::cursor(request.services.epoch, first))
    }
}

/// Whether an event assigns a task to an agent or unassigns it from the agent.
fn mentions(row: &event::Model, agent: Uuid) -> bool {
    row.agent_id == Some(agent)
        || row.uuid("assigneeId") == Some(agent)
        || row.uuid("fromAssigneeId") == Some(agent)
}

async fn readable_circle(request: &Request, id: Uuid) -> Result<(), Error> {
    let rule = &request.viewer()?.rules().circle;
    let row = request.readable::<circle::Entity>(rule, id).await?;
    row.map(|_| ()).ok_or_else(|| Error::not_found("circleId"))
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
