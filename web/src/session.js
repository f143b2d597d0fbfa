// The session: the signed-in user, shown by SignIn.jsx, and the tokens, for requests to the server.
//
// All tabs share one record in the browser with both tokens. A refresh token works once, so two tabs must not use the
// same one, and a reload must not need one: a reload that interrupts a refresh would lose the next token. Keeping the
// access token in memory would add no safety, because a script that can read the record has the refresh token. Only
// scripts of this origin can, and the policy of the page loads no other scripts.
const NAME = 'gathering';
const SPARE = 30_000; // minimum remaining lifetime of a token in use, in milliseconds
const TIMEOUT = 15_000; // maximum wait for a response, in milliseconds; other tabs wait as long

// Errors after which the refresh token is still valid. Any other error ends the session.
const TRANSIENT = ['CONFLICT', 'INTERNAL', 'RATE_LIMITED', 'TIMEOUT', 'UNAVAILABLE'];

// The page of a demo contains credentials.
const demo = JSON.parse(document.querySelector('meta[name="gathering-demo"]')?.content ?? 'null');

// Whether the user signed out in this tab, which then ignores the automatic session of a demo in another tab.
let left = false;

// The displayed state: `busy` and `notice` are texts, or empty.
let state = { viewer: null, busy: '…', notice: '' };
const listeners = new Set();
function show(change) {
  state = { ...state, ...change };
  listeners.forEach((listener) => listener());
}

// For React's `useSyncExternalStore`.
export const snapshot = () => state;
export function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

// In IndexedDB, because localStorage may not yet show what the previous holder of the lock has written.
const database = new Promise((resolve, reject) => {
  const opening = indexedDB.open(NAME);
  opening.onupgradeneeded = () => opening.result.createObjectStore('session');
  opening.onsuccess = () => resolve(opening.result);
  opening.onerror = () => reject(opening.error);
});

async function store(mode, act) {
  const transaction = (await database).transaction('session', mode);
  const request = act(transaction.objectStore('session'));
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve(request.result);
    transaction.onabort = () => reject(transaction.error);
  });
}

async function current() {
  const record = await store('readonly', (session) => session.get(NAME));
  return left && record?.demo ? undefined : record;
}

// Sends other tabs the reason for the end of the session; an empty text if there is a session.
const tabs = new BroadcastChannel(NAME);
tabs.onmessage = async ({ data }) => {
  const record = await current();
  if (record || state.viewer) {
    show({ viewer: record?.viewer ?? null, notice: record ? '' : data });
  }
};

async function keep(record) {
  await store('readwrite', (session) => session.put(record, NAME));
  left = false;
  tabs.postMessage('');
  show({ viewer: record.viewer, notice: '' });
  return record.accessToken;
}

async function forget(notice) {
  await store('readwrite', (session) => session.delete(NAME));
  tabs.postMessage(notice || 'Signed out in another tab.');
  show({ viewer: null, notice });
  return null;
}

// Runs work that reads and then writes the record, one at a time in all tabs. Browsers have locks only on HTTPS and on
// the same machine; elsewhere the work of this tab is serialized.
let queue = Promise.resolve();
function alone(work) {
  if (navigator.locks) {
    return navigator.locks.request(NAME, work);
  }
  const result = queue.then(work);
  queue = result.catch(() => {});
  return result;
}

async function post(query, input, token) {
  try {
    const response = await fetch('/graphql', {
      method: 'POST',
      headers: {
        'content-type': 'application/json',
        accept: 'application/graphql-response+json, application/json;q=0.9',
        ...(token && { authorization: `Bearer ${token}` }),
      },
      body: JSON.stringify({ query, variables: { input } }),
      signal: AbortSignal.timeout(TIMEOUT),
    });
    // The difference of the clocks, so that a wrong clock does not make a token look expired or valid.
    const ahead = Date.parse(response.headers.get('date')) - Date.now() || 0;
    return { ahead, ...(await response.json()) };
  } catch {
    throw Object.assign(new Error('The server cannot be reached.'), { code: 'UNAVAILABLE' });
  }
}

