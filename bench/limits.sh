#!/usr/bin/env bash
#
# What the rate limits cost: bench/limits.sh
#
# Starts the release server twice on the same throw-away PostgreSQL, once with limits that nobody reaches,
# kept in memory, and once without, and sends both the same query by turns. The ratios of the medians, with
# limits to without, should be close to 1; the same server against itself tells how close the machine can
# tell.
#
# BENCH_ROUNDS (7), BENCH_SECONDS (3) and BENCH_CONNECTIONS (64) set the number and length of the rounds and
# how many connections send requests.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
install_missing wrk wrk
rounds=${BENCH_ROUNDS:-7} seconds=${BENCH_SECONDS:-3} connections=${BENCH_CONNECTIONS:-64}
queries=(typename agent)
modes=(off enforce off-again)

start_postgres
fill bench/circles.sql
declare -A url pid bearer
for mode in off enforce; do
    export GATHERING__LIMITS__MODE=$mode
    serve
    url[$mode]=$gathering_url pid[$mode]=$gathering_pid bearer[$mode]=$token
    ask typename
    ask agent '{"id":"agent_01ke6p4zk8e02r000000000001"}'
done
url[off-again]=${url[off]} pid[off-again]=${pid[off]} bearer[off-again]=${bearer[off]}

# `measure QUERY MODE SECONDS`: prints the requests per second, and the server's processor time for each in
# microseconds.
measure() {
    local before requests duration errors rest
    before=$(cpu "${pid[$2]}")
    wrk --threads 1 --connections "$connections" --duration "$3s" --script bench/load.lua \
        "${url[$2]}/graphql" -- "$scratch/$1.request" "${bearer[$2]}" >"$scratch/wrk.log" || die "$(<"$scratch/wrk.log")"
    read -r requests duration rest < <(tail -n 1 "$scratch/wrk.log")
    errors=${rest##* }
    if ((errors)); then die "$errors of $requests requests failed"; fi
    awk -v requests="$requests" -v duration="$duration" -v cpu=$(($(cpu "${pid[$2]}") - before)) \
        'BEGIN { print requests / duration, cpu / requests }'
}

say "loading over $connections connections, $rounds rounds of $seconds s"
for query in "${queries[@]}"; do
    for mode in off enforce; do measure "$query" "$mode" 2 >/dev/null; done # warms up
    for ((round = 0; round < rounds; round++)); do
        for ((turn = 0; turn < ${#modes[@]}; turn++)); do
            # Each goes first as often as the others.
            mode=${modes[(round + turn) % ${#modes[@]}]}
            measure "$query" "$mode" "$seconds" >>"$scratch/$query-$mode"
        done
    done
done

# `median COLUMN FILE`
median() { awk -v column="$1" '{ print $column }' "$2" | sort -n | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

say "results"
printf '%-9s %-10s %12s %11s %14s %7s\n' query limits 'per second' 'to off' 'CPU/request' 'to off'
for query in "${queries[@]}"; do
    for mode in "${modes[@]}"; do
        awk -v query="$query" -v mode="$mode" \
            -v rate="$(median 1 "$scratch/$query-$mode")" -v rate_off="$(median 1 "$scratch/$query-off")" \
            -v cpu="$(median 2 "$scratch/$query-$mode")" -v cpu_off="$(median 2 "$scratch/$query-off")" \
            'BEGIN { printf "%-9s %-10s %12.0f %11.3f %11.1f µs %7.3f\n", query, mode, rate, rate / rate_off, cpu, cpu / cpu_off }'
    done
done
