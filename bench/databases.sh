#!/usr/bin/env bash
#
# Compares the server on SQLite with the server on PostgreSQL: bench/databases.sh
#
# Both serve the demo data at the same time, and one at a time is loaded. The table shows medians over the rounds, and
# the ratio of the requests per second of SQLite to those of PostgreSQL. Processor time is that of the server and of
# PostgreSQL.
#
# BENCH_ROUNDS (3) and BENCH_SECONDS (3) set the number and length of the rounds; BENCH_PROGRAM is a server that is
# already built.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
install_missing wrk wrk
rounds=${BENCH_ROUNDS:-3} seconds=${BENCH_SECONDS:-3}
# Each line of the table: a query and the number of connections.
cells=(team:1 team:8 team:64 circles:64 agent:64 create-task:1 create-task:8 create-task:64)
declare -A url token_of process

start_postgres -c max_connections=100
fill /dev/null
serve
url[postgres]=$gathering_url token_of[postgres]=$token process[postgres]=$gathering_pid
ask team '{"id":"circle_01ke6p4zk8e03r000000000001"}'
ask circles
ask agent '{"id":"agent_01ke6p4zk8e02r000000000001"}'
ask create-task '{"circle":"circle_01ke6p4zk8e03r000000000001","title":"Task","description":"Text"}'

database_url=sqlite://$scratch/gathering.db
run env DATABASE_URL="$database_url" "$program" migrate
run env DATABASE_URL="$database_url" "$program" seed
start_and_sign_in demo@example.com
url[sqlite]=$gathering_url token_of[sqlite]=$token process[sqlite]=$gathering_pid

# `load DATABASE QUERY CONNECTIONS SECONDS`: prints the result line of load.lua.
load() {
    wrk --threads 1 --connections "$3" --duration "$4s" --script bench/load.lua "${url[$1]}/graphql" \
        -- "$scratch/$2.request" "${token_of[$1]}" >"$scratch/wrk.log" || die "$(cat "$scratch/wrk.log")"
    tail -n 1 "$scratch/wrk.log"
}

say "loading, $rounds rounds of $seconds s"
for ((round = 1; round <= rounds; round++)); do
    for cell in "${cells[@]}"; do
        for database in postgres sqlite; do
            load "$database" "${cell%:*}" "${cell#*:}" 1 >/dev/null # warms up
            before=$(($(cpu "${process[$database]}") + $(cpu "$postgres_pid")))
            line=$(load "$database" "${cell%:*}" "${cell#*:}" "$seconds")
            spent=$(($(cpu "${process[$database]}") + $(cpu "$postgres_pid") - before))
            echo "$cell $database $line $spent" >>"$scratch/results"
        done
    done
done

say "results"
awk "$(<bench/median.awk)"'
    function add(column, value) { values[$1, $2, column] = values[$1, $2, column] " " value }
    function of(column) { return median(values[cell[i], database, column]) }
    {
        if (!(($1, "postgres", "rate") in values)) cell[++cells] = $1
        add("rate", $3 / $4); add("p50", $5); add("p99", $7); add("cpu", $NF / $3)
        errors += $9
    }
    END {
        print "query:connections  database    per second  p50 ms  p99 ms  CPU per request  to PostgreSQL"
        for (i = 1; i <= cells; i++) {
            for (n = 1; n <= 2; n++) {
                database = n == 1 ? "postgres" : "sqlite"
                rate[n] = of("rate")
                printf "%-18s %-9s %12.0f %7.2f %7.2f %13.0f µs", cell[i], database, rate[n], of("p50"), of("p99"), of("cpu")
                print n == 2 ? sprintf(" %14.2f", rate[2] / rate[1]) : ""
            }
        }
        if (errors) { print errors " requests failed"; exit 1 }
    }' "$scratch/results"
