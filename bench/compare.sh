#!/usr/bin/env bash
#
# Compares the server with others in one run: bench/compare.sh [--peers]
#
# The others are bench/handwritten (axum and sqlx without GraphQL, one statement for each read) and, with --peers, the
# GraphQL servers of bench/peers: PostGraphile, Mercurius with JIT and loaders, and GraphQL Yoga with JIT and DataLoader,
# each with one process per processor. Every server has its own copy of the same database on one throw-away PostgreSQL,
# and 20 connections to it. All run at the same time, and one at a time is loaded. Only the server authenticates its
# callers, checks access and limits rates; the others trust everyone.
#
# Before the load, each answer is compared with that of the server: the values of `data` without cursors, and the rows
# of a created task. bench/handwritten has the same bytes, the peers may have their own form of ids and times.
#
#   W1 team      a circle with 20 members, their agents, models and providers
#   W2 circles   20 circles with up to 20 members each
#   W3 agent     one agent with its model
#   W4 typename  { __typename }
#   W5 create    creates a task in one circle; `spread`: in all circles by turns
#   team5, team100: W1 with 5 and 100 members
#
# Then the server gets a steady 100 requests a second of W1. The tables show medians over the rounds, processor time
# with that of what the server does after its answers, and the sum of the errors; with errors, the script fails.
#
# BENCH_ROUNDS (3), BENCH_SECONDS (5) and BENCH_CONNECTIONS (64) set the number and length of the rounds and how many
# connections send requests, BENCH_STEADY_SECONDS (60) the length of the steady load; BENCH_PROGRAM is a server that is
# already built.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
install_missing wrk wrk
install_missing hey hey
rounds=${BENCH_ROUNDS:-3} seconds=${BENCH_SECONDS:-5} connections=${BENCH_CONNECTIONS:-64}
case ${1-} in
'') peers=() ;;
--peers) peers=(postgraphile mercurius yoga) ;;
*) die "usage: bench/compare.sh [--peers]" ;;
esac
servers=(gathering handwritten "${peers[@]}")
# Each line of the tables: a workload and the number of connections.
cells=(team:"$connections" circles:"$connections" agent:"$connections" typename:"$connections" create:"$connections"
    spread:"$connections" team:1 team:8 team:256 team5:"$connections" team100:"$connections")

