// The playground: GraphiQL with examples of our domain, talking to the server that it came from.
import 'graphiql/setup-workers/vite';
import 'graphiql/style.css';
import './main.css';
import { GraphiQL } from 'graphiql';
import { getOperationAST } from 'graphql';
import { createClient } from 'graphql-sse';
import { createRoot } from 'react-dom/client';
import { examples } from './examples.js';
import icon from './icon.svg';
import { RateLimit, report } from './RateLimit.jsx';
import { accessToken, renew } from './session.js';
import { SignIn } from './SignIn.jsx';

function fetcher(params, options) {
  const operation = options?.documentAST && getOperationAST(options.documentAST, params.operationName);
  return operation?.operation === 'subscription' ? listen(params, options) : answerTo(params, options);
}

async function answerTo(params, options) {
  const answer = await ask(params, options);
  report(answer);
  return answer;
}

function headersOf(options, more) {
  const headers = new Headers(more);
  for (const [name, value] of Object.entries(options?.headers ?? {})) {
    headers.set(name, value);
  }
  return headers;
}

async function ask(params, options) {
  const headers = headersOf(options, {
    'content-type': 'application/json',
    accept: 'application/graphql-response+json, application/json;q=0.9',
    // Answers show what they cost. `{"X-Gathering-Usage": "0"}` among a tab's headers turns that off.
    'x-gathering-usage': '1',
  });
  const send = () => fetch('/graphql', { method: 'POST', headers, body: JSON.stringify(params) });
  // A tab with an `Authorization` of its own is left alone.
  const token = headers.has('authorization') ? null : await accessToken();
  if (!token) {
    return (await send()).json();
  }
  headers.set('authorization', `Bearer ${token}`);
  let response = await send();
  // The operation did not run: once more, with a token that the server takes, or as nobody.
  if (response.status === 401) {
    const fresh = await renew(token);
    if (fresh) {
      headers.set('authorization', `Bearer ${fresh}`);
    } else {
      headers.delete('authorization');
    }
    response = await send();
  }
  return response.json();
}

// The answers of a subscription, by Server-Sent Events. A stream that breaks off is shown to have done so: what the tab
// has missed in between it would not show.
async function* listen(params, options) {
  const headers = headersOf(options);
  const token = headers.has('authorization') ? null : await accessToken();
  if (token) {
    headers.set('authorization', `Bearer ${token}`);
  }
  const client = createClient({ url: '/graphql', headers: Object.fromEntries(headers), retryAttempts: 0 });
  try {
    for await (const answer of client.iterate(params)) {
      report(answer);
      yield answer;
    }
  } finally {
    client.dispose();
  }
}

// A link may bring an operation along: /graphql?query=…&variables=…
const url = new URLSearchParams(location.search);
const linked = url.has('query') && { query: url.get('query'), variables: url.get('variables') ?? '' };
// GraphiQL shows no variables of a first visit's first tab unless it is also told them as initial ones.
const firstVisit = !localStorage.getItem('graphiql:tabState');
const initial = linked || (firstVisit && examples[0]);

createRoot(document.getElementById('playground')).render(
  <GraphiQL
    fetcher={fetcher}
    defaultTabs={linked ? [linked, ...examples] : examples}
    initialQuery={initial?.query}
    initialVariables={initial?.variables}
    defaultQuery=""
    defaultEditorToolsVisibility="variables"
  >
    <GraphiQL.Logo>
      <img className="logo" src={icon} alt="" /> Gathering
      <RateLimit />
      <SignIn />
    </GraphiQL.Logo>
  </GraphiQL>,
);
