// The load: writers, queries, and readers that resume after their last cursor.
import http from 'node:http';
import { randomUUID } from 'node:crypto';
import WebSocket from 'ws';
import { sleep } from './cluster.mjs';
import { failureOf, graphql, Tally } from './http.mjs';

const TYPES = '[MESSAGE_ADDED, MESSAGE_PINNED, TASK_CREATED, PROJECT_UPDATED]';
const SUBSCRIPTION = `subscription ($after: String) {
  events(after: $after, filter: { types: ${TYPES} }) {
    __typename type id cursor
    ... on MessageEvent { subject: conversationId mark: excerpt }
    ... on TaskEvent { subject: taskId mark: title }
    ... on ProjectEvent { subject: projectId mark: name }
  }
}`;
/** The writer that pins and unpins a message: its events repeat, but none equals the one before. */
const PINS = 'pins';
const ERRORS = 'userErrors { field message }';
/** A reader without a sign of life for longer than the server's keep-alive reconnects. */
const SILENCE = 30_000;

async function ask(url, token, query, variables) {
  const answer = await graphql(url, { token, query, variables });
  const failure = failureOf(answer);
  if (failure) throw new Error(`${failure}: ${answer.text}`);
  return answer.body.data;
}

/** Repeats one kind of mutation, each with its own mark, until it is stopped. */
class Writer {
  constructor(load, name, query, input) {
    Object.assign(this, { load, name, query, input, count: 0 });
    this.agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  }

  async run() {
    const { load } = this;
    while (!load.isStopping) {
      const mark = `${this.name} ${this.count}`;
      const write = { query: this.query, variables: { input: this.input(mark) }, key: randomUUID() };
      const began = Date.now();
      if (!(await this.#apply(write))) {
        load.abandoned.add(mark);
        break;
      }
      load.written.set(mark, Date.now());
      load.wrote(mark, Date.now() - began);
      this.count += 1;
      await sleep(load.pace);
    }
    this.agent.destroy();
  }

  /** Sends a mutation until it is acknowledged, at most for a minute. */
  async #apply(write) {
    const { load } = this;
    const end = Date.now() + 60_000;
    while (Date.now() < end) {
      const answer = await graphql(load.url, { ...write, token: load.token, agent: this.agent });
      const failure = failureOf(answer);
      if (!failure) {
        const [payload] = Object.values(answer.body.data);
        if (payload.userErrors.length) throw new Error(answer.text);
        if (answer.body.extensions?.idempotency?.isReplayed) load.replayed += 1;
        return true;
      }
      load.fail(`write ${failure}`, answer);
      await sleep(100 + Math.random() * 200);
    }
    return false;
  }
}

/** What a reader has received. */
class Reader {
  constructor(load, name) {
    Object.assign(this, { load, name, cursor: load.cursor, seen: new Map(), order: [], ends: load.ends });
    this.pins = this.duplicates = this.disorder = this.missed = this.delay = this.connects = 0;
    this.latest = new Map();
    this.subjects = new Map();
  }

  async run() {
    while (!this.load.isClosing) {
      this.connects += 1;
      const end = await this.connect();
      if (this.load.isClosing) break;
      this.ends.add(end);
      await sleep(100 + Math.random() * 400);
    }
  }

  receive({ type, id, cursor, mark, subject }) {
    this.cursor = cursor;
    if (type === 'EVENTS_MISSED') {
      this.missed += 1;
      return;
    }
    if (this.seen.has(id)) {
      this.duplicates += 1;
      return;
    }
    // An event of a pinned message has no mark; its subject would be that of the messages.
    if (type === 'MESSAGE_PINNED') {
      mark = `${PINS} ${this.pins++}`;
      subject = PINS;
    }
    const now = Date.now();
    this.seen.set(id, { mark, now });
    this.order.push(id);
    const [writer, number] = mark.split(' ');
    const newest = this.subjects.get(subject) ?? -1;
    if (Number(number) < newest) this.disorder += 1;
    this.subjects.set(subject, Math.max(newest, Number(number)));
    // The order of one writer across subjects is not promised.
    if (Number(number) < (this.latest.get(writer) ?? -1)) this.load.acrossSubjects += 1;
    this.latest.set(writer, Math.max(this.latest.get(writer) ?? -1, Number(number)));
  }

  takeResult({ data, errors }) {
    const [transport] = this.name.split(' ');
    if (errors) this.load.fail(`${transport} ${errors[0].extensions?.code}`, { text: JSON.stringify(errors) });
    if (data?.events) this.receive(data.events);
  }
}