// Requests a session: `field` is `login`, `register` or `refreshSession`. The `fields` of an error are the messages by
// field of `input`.
async function open(field, input) {
  const type = `${field[0].toUpperCase()}${field.slice(1)}Input`;
  const { ahead, data, errors } = await post(
    `mutation ($input: ${type}!) {
      ${field}(input: $input) {
        accessToken
        accessTokenExpiresAt
        refreshToken
        viewer { id name email role }
        userErrors { field code message }
      }
    }`,
    input,
  );
  const { userErrors = [], accessToken, accessTokenExpiresAt, refreshToken, viewer } = data?.[field] ?? {};
  if (accessToken) {
    return { accessToken, expires: Date.parse(accessTokenExpiresAt) - ahead, refreshToken, viewer };
  }
  const messages = [...(errors ?? []), ...userErrors].map(({ message }) => message);
  throw Object.assign(new Error(messages.join(' ')), {
    code: errors?.[0]?.extensions?.code,
    fields: Object.fromEntries(userErrors.map((error) => [error.field?.at(-1), error.message])),
  });
}

const openDemo = async () => keep({ ...(await open('login', demo)), demo: true });

// Only within `alone`, because it uses up the refresh token.
async function refresh(record) {
  try {
    return await keep({ ...(await open('refreshSession', { refreshToken: record.refreshToken })), demo: record.demo });
  } catch (error) {
    if (TRANSIENT.includes(error.code)) {
      throw error;
    }
    // A restarted demo has lost its earlier sessions.
    if (demo && !left) {
      return openDemo().catch(({ message }) => forget(message));
    }
    return forget(error.code === 'UNAUTHENTICATED' ? 'Your session has ended.' : error.message);
  }
}

const isOld = (record) => record && record.expires - Date.now() < SPARE;

// Returns a token that is valid for another 30 seconds, or null without a session. Throws if the token must be renewed
// and the server cannot be reached.
export async function accessToken() {
  await starting;
  const record = await current();
  return isOld(record) ? renew(record.accessToken) : (record?.accessToken ?? null);
}

// Returns a token that replaces a refused one, or null if the session has ended.
export function renew(stale) {
  return alone(async () => {
    const record = await current();
    // Another request, maybe of another tab, may have renewed it.
    return record?.accessToken === stale ? refresh(record) : (record?.accessToken ?? null);
  });
}

// Signs in by `login` or `register`.
export async function signIn(field, input) {
  show({ busy: 'Signing in…' });
  try {
    await alone(async () => keep(await open(field, input)));
  } finally {
    show({ busy: '' });
  }
}

export async function signOut() {
  show({ busy: 'Signing out…' });
  await alone(async () => {
    let trouble;
    try {
      if (isOld(await current())) {
        await refresh(await current());
      }
      const record = await current();
      if (record) {
        const query = 'mutation ($input: LogoutInput!) { logout(input: $input) { __typename } }';
        const { errors } = await post(query, { refreshToken: record.refreshToken }, record.accessToken);
        trouble = errors?.[0].message;
      }
    } catch ({ message }) {
      trouble = message;
    }
    left = true;
    await forget(trouble ? `Signed out here, but not on the server: ${trouble}` : '');
  });
  show({ busy: '' });
}

async function start() {
  try {
    const record = await current();
    if (record) {
      show({ viewer: record.viewer });
    } else if (demo) {
      show({ busy: 'Signing in…' });
      // Of tabs that open together, only one signs in.
      await alone(async () => {
        const theirs = await current();
        return theirs ? show({ viewer: theirs.viewer }) : openDemo();
      });
    }
  } catch ({ message }) {
    show({ notice: `Not signed in: ${message}` });
  }
  show({ busy: '' });
}

const starting = start();
