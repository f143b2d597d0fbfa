#!/usr/bin/env bash
#
# The benchmark, in one command: bench/run.sh
#
# Builds the release server, starts it on a throw-away PostgreSQL with a fixed data set, and loads it with
# wrk. Server, database and load share this machine's processors. Each query is asked once first, and
# nothing is loaded when an answer has errors. The queries then take turns, because machines are noisy; the
# table shows medians over the rounds, but for `max`, the longest, and `errors`, the sum.
#
# BENCH_ROUNDS (3), BENCH_SECONDS (5) and BENCH_CONNECTIONS (64) set the number and length of the rounds and
# how many connections send requests.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
install_missing wrk wrk
rounds=${BENCH_ROUNDS:-3} seconds=${BENCH_SECONDS:-5} connections=${BENCH_CONNECTIONS:-64}
queries=(typename agent team circles)

start_postgres -c shared_preload_libraries=pg_stat_statements -c pg_stat_statements.track_utility=off
sql "$postgres_url" --command='CREATE EXTENSION pg_stat_statements'
fill bench/circles.sql
serve

memory() { awk -v field="$1:" '$1 == field { printf "%.0f MiB", $2 / 1024 }' "/proc/$gathering_pid/status"; }

# `load QUERY SECONDS`: prints the result line of load.lua.
load() {
    wrk --threads 1 --connections "$connections" --duration "$2s" --script bench/load.lua \
        "$gathering_url/graphql" -- "$scratch/$1.request" "$token" >"$scratch/wrk.log" || die "$(cat "$scratch/wrk.log")"
    tail -n 1 "$scratch/wrk.log"
}

# `measure QUERY`: one round; adds a line to the results.
measure() {
    local server database statements
    sql "$postgres_url" --command='SELECT pg_stat_statements_reset()' >/dev/null
    server=$(cpu "$gathering_pid") database=$(cpu "$postgres_pid")
    load "$1" "$seconds" >"$scratch/load"
    server=$(($(cpu "$gathering_pid") - server)) database=$(($(cpu "$postgres_pid") - database))
    statements=$(sql "$postgres_url" --command="SELECT coalesce(sum(calls), 0) FROM pg_stat_statements
        JOIN pg_database ON pg_database.oid = dbid AND datname = 'gathering'")
    echo "$1 $(stat --format=%s "$scratch/$1.answer") $(<"$scratch/load") $statements $server $database" >>"$scratch/results"
}

ask typename
ask agent '{"id":"agent_01ke6p4zk8e02r000000000001"}'
ask team '{"id":"circle_01ke6p4zk8e03r000000000001"}'
ask circles
memory_before=$(memory VmRSS)
say "loading over $connections connections, $rounds rounds of $seconds s"
for query in "${queries[@]}"; do load "$query" 2 >/dev/null; done # warms up
for ((round = 1; round <= rounds; round++)); do
    for query in "${queries[@]}"; do measure "$query"; done
done

say "results"
awk "$(<bench/median.awk)"'
    function add(column, value) { values[$1, column] = values[$1, column] " " value }
    {
        if (!($1 in bytes)) query[++queries] = $1
        bytes[$1] = $2; requests = $3
        add("rate", requests / $4); add("p50", $5); add("p95", $6); add("p99", $7)
        if ($8 > longest[$1]) longest[$1] = $8
        errors[$1] += $9
        add("statements", $10 / requests); add("server", $11 / requests); add("database", $12 / requests)
    }
    END {
        print "                        requests                                                  per request"
        print "query      answer     per second  p50 ms  p95 ms  p99 ms  max ms  errors  statements  server CPU  database CPU"
        for (i = 1; i <= queries; i++) {
            q = query[i]
            printf "%-9s %7d B %12.0f %7.2f %7.2f %7.2f %7.2f %7d %11.2f %8.0f µs %10.0f µs\n", q, bytes[q], median(values[q, "rate"]),
                median(values[q, "p50"]), median(values[q, "p95"]), median(values[q, "p99"]), longest[q], errors[q],
                median(values[q, "statements"]), median(values[q, "server"]), median(values[q, "database"])
        }
    }' "$scratch/results"
echo "server memory: $memory_before before the load, $(memory VmRSS) after it, $(memory VmHWM) at most"
