// Requests to the server that served the page, with the access token of the session.
import { getOperationAST } from 'graphql';
import { createClient } from 'graphql-sse';
import { report } from './RateLimit.jsx';
import { accessToken, renew } from './session.js';

// GraphiQL's fetcher.
export function fetcher(params, options) {
  const operation = options?.documentAST && getOperationAST(options.documentAST, params.operationName);
  return operation?.operation === 'subscription' ? listen(params, options) : ask(params, options);
}

function headersOf(options, more) {
  const headers = new Headers(more);
  for (const [name, value] of Object.entries(options?.headers ?? {})) {
    headers.set(name, value);
  }
  return headers;
}

// Returns the response to a query or a mutation.
export async function ask(params, options) {
  const headers = headersOf(options, {
    'content-type': 'application/json',
    accept: 'application/graphql-response+json, application/json;q=0.9',
    // A tab can turn the usage off with the header `{"X-Gathering-Usage": "0"}`.
    'x-gathering-usage': '1',
  });
  const send = () => fetch('/graphql', { method: 'POST', headers, body: JSON.stringify(params) });
  // An `Authorization` header of the tab takes precedence over the session.
  const token = headers.has('authorization') ? null : await accessToken();
  if (token) {
    headers.set('authorization', `Bearer ${token}`);
  }
  let response = await send();
  // The server has refused the token and not run the operation, which is therefore safe to repeat.
  if (token && response.status === 401) {
    const fresh = await renew(token);
    if (fresh) {
      headers.set('authorization', `Bearer ${fresh}`);
    } else {
      headers.delete('authorization');
    }
    response = await send();
  }
  const answer = await response.json();
  report(answer);
  return answer;
}

// Yields the responses of a subscription, by Server-Sent Events. A broken stream is reported instead of resumed, because
// the tab would not show the events in between.
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
