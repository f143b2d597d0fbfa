// The playground: GraphiQL with examples of our domain, talking to the server that it came from.
import 'graphiql/setup-workers/vite';
import 'graphiql/style.css';
import './main.css';
import { GraphiQL } from 'graphiql';
import { createRoot } from 'react-dom/client';
import { examples } from './examples.js';
import icon from './icon.svg';
import { RateLimit, report } from './RateLimit.jsx';
import { accessToken, renew } from './session.js';
import { SignIn } from './SignIn.jsx';

async function fetcher(params, options) {
  const answer = await ask(params, options);
  report(answer);
  return answer;
}

async function ask(params, options) {
  const headers = new Headers({
    'content-type': 'application/json',
    accept: 'application/graphql-response+json, application/json;q=0.9',
    // Answers show what they cost. `{"X-Gathering-Usage": "0"}` among a tab's headers turns that off.
    'x-gathering-usage': '1',
  });
  for (const [name, value] of Object.entries(options?.headers ?? {})) {
    headers.set(name, value);
  }
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
