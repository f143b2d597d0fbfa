// HTTP requests whose failures are results.
import http from 'node:http';

/**
 * Sends a request. Returns `{ status, text, body }`, or `{ failure }` if no complete response arrived within `timeout`
 * milliseconds.
 */
export function send(url, { method = 'GET', headers = {}, data, agent, timeout = 20_000 } = {}) {
  return new Promise((done) => {
    let timer;
    const finish = (result) => {
      clearTimeout(timer);
      done(result);
    };
    const request = http.request(url, { method, headers, agent }, (response) => {
      let text = '';
      response.setEncoding('utf8');
      response.on('data', (piece) => (text += piece));
      response.on('error', (error) => finish({ failure: error.code ?? error.message }));
      response.on('end', () => {
        let body;
        try {
          body = JSON.parse(text);
        } catch {
          body = undefined;
        }
        finish({ status: response.statusCode, headers: response.headers, text, body });
      });
    });
    timer = setTimeout(() => request.destroy(Object.assign(new Error('timeout'), { code: 'timeout' })), timeout);
    request.on('error', (error) => finish({ failure: error.code ?? error.message }));
    request.end(data);
  });
}

/** Sends a GraphQL request. */
export function graphql(url, { token, query, variables, key, agent, timeout }) {
  const headers = { 'content-type': 'application/json', accept: 'application/graphql-response+json' };
  if (token) headers.authorization = `Bearer ${token}`;
  if (key) headers['idempotency-key'] = key;
  const data = JSON.stringify({ query, variables });
  return send(`${url}/graphql`, { method: 'POST', headers, data, agent, timeout });
}

/** The kind of a failure of a GraphQL request, or undefined. */
export function failureOf({ failure, status, body }) {
  if (failure) return failure;
  const code = body?.errors?.[0]?.extensions?.code;
  if (code) return `${status} ${code}`;
  return status === 200 && body?.data ? undefined : `${status}`;
}

/** Counts by key. */
export class Tally extends Map {
  add(key, count = 1) {
    this.set(key, (this.get(key) ?? 0) + count);
  }

  toString() {
    return this.size ? [...this].map(([key, count]) => `${key}: ${count}`).join(', ') : 'none';
  }
}
