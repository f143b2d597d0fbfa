// Who is signed in, and the tokens that prove it. SignIn.jsx shows it; whatever talks to the server asks for
// `accessToken()`.
//
// A session is one record in the browser, the same for all tabs, with both tokens: a refresh token works once, so a
// reload must not need one (if it breaks off a refresh, the next token is lost), and tabs must not use one twice. The
// access token would be no safer in memory: who can read the record has the refresh token. That takes a script of our
// own origin, and the page's policy lets in no other.
const NAME = 'gathering';
const SPARE = 30_000; // milliseconds that a token given away is good for, at least
const PATIENCE = 15_000; // milliseconds that other tabs may have to wait for an answer

// What passes by itself: everything else that is said to a refresh token is its end.
const PASSING = ['CONFLICT', 'INTERNAL', 'RATE_LIMITED', 'TIMEOUT', 'UNAVAILABLE'];

// The demo's page says whom to sign in.
const demo = JSON.parse(document.querySelector('meta[name="gathering-demo"]')?.content ?? 'null');

// Signed out by hand in this tab: then a demo that signs in by itself in another is none of its business.
let left = false;

// What is shown: `busy` and `notice` are words, or empty.
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

// In IndexedDB, since localStorage may lag behind what another tab wrote, even when that tab had the lock before us.
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

// Other tabs are told why there is no session any more, or nothing when there is one.
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

// One at a time, in all tabs: what reads the record and then writes it. Browsers have locks where the page comes by
// HTTPS or from the same machine; elsewhere at least this tab waits for itself.
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
      signal: AbortSignal.timeout(PATIENCE),
    });
    // How far the server's clock is ahead of ours: a token must not seem old, or new, because one of them is wrong.
    const ahead = Date.parse(response.headers.get('date')) - Date.now() || 0;
    return { ahead, ...(await response.json()) };
  } catch {
    throw Object.assign(new Error('The server cannot be reached just now.'), { code: 'UNAVAILABLE' });
  }
}

// Asks for a session: `field` is `login`, `register` or `refreshSession`. An error's `fields` has the messages that
// belong to single fields of `input`.
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

// Only while `alone`, as it spends the refresh token.
async function refresh(record) {
  try {
    return await keep({ ...(await open('refreshSession', { refreshToken: record.refreshToken })), demo: record.demo });
  } catch (error) {
    if (PASSING.includes(error.code)) {
      throw error;
    }
    // A demo that was started anew knows nothing of its earlier sessions.
    if (demo && !left) {
      return openDemo().catch(({ message }) => forget(message));
    }
    return forget(error.code === 'UNAUTHENTICATED' ? 'Your session has ended.' : error.message);
  }
}

const isOld = (record) => record && record.expires - Date.now() < SPARE;

// A token that is good for another 30 seconds, or null where nobody is signed in. Throws when the server that should
// renew it cannot be reached.
export async function accessToken() {
  await starting;
  const record = await current();
  return isOld(record) ? renew(record.accessToken) : (record?.accessToken ?? null);
}

// A token in place of one that the server does not take, or null: then nobody is signed in any more.
export function renew(stale) {
  return alone(async () => {
    const record = await current();
    // Another request, maybe another tab's, may have been here first.
    return record?.accessToken === stale ? refresh(record) : (record?.accessToken ?? null);
  });
}

// By `login` or `register`.
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
      // Of tabs that open together, one signs in.
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