class WebSocketReader extends Reader {
  connect() {
    return new Promise((done) => {
      const url = `${this.load.url.replace('http', 'ws')}/graphql`;
      const socket = new WebSocket(url, 'graphql-transport-ws', { handshakeTimeout: 10_000 });
      let alive = Date.now();
      const watch = setInterval(() => {
        const isSilent = Date.now() - alive > SILENCE;
        if (isSilent || this.load.isClosing) socket.terminate();
        if (isSilent) finish('WebSocket silent');
      }, 200);
      let finish = (end) => {
        clearInterval(watch);
        done(end);
      };
      const authorization = `Bearer ${this.load.token}`;
      socket.on('open', () => socket.send(JSON.stringify({ type: 'connection_init', payload: { authorization } })));
      socket.on('ping', () => (alive = Date.now()));
      socket.on('message', (data) => {
        alive = Date.now();
        const message = JSON.parse(data);
        if (message.type === 'connection_ack') {
          const payload = { query: SUBSCRIPTION, variables: { after: this.cursor } };
          socket.send(JSON.stringify({ id: '1', type: 'subscribe', payload }));
        } else if (message.type === 'ping') socket.send(JSON.stringify({ type: 'pong' }));
        else if (message.type === 'next') this.takeResult(message.payload);
        else if (message.type === 'error') {
          this.takeResult({ errors: message.payload });
          socket.close(1000);
        } else if (message.type === 'complete') {
          this.ends.add('WebSocket complete');
          socket.close(1000);
        }
      });
      socket.on('unexpected-response', (request, response) => {
        this.load.fail(`WebSocket upgrade ${response.statusCode}`);
        request.destroy();
        finish(`WebSocket upgrade ${response.statusCode}`);
      });
      socket.on('error', (error) => {
        const isUpgrade = socket.readyState === WebSocket.CONNECTING && error.code;
        if (isUpgrade) this.load.fail(`WebSocket upgrade ${error.code}`);
      });
      socket.on('close', (code) => finish(`WebSocket ${code}`));
    });
  }
}

class StreamReader extends Reader {
  connect() {
    return new Promise((done) => {
      const headers = {
        authorization: `Bearer ${this.load.token}`,
        'content-type': 'application/json',
        accept: 'text/event-stream',
        'last-event-id': this.cursor,
      };
      let alive = Date.now();
      let hasResponse = false;
      let end = 'SSE cut';
      const request = http.request(`${this.load.url}/graphql`, { method: 'POST', headers }, (response) => {
        hasResponse = true;
        if (response.statusCode !== 200) {
          end = `SSE ${response.statusCode}`;
          this.load.fail(`SSE ${response.statusCode}`);
        }
        let text = '';
        response.setEncoding('utf8');
        response.on('data', (piece) => {
          alive = Date.now();
          text += piece;
          for (let at; (at = text.indexOf('\n\n')) >= 0; text = text.slice(at + 2)) {
            const lines = text.slice(0, at).split('\n');
            const event = lines.find((line) => line.startsWith('event: '))?.slice(7);
            const data = lines.find((line) => line.startsWith('data: '))?.slice(6);
            if (event === 'complete') end = 'SSE complete';
            else if (event === 'next') this.takeResult(JSON.parse(data));
          }
        });
        response.on('error', () => finish(end));
        response.on('end', () => finish(end));
      });
      const watch = setInterval(() => {
        const isSilent = Date.now() - alive > SILENCE;
        if (isSilent) end = 'SSE silent';
        if (isSilent || this.load.isClosing) request.destroy();
      }, 200);
      const finish = (end) => {
        clearInterval(watch);
        done(end);
      };
      request.on('error', (error) => {
        if (!hasResponse && !this.load.isClosing) this.load.fail(`SSE ${error.code ?? error.message}`);
        finish(end);
      });
      request.end(JSON.stringify({ query: SUBSCRIPTION }));
    });
  }
}

export class Load {
  constructor(url, token) {
    Object.assign(this, { url, token, written: new Map(), abandoned: new Set() });
    Object.assign(this, { failures: new Tally(), ends: new Tally() });
    this.requests = this.replayed = this.slowest = this.acrossSubjects = 0;
    this.pace = 100;
    this.samples = [];
  }

  fail(kind, { text, failure } = {}) {
    this.failures.add(kind);
    const sample = (text ?? failure ?? '').slice(0, 300).replaceAll(/\s+/g, ' ');
    if (this.samples.length < 20) this.samples.push(`${new Date().toISOString()} ${kind}: ${sample}`);
  }

  wrote(mark, took) {
    if (took <= this.slowest) return;
    this.slowest = took;
    this.slowestAt = `acknowledged at ${new Date().toISOString().slice(11, 23)}: ${mark}`;
  }