say "building the hand-written server"
run cargo build --locked --release --manifest-path bench/handwritten/Cargo.toml --target-dir "${CARGO_TARGET_DIR:-target}/handwritten"
handwritten=${CARGO_TARGET_DIR:-target}/handwritten/release/handwritten
node=bench/peers/node_modules/.bin/node # of the version that the peers need
if ((${#peers[@]})) && [[ ! -x $node ]]; then
    install_missing npm npm
    say "installing the peers"
    run npm ci --prefix bench/peers --no-audit --no-fund --loglevel=error
fi

start_postgres -c max_connections=200
fill bench/compare/data.sql

# The address, the process and the database of each server, and where each workload is sent.
declare -A url pid database target
for server in "${servers[@]}"; do
    sql "$postgres_url" --command="CREATE DATABASE bench_$server TEMPLATE gathering"
    database[$server]=${postgres_url%/*}/bench_$server
    case $server in
    gathering)
        database_url=${database[$server]}
        serve
        server_url=$gathering_url server_pid=$gathering_pid
        ;;
    handwritten) start_server "$server" "$handwritten" "${database[$server]}" ;;
    *)
        if [[ $server == postgraphile ]]; then sql "${database[$server]}" --file=bench/peers/postgraphile.sql; fi
        start_server "$server" env NODE_ENV=production GRAPHILE_ENV=production \
            "$node" "bench/peers/$server.js" "${database[$server]}" "$(free_port)"
        ;;
    esac
    url[$server]=$server_url pid[$server]=$server_pid
done

# The ids of the circles by name, as the server writes them and as the rows have them.
ask circles
mapfile -t public < <(grep -o '"circle_[^"]*"' "$scratch/circles.answer" | tr -d '"')
mapfile -t rows < <(sql "${database[gathering]}" --command="SELECT id, name, status FROM circles ORDER BY id DESC")
declare -A public_id row_id
names=() # of the circles in which tasks can be created
for i in "${!rows[@]}"; do
    IFS='|' read -r id name status <<<"${rows[i]}"
    public_id[$name]=${public[i]} row_id[$name]=$id
    if [[ $status != ARCHIVED ]]; then names+=("$name"); fi
done

# `prepare SERVER WORKLOAD [CIRCLE]`: writes the request as SERVER.WORKLOAD.request, and sets its target.
prepare() {
    local server=$1 workload=$2 file=$scratch/$1.$2.request document variables='{}'
    local circle=${row_id[${3-Atelier}]} agent=019b8d62-7e68-7005-8000-000000000001
    local task='"title":"Write the release notes","description":"For the next version."'
    if [[ $server == gathering || $server == handwritten ]]; then
        circle=${public_id[${3-Atelier}]} agent=agent_01ke6p4zk8e02r000000000001
    fi
    if [[ $server == handwritten ]]; then
        true >"$file"
        case $workload in
        team*) target[$server.$workload]=/circles/$circle ;;
        circles) target[$server.$workload]=/circles ;;
        agent) target[$server.$workload]=/agents/$agent ;;
        typename) target[$server.$workload]=/typename ;;
        *)
            target[$server.$workload]=/tasks
            printf '{"circleId":"%s",%s}' "$circle" "$task" >"$file"
            ;;
        esac
        return
    fi
    document=$workload
    case $workload in
    team*) document=team variables="{\"id\":\"$circle\"}" ;;
    agent) variables="{\"id\":\"$agent\"}" ;;
    create | spread*) document=create-task variables="{\"circle\":\"$circle\",$task}" ;;
    esac
    document=$document.graphql
    if [[ -f bench/peers/$server/$document ]]; then document=bench/peers/$server/$document; else document=bench/queries/$document; fi
    request "$document" "$variables" >"$file"
    target[$server.$workload]=/graphql
}

# `answer SERVER WORKLOAD`: asks once; leaves the answer as SERVER.WORKLOAD.answer.
answer() {
    local data=()
    if [[ -s $scratch/$1.$2.request ]]; then data=(--data-binary "@$scratch/$1.$2.request"); fi
    curl --silent --show-error --fail-with-body "${data[@]}" --output "$scratch/$1.$2.answer" --header "Authorization: Bearer $token" \
        --header 'Content-Type: application/json' --header 'Accept: application/graphql-response+json' \
        "${url[$1]}${target[$1.$2]}" || die "$1 did not answer $2: $(head -c 2000 "$scratch/$1.$2.answer")"
}

# `check SERVER WORKLOAD`: compares the answer with that of the server, and the rows of a created task too.
check() {
    local expected=$scratch/gathering.$2.answer actual=$scratch/$1.$2.answer
    answer "$1" "$2"
    if [[ $1 == handwritten ]]; then
        cmp <(data "$expected") <(data "$actual") || die "the answers of $1 and the server to $2 differ"
    elif [[ $1 != gathering ]]; then
        "$node" bench/peers/check.js "$expected" "$actual" || die "the answers of $1 and the server to $2 differ"
    fi
    if [[ $2 == create ]]; then
        created "$1" >"$scratch/$1.created"
        cmp "$scratch/gathering.created" "$scratch/$1.created" || die "$1 wrote: $(<"$scratch/$1.created")"
    fi
}

# The bytes of `data`, without what differs between two answers: cursors and the id of a new task.
data() { sed -E 's/,"extensions":.*/}/; s/"endCursor":"[^"]*"//g; s/"task_[^"]*"//' "$1"; }

created() {
    sql "${database[$1]}" --command="
        SELECT to_jsonb(task) - '{id,created_at,updated_at}'::text[] FROM tasks AS task ORDER BY id DESC LIMIT 1" --command="
        SELECT to_jsonb(event) - '{id,position,subject_id,request_id,occurred_at,written}'::text[]
        FROM events AS event ORDER BY written DESC LIMIT 1"
}

say "comparing the answers"
for server in "${servers[@]}"; do
    for workload in team circles agent typename create; do prepare "$server" "$workload"; done
    prepare "$server" team5 Pause
    prepare "$server" team100 Assembly
    for workload in team circles agent typename create team5 team100; do check "$server" "$workload"; done
    for name in "${names[@]}"; do
        prepare "$server" "spread-$name" "$name"
        answer "$server" "spread-$name"
    done
    target[$server.spread]=${target[$server.create]}
done

# `load SERVER WORKLOAD CONNECTIONS SECONDS`: prints the result line of load.lua.
load() {
    local files=("$scratch/$1.$2.request")
    if [[ $2 == spread ]]; then files=("$scratch/$1.spread-"*.request); fi
    wrk --threads 1 --connections "$3" --duration "$4s" --script bench/load.lua "${url[$1]}${target[$1.$2]}" \
        -- "${files[0]}" "$token" "${files[@]:1}" >"$scratch/wrk.log" || die "$(cat "$scratch/wrk.log")"
    tail -n 1 "$scratch/wrk.log"
}

# Waits until the server has published the events of the created tasks, which is part of its work.
settle() {
    while [[ $(sql "${database[gathering]}" --command='SELECT count(*) FROM events WHERE position IS NULL') != 0 ]]; do sleep 0.1; done
}

# `measure SERVER WORKLOAD CONNECTIONS`: one round; adds a line to the results.
measure() {
    local own postgres
    own=$(cpu "${pid[$1]}") postgres=$(cpu "$postgres_pid")
    load "$1" "$2" "$3" "$seconds" >"$scratch/load"
    if [[ $1 == gathering && ($2 == create || $2 == spread) ]]; then settle; fi
    own=$(($(cpu "${pid[$1]}") - own)) postgres=$(($(cpu "$postgres_pid") - postgres))
    echo "$1 $2 $3 $(<"$scratch/load") $own $postgres" >>"$scratch/results"
}

say "loading, $rounds rounds of $seconds s for each server and workload, on $(nproc) processors ($(uptime | sed 's/.*load/load/'))"
for server in "${servers[@]}"; do
    for workload in team circles agent typename create spread team5 team100; do load "$server" "$workload" "$connections" 2 >/dev/null; done
done
settle
for ((round = 0; round < rounds; round++)); do
    for cell in "${cells[@]}"; do
        for ((turn = 0; turn < ${#servers[@]}; turn++)); do
            # Each round starts with another server.
            measure "${servers[(round + turn) % ${#servers[@]}]}" "${cell%:*}" "${cell#*:}"
        done
    done
done

say "results ($(uptime | sed 's/.*load/load/'))"
failed=''
awk -v connections="$connections" -f bench/median.awk -f bench/compare/tables.awk "$scratch/results" || failed=yes

say "resident memory"
for server in "${servers[@]}"; do
    # shellcheck disable=SC2046 # one word for each process
    awk -v server="$server" '$1 == "VmRSS:" { kib += $2; processes++ }
        END { printf "%-13s %5.0f MiB in %d process(es)\n", server, kib / 1024, processes }' \
        $(printf '/proc/%s/status ' "${pid[$server]}" $(<"/proc/${pid[$server]}/task/${pid[$server]}/children"))
done

# The pool of a new server shows how many connections this load needs.
end "$gathering_pid" INT
serve
say "100 requests a second for ${BENCH_STEADY_SECONDS:-60} s"
hey -z "${BENCH_STEADY_SECONDS:-60}s" -c 4 -q 25 -o csv -m POST -T application/json -D "$scratch/gathering.team.request" \
    -H "Authorization: Bearer $token" -H 'Accept: application/graphql-response+json' \
    "$gathering_url/graphql" >"$scratch/hey.csv" </dev/null &
job=$!
while kill -0 "$job" 2>/dev/null; do
    sql "$postgres_url" --command="SELECT count(*) FROM pg_stat_activity WHERE datname = 'bench_gathering'" >>"$scratch/open"
    sleep 1
done
wait "$job"
job=''
tail -n +2 "$scratch/hey.csv" | sort -t, -g | awk -F, -v seconds="${BENCH_STEADY_SECONDS:-60}" '
    { time[NR] = $1 * 1000; if ($7 != 200) errors++ }
    END {
        if (NR) printf "%.1f requests a second, p50 %.2f ms, p99 %.2f ms, max %.2f ms, %d errors\n",
            NR / seconds, time[int((NR + 1) / 2)], time[int((NR * 99 + 99) / 100)], time[NR], errors
        exit !NR || errors
    }' || failed=yes
sort -n "$scratch/open" | awk '
    NR == 1 { low = $1 }
    { high = $1 }
    END {
        printf "%d to %d connections to PostgreSQL (expected: 4 to 20)\n", low, high
        exit low < 4 || high > 20
    }' || failed=yes
if [[ $failed ]]; then die "failed requests, or a wrong number of connections"; fi
