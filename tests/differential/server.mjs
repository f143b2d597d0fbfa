// The server under test.

// What says that a request was refused as a whole, before anything of it ran.
const REFUSALS = ['GRAPHQL_PARSE_FAILED', 'GRAPHQL_VALIDATION_FAILED', 'BAD_USER_INPUT'];
// The server's own bounds. The differential server has them raised; what is still beyond them is not compared.
const BOUNDS = ['QUERY_TOO_COMPLEX'];
// A condition that is null at run time: a request error here, an error in the answer of graphql-js.
const NULL_CONDITION = /is used in a condition and must not be null/;
const RESPONSE = 'application/graphql-response+json';

export class Server {
  constructor(url, token) {
    Object.assign(this, { url, token });
  }

  // Sends a request and answers the body, or the refusal that a stream consists of; undefined for a stream of answers.
  async send({ document, variables, operationName }, { isSignedIn = true, accept = RESPONSE } = {}) {
    const response = await fetch(this.url, {
      method: 'POST',
      headers: {
        accept,
        'content-type': 'application/json',
        ...(isSignedIn && { authorization: `Bearer ${this.token}` }),
      },
      body: JSON.stringify({ query: document, variables, operationName }),
      signal: AbortSignal.timeout(120_000),
    });
    if (!response.headers.get('content-type')?.startsWith('text/event-stream')) return response.json();
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const { value = '' } = await reader.read();
    await reader.cancel();
    const data = value.match(/^event: next\ndata: (.*)$/m);
    return data ? JSON.parse(data[1]) : undefined;
  }

  // The data of a query that must not fail.
  async data(document) {
    const { data, errors } = await this.send({ document });
    if (errors) throw new Error(`${document}\nfailed: ${JSON.stringify(errors)}`);
    return data;
  }

  // `{ accepted, code, message, body }`; `accepted` is undefined when the server's bounds forbid the request.
  //
  // Mutations and subscriptions are sent without being signed in: each of their fields then fails with
  // UNAUTHENTICATED when it is executed, so that nothing happens. A subscription fails before its first answer, which
  // is an answer without data; only a request that was refused has another code.
  async verdict(request, kind) {
    const isQuery = kind === 'query';
    const accept = kind === 'subscription' ? `text/event-stream, ${RESPONSE};q=0.9` : RESPONSE;
    const body = await this.send(request, { isSignedIn: isQuery, accept });
    if (body === undefined || 'data' in body) return { accepted: true, body };
    const { message, path, extensions: { code } = {} } = body.errors[0];
    const refused = { accepted: false, code, message, body };
    if (BOUNDS.includes(code) || NULL_CONDITION.test(message)) return { ...refused, accepted: undefined };
    // An error with a path is one of a field: its request was accepted.
    if (kind === 'subscription' && (code === 'UNAUTHENTICATED' || path)) return { ...refused, accepted: true };
    if (!REFUSALS.includes(code)) return { ...refused, isFault: true };
    return refused;
  }
}

// Lists of which there is nothing to name, or that only administrators read.
const NOT_LISTED = ['auditLog', 'sessions', 'users'];

// Ids and cursors of the rows that lists show, for the generator to name.
export async function findRows(server, schema) {
  const ids = {};
  const cursors = { any: ['nothing'] };
  const lists = Object.values(schema.getQueryType().getFields()).filter(({ name, type }) => {
    const edges = /Connection!$/.test(`${type}`) && schema.getType(`${type}`.replace('Connection!', ''));
    return edges?.getFields?.().id && !NOT_LISTED.includes(name);
  });
  for (const { name, type } of lists) {
    const { [name]: list } = await server.data(`{ ${name}(first: 12) { edges { cursor node { __typename id } } } }`);
    if (list.edges.length > 0) cursors[`${type}`.replace('!', '')] = list.edges.map(({ cursor }) => cursor);
    for (const { node } of list.edges) (ids[node.__typename] ??= []).push(node.id);
  }
  cursors.any.push(...Object.values(cursors).flatMap(([first]) => first));
  const { viewer, conversations, circles } = await server.data(`{
    viewer { id }
    conversations(first: 50) { nodes { messages(first: 4) { nodes { id } } } }
    circles(first: 3) { nodes { owner { id } members(first: 4) { edges { membership { id } } } } }
  }`);
  ids.Message = conversations.nodes.flatMap(({ messages }) => messages.nodes.map(({ id }) => id));
  ids.User = [...new Set([viewer.id, ...circles.nodes.map(({ owner }) => owner.id)])];
  ids.CircleMember = circles.nodes.flatMap(({ members }) => members.edges.map(({ membership }) => membership.id));
  const empty = Object.keys(ids).filter((name) => ids[name].length === 0);
  if (empty.length > 0) throw new Error(`the server has no ${empty.join(', ')}`);
  return { ids, cursors };
}
