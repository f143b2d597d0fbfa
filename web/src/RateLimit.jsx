// The rate limit of the last response that has the least remaining.
import { useSyncExternalStore } from 'react';

const listeners = new Set();
let tightestNow = null;

// Reads the rate limits of a response; a response without them changes nothing.
export function report(answer) {
  const touched = answer?.extensions?.rateLimit;
  if (touched?.length) {
    tightestNow = touched.reduce((tightest, next) => (next.remaining < tightest.remaining ? next : tightest));
    listeners.forEach((listener) => listener());
  }
}

function subscribe(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

export function RateLimit() {
  const tightest = useSyncExternalStore(subscribe, () => tightestNow);
  if (!tightest) {
    return null;
  }
  const { field, tier, limit, remaining, resetAt } = tightest;
  const until = new Date(resetAt).toLocaleTimeString();
  return (
    <span
      className={remaining ? 'rate-limit' : 'rate-limit spent'}
      title={`${field}: ${remaining} of ${limit} requests per minute remaining, full again at ${until}`}
    >
      {tier} {remaining}/{limit}
    </span>
  );
}
