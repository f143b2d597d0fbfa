#!/usr/bin/env bash
#
# How PostgreSQL carries out the statements of the queries that people wait for: bench/plans.sh [--all]
#
# Fills a throw-away PostgreSQL with 100,000 tasks and what belongs to them, asks the release server each
# query of bench/queries, and reads from the log how each statement was really carried out, with the plan for
# all values that the server asks for. A statement that reads a large table from end to end is shown with its
# plan, and makes the script fail. --all shows every plan.
# `few` reads the lists of a user who may read 0.1 % of their rows.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh

start_postgres -c max_connections=100
fill bench/many.sql
for setting in "session_preload_libraries = auto_explain" auto_explain.{log_min_duration=0,log_analyze=on,log_buffers=on}; do
    sql "$postgres_url" --command="ALTER DATABASE gathering SET $setting"
done

# `explain QUERY [VARIABLES]`: asks, and reads what the log says about it.
explain() {
    local from
    from=$(stat --format=%s "$postgres_log")
    ask "$@"
    tail --bytes="+$((from + 1))" "$postgres_log" | awk -v query="$1" -v all="$all" -v shown="$scratch/shown" '
        # A statement and its plan are the lines that begin with a tab, after the one with the duration.
        function finish() {
            if (text != "" && (whole || all)) print text "\n" >>shown
            text = ""
        }
        !/^\t/ { finish() }
        / duration: .* plan:$/ {
            statements++; time += $7; counted = whole = 0
            text = query ", " $7 " ms"
        }
        text == "" || !/^\t/ { next }
        { text = text "\n" $0 }
        / Seq Scan on / && !/never executed/ && match($0, /Seq Scan on [a-z_]+/) {
            table = substr($0, RSTART + 12, RLENGTH - 12)
            if (table !~ /^(models|personas|projects|providers|users)$/) {
                whole = 1
                if (!seen[table]++) tables = tables " " table
            }
        }
        /Buffers: / && !counted++ { split($0, part, /hit=|read=/); pages += part[2] + part[3] }
        END {
            finish()
            printf "%-10s %10d %8.1f %8d %s\n", query, statements, time, pages, tables
            exit tables != ""
        }' || failed=yes
}

failed='' all=''
if [[ ${1-} == --all ]]; then all=yes; fi
touch "$scratch/shown"
say "statements"
echo "query      statements       ms    pages  read from end to end"
serve
explain home
explain team '{"id":"circle_01ke6p4zk8e03r000000000001"}'
explain activity '{"id":"circle_01ke6p4zk8e03r000000000001"}'
explain circle '{"id":"circle_01ke6p4zk8e03r000000000001"}'
explain circles
explain agent '{"id":"agent_01ke6p4zk8e02r000000000001"}'
explain profile '{"id":"agent_01ke6p4zk8e02r000000000001"}'
explain board '{"id":"project_01ke6p4zk8e038000000000001"}'
explain talk '{"id":"conversation_01ke6p4zk8e05r000000000001"}'
explain feed
explain lists '{"task":"task_01kg000000e058000000000000"}'
explain filters '{"circle":"circle_01ke6p4zk8e03r000000000001","agent":"agent_01ke6p4zk8e02r000000000001","project":"project_01ke6p4zk8e038000000000001"}'
end "$gathering_pid" INT
sql "$database_url" --file=bench/few.sql --command='VACUUM ANALYZE'
serve few
explain few
say "plans"
cat "$scratch/shown"
if [[ $failed ]]; then die "a large table was read from end to end"; fi
