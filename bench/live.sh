#!/usr/bin/env bash
#
# Live events under load: bench/live.sh [fanout] [steady] [abort] [crash]
#
#   fanout   BENCH_SUBSCRIBERS (1000) listen to everything over WebSocket, BENCH_SILENT (10) of them without ever
#            reading, while BENCH_CIRCLES (100) circles of 100 members are made: 101 events each. BENCH_FIELDS (id type)
#            is what they ask of an event, beside its cursor and when it was.
#   steady   BENCH_LISTENERS (100) listen while projects are renamed BENCH_RATE (100) times a second for BENCH_SECONDS (10).
#   abort    BENCH_CONNECTS (10000) connections are broken off at each stage of the handshake.
#   crash    changes are made as fast as the server lets for BENCH_SECONDS (10), half way through it is killed; then each
#            acknowledged change must be in the database, and have one event.
#
# Each runs against the release server on a throw-away PostgreSQL with the demo data. The load takes its share of the
# same machine.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
if (($# == 0)); then set -- fanout steady abort crash; fi
run cargo build --locked --release --example live
live=${CARGO_TARGET_DIR:-target}/release/examples/live
ulimit -n "$(ulimit -Hn)"

start_postgres
fill /dev/null
export GATHERING__LIMITS__MODE=off GATHERING__SERVER__MAX_CONNECTIONS=10000
export GATHERING__SUBSCRIPTIONS__CONNECTIONS=10000 GATHERING__SUBSCRIPTIONS__CONNECTIONS_PER_CLIENT=10000

for load; do
    say "$load"
    serve
    case $load in
    fanout)
        "$live" fanout "$gathering_url" "$token" "$gathering_pid" "${BENCH_SUBSCRIBERS:-1000}" "${BENCH_SILENT:-10}" \
            "${BENCH_CIRCLES:-100}" || die 'the load failed'
        ;;
    steady)
        "$live" steady "$gathering_url" "$token" "${BENCH_LISTENERS:-100}" "${BENCH_RATE:-100}" "${BENCH_SECONDS:-10}" ||
            die 'the load failed'
        ;;
    abort)
        "$live" abort "$gathering_url" "$token" "$gathering_pid" "${BENCH_CONNECTS:-10000}" || die 'the load failed'
        ;;
    crash)
        seconds=${BENCH_SECONDS:-10}
        "$live" storm "$gathering_url" "$token" "$seconds" >"$scratch/acknowledged" &
        storm=$!
        sleep $((seconds / 2))
        kill -KILL "$gathering_pid"
        wait "$storm"
        serve
        # What was committed and not yet announced is announced at the start.
        while (($(sql "$database_url" --command='SELECT count(*) FROM events WHERE position IS NULL'))); do sleep 0.1; done
        sql "$database_url" <<SQL
CREATE TEMP TABLE acknowledged (name text);
\\copy acknowledged FROM '$scratch/acknowledged'
CREATE TEMP TABLE told AS SELECT payload->>'name' AS name, count(*) FROM events WHERE type = 'project.updated' GROUP BY 1;
SELECT count(*) || ' acknowledged; without an event: ' || count(*) FILTER (WHERE told.name IS NULL)
    || '; with more than one: ' || count(*) FILTER (WHERE told.count > 1)
    FROM acknowledged LEFT JOIN told USING (name);
SELECT 'projects behind what was acknowledged: ' || count(*) FROM (
    SELECT a.own FROM (SELECT regexp_replace(name, ' [0-9]+$', '') AS own, max(substring(name FROM '[0-9]+$')::int) AS step
        FROM acknowledged GROUP BY 1) a
    LEFT JOIN (SELECT regexp_replace(name, ' [0-9]+$', '') AS own, substring(name FROM '[0-9]+$')::int AS step
        FROM projects WHERE name ~ '^storm [0-9]+ [0-9]+$') p ON p.own = a.own AND p.step >= a.step
    WHERE p.own IS NULL) behind;
SELECT 'positions: ' || count(position) || ' of ' || count(*) || ' events, ' || count(DISTINCT position) || ' different, '
    || max(position) - min(position) + 1 || ' in a row' FROM events;
SQL
        ;;
    *) die "no such load: $load" ;;
    esac
    kill "$gathering_pid"
done
