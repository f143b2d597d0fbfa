#!/usr/bin/env bash
#
# Where the processor time of a query goes: bench/profile.sh QUERY [VARIABLES]
#
# Loads the release server with a query of bench/queries while `perf` samples its call stacks. Prints the functions with
# the most time and, for each area of the server, the time of its own functions and the time with everything that they
# call. A sample belongs to the area of its innermost function that matches one of the patterns below. The variables of
# `team`, `circle`, `activity`, `agent`, `profile` and `create-task` may be omitted.
#
# BENCH_SECONDS (10) and BENCH_CONNECTIONS (64) set the length and connections of the load; BENCH_PROGRAM is a server
# that is already built, with its symbols.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
query=${1:?usage: bench/profile.sh QUERY [VARIABLES]} variables=${2-}
export CARGO_PROFILE_RELEASE_DEBUG=line-tables-only CARGO_PROFILE_RELEASE_STRIP=none
source bench/common.sh
install_missing wrk wrk
install_missing perf linux-perf
seconds=${BENCH_SECONDS:-10} connections=${BENCH_CONNECTIONS:-64}
if [[ ! $variables ]]; then
    case $query in
    team | circle | activity) variables='{"id":"circle_01ke6p4zk8e03r000000000001"}' ;;
    agent | profile) variables='{"id":"agent_01ke6p4zk8e02r000000000001"}' ;;
    create-task) variables='{"circle":"circle_01ke6p4zk8e03r000000000001","title":"Task","description":"Text"}' ;;
    *) variables='{}' ;;
    esac
fi

start_postgres -c max_connections=100
fill bench/circles.sql
serve
ask "$query" "$variables"

load() {
    wrk --threads 1 --connections "$connections" --duration "$1s" --script bench/load.lua \
        "$gathering_url/graphql" -- "$scratch/$query.request" "$token" >"$scratch/wrk.log"
}

say "sampling $query for $seconds s over $connections connections"
load 3 # warms up
perf record --event cpu-clock --freq 997 --call-graph dwarf,16384 --pid "$gathering_pid" --output "$scratch/perf.data" \
    >"$scratch/perf.log" 2>&1 </dev/null &
job=$!
before=$(cpu "$gathering_pid")
load "$seconds"
spent=$(($(cpu "$gathering_pid") - before))
kill -INT "$job"
wait "$job" || true
job=''
read -r requests duration _ < <(tail -n 1 "$scratch/wrk.log")

say "results"
# One line for each function of a call stack, the innermost first, and an empty line after each stack.
perf script --no-inline --fields ip,sym,dso --input "$scratch/perf.data" 2>"$scratch/perf.log" |
    awk -v requests="$requests" -v duration="$duration" -v spent="$spent" '
    BEGIN {
        # The first pattern that matches a function decides.
        areas = split("kernel|allocator|serialise|loader, database|auth, limits|parse, validate, plan|resolve|http, layers|other", area, "|")
        pattern["allocator"] = "_rjem_|jemalloc|^do_rallocx$|^(__libc_)?(malloc|calloc|realloc|free|posix_memalign)$|__rust_(re|de)?alloc|__rdl_"
        pattern["serialise"] = "serde_json::ser|serde_core::ser|serde::ser|gathering_schema::response|gathering_schema::compiled::(cell|write)|serde_json::raw|Serialize"
        pattern["loader, database"] = "gathering_schema::(db|compiled::load)|sea_orm|sea_query|sqlx"
        pattern["auth, limits"] = "gathering_schema::(auth|rate_limit|execute::admission)|gathering::http::gate|governor|jsonwebtoken|hmac|sha2|idempotency"
        pattern["parse, validate, plan"] = "gathering_schema::operation|gathering_schema::compiled::compile|apollo|gathering::http::params|serde_json::de"
        pattern["resolve"] = "gathering_schema|async_graphql"
        pattern["http, layers"] = "gathering::|hyper|axum|tower|http::|http_body|tracing|h2::"
    }
    function of(name, dso,   i) {
        if (dso ~ /kernel|vmlinux|\.ko/) return "kernel"
        if (!(name in known)) {
            known[name] = ""
            for (i = 2; i < areas && known[name] == ""; i++) if (name ~ pattern[area[i]]) known[name] = area[i]
        }
        return known[name]
    }
    function finish(   a) {
        if (!depth) return
        samples++
        if (innermost == "") innermost = "other"
        own[innermost]++
        if (!("other" in seen) && innermost == "other") seen["other"]
        for (a in seen) { inclusive[a]++; delete seen[a] }
        depth = 0; innermost = ""
    }
    NF == 0 { finish(); next }
    {
        dso = $NF
        name = $0
        sub(/^[ \t]*[0-9a-f]+[ \t]+/, "", name); sub(/ \([^()]*(\([^()]*\))?[^()]*\)$/, "", name); sub(/::h[0-9a-f]+$/, "", name)
        a = of(name, dso)
        if (!depth++) self[a == "kernel" ? "[kernel] " name : name]++
        if (a != "") { if (innermost == "") innermost = a; seen[a] }
    }
    END {
        finish()
        each = spent / requests
        printf "%d requests a second, %.1f µs of processor time each, %d samples\n\n", requests / duration, each, samples
        print "area                     own µs       %   with callees µs       %"
        for (i = 1; i <= areas; i++)
            printf "%-22s %8.1f %6.1f %% %17.1f %6.1f %%\n", area[i], own[area[i]] * each / samples, own[area[i]] * 100 / samples,
                inclusive[area[i]] * each / samples, inclusive[area[i]] * 100 / samples
        print "\n      µs       %  function"
        for (name in self) printf "%8.2f %6.2f %%  %s\n", self[name] * each / samples, self[name] * 100 / samples, name | "sort -gr | head -n 40 | cut -c -160"
    }'
