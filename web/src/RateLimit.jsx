// How the client stands with the tightest of the fields that the last answer touched.
import { useSyncExternalStore } from 'react';

const listeners = new Set();
let standing = null;

// Takes an answer's account of its rate limits; answers without one change nothing.
export function report(answer) {
  const touched = answer?.extensions?.rateLimit;
  if (touched?.length) {
    standing = touched.reduce((tightest, next) => (next.remaining < tightest.remaining ? next : tightest));
    listeners.forEach((listener) => listener());
  }
}

function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function RateLimit() {
  const tightest = useSyncExternalStore(subscribe, () => standing);
  if (!tightest) {
    return null;
  }
  const { field, tier, limit, remaining, resetAt } = tightest;
  const until = new Date(resetAt).toLocaleTimeString();
  return (
    <span
      className={remaining ? 'rate-limit' : 'rate-limit spent'}
      title={`${field}: ${remaining} of ${limit} a minute left, all of them again at ${until}`}
    >
      {tier} {remaining}/{limit}
    </span>
  );
}