  async start() {
    const { url, token } = this;
    const { agents } = await ask(url, token, '{ agents(first: 2) { nodes { id } } }');
    const participantIds = agents.nodes.map(({ id }) => id);
    const create = async (field, type, result, input) => {
      const query = `mutation ($input: ${type}!) { ${field}(input: $input) { result: ${result} { id } ${ERRORS} } }`;
      const data = await ask(url, token, query, { input });
      if (!data[field].result) throw new Error(JSON.stringify(data));
      return data[field].result.id;
    };
    const run = randomUUID().slice(0, 8);
    const mutation = (field, type) => `mutation ($input: ${type}!) { ${field}(input: $input) { ${ERRORS} } }`;
    const circleId = await create('createCircle', 'CreateCircleInput', 'circle', { name: `Load ${run}` });
    const writers = [];
    let conversationId;
    for (let n = 0; n < 4; n++) {
      const topic = `Load ${run} ${n}`;
      const started = { topic, participantIds, startNow: true };
      const id = await create('createConversation', 'CreateConversationInput', 'conversation', started);
      conversationId = id;
      const input = (content) => ({ conversationId: id, content });
      writers.push(new Writer(this, `message-${n}`, mutation('postMessage', 'PostMessageInput'), input));
    }
    for (let n = 0; n < 2; n++) {
      const input = (title) => ({ circleId, title });
      writers.push(new Writer(this, `task-${n}`, mutation('createTask', 'CreateTaskInput'), input));
    }
    for (let n = 0; n < 2; n++) {
      const projectId = await create('createProject', 'CreateProjectInput', 'project', { name: `Load ${run} ${n}` });
      const input = (name) => ({ projectId, name });
      writers.push(new Writer(this, `project-${n}-${run}`, mutation('updateProject', 'UpdateProjectInput'), input));
    }
    const messageId = await create('postMessage', 'PostMessageInput', 'message', { conversationId, content: 'pinned' });
    let isPinned = false;
    const pin = () => ({ messageId, isPinned: (isPinned = !isPinned) });
    writers.push(new Writer(this, PINS, mutation('pinMessage', 'PinMessageInput'), pin));
    const { events } = await ask(url, token, '{ events(first: 1) { nodes { cursor } } }');
    this.cursor = events.nodes[0].cursor;
    this.readers = [];
    for (let n = 1; n <= 4; n++) {
      this.readers.push(new WebSocketReader(this, `WebSocket ${n}`), new StreamReader(this, `SSE ${n}`));
    }
    this.began = Date.now();
    this.reading = Promise.all(this.readers.map((reader) => reader.run()));
    this.writing = Promise.all([...writers.map((writer) => writer.run()), this.#query(true), this.#query(false)]);
  }

  /** Sends queries, over one connection or over a new one each. */
  async #query(keepAlive) {
    const agent = new http.Agent({ keepAlive, maxSockets: 1 });
    const query = '{ viewer { name } circles(first: 5) { nodes { name members(first: 5) { nodes { name } } } } }';
    while (!this.isStopping) {
      const answer = await graphql(this.url, { token: this.token, query, agent });
      const failure = failureOf(answer);
      if (failure) this.fail(`query ${failure}`, answer);
      else this.requests += 1;
      await sleep(this.pace);
    }
    agent.destroy();
  }

  /** Stops the writers, waits until all readers have all events, at most 40 seconds, and returns the result. */
  async stop() {
    this.isStopping = true;
    await this.writing;
    const end = Date.now() + 40_000;
    const isComplete = () => this.readers.every(({ seen }) => seen.size >= this.written.size);
    while (!isComplete() && Date.now() < end) await sleep(100);
    await sleep(1000); // duplicates
    this.isClosing = true;
    await this.reading;
    return this.#result();
  }

  #result() {
    const result = { lost: 0, duplicated: 0, 'out of order': 0, missed: 0, 'applied twice': 0 };
    const shared = ([...ids], { seen }) => new Set(ids.filter((id) => seen.has(id)));
    const common = this.readers.reduce(shared, this.readers[0].seen.keys());
    // All readers receive the events in the same order.
    const expected = this.readers[0].order.filter((id) => common.has(id));
    for (const reader of this.readers) {
      const arrivals = new Map();
      for (const { mark, now } of reader.seen.values()) {
        if (arrivals.has(mark)) result['applied twice'] += 1;
        else arrivals.set(mark, now);
      }
      const written = [...this.written];
      const lost = written.flatMap(([mark]) => (arrivals.has(mark) ? [] : [mark]));
      const delays = written.map(([mark, acknowledged]) => (arrivals.get(mark) ?? 0) - acknowledged);
      const order = reader.order.filter((id) => common.has(id));
      const displaced = order.filter((id, at) => id !== expected[at]).length;
      Object.assign(reader, { lost, displaced, delay: Math.max(0, ...delays) });
      result.lost += lost.length;
      result.duplicated += reader.duplicates;
      result['out of order'] += reader.disorder + displaced;
      result.missed += reader.missed;
    }
    result['writes abandoned'] = this.abandoned.size;
    return result;
  }
}
