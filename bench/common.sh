# shellcheck shell=bash disable=SC2034
# (the variables that are set and not used here are for the script that sources this file)
#
# What the benchmarks share: the release server over a throw-away PostgreSQL with the demo data and more.

source tests/servers.sh
install_missing curl curl

# BENCH_PROGRAM is the path of a server that is already built.
program=${BENCH_PROGRAM-}
if [[ ! $program ]]; then
    say "building the release server"
    run cargo build --locked --release --package gathering
    program=${CARGO_TARGET_DIR:-target}/release/gathering
fi

# Processor time that this process and its children have taken, in microseconds.
cpu() {
    local tick=$((1000000 / $(getconf CLK_TCK))) sum=0 pid fields
    for pid in "$1" $(<"/proc/$1/task/$1/children"); do
        # User and system time, and those of the children that have gone, counted from behind the name of the
        # program, which may hold spaces. A child may end while it is counted.
        read -ra fields < <(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) || continue
        sum=$((sum + (fields[11] + fields[12] + fields[13] + fields[14]) * tick))
    done
    echo "$sum"
}

sql() { psql --no-psqlrc --quiet --tuples-only --no-align --set=ON_ERROR_STOP=1 "$@"; }

# `fill FILE`: makes the database, the demo data in it, and what the SQL of the file adds; sets database_url.
fill() {
    say "filling the database"
    sql "$postgres_url" --command='CREATE DATABASE gathering'
    database_url=${postgres_url%/*}/gathering
    run env DATABASE_URL="$database_url" "$program" migrate
    run env DATABASE_URL="$database_url" "$program" seed
    sql "$database_url" --file="$1"
}

# Benchmarks need more than the limits of a client. The largest limit of the complexity is too small for them.
export GATHERING__LIMITS__READ=1000000 GATHERING__LIMITS__HEALTH=1000000 GATHERING__LIMITS__ADDRESS=1000000 \
    GATHERING__LIMITS__WRITE=1000000 GATHERING__LIMITS__COST=0

# `start_and_sign_in EMAIL`: starts the server over that database and signs in; sets token.
start_and_sign_in() {
    local email=$1
    local login="mutation { login(input: {email: \\\"$email\\\", password: \\\"gathering-demo\\\"}) { accessToken } }"
    start_gathering env DATABASE_URL="$database_url" GATHERING__AUTH__SIGNING_KEY="$(head -c 48 /dev/urandom | base64)" \
        GATHERING__AUTH__ACCESS_LIFETIME=1h "$program" serve
    token=$(curl --silent --show-error --data-binary "{\"query\":\"$login\"}" --header 'Content-Type: application/json' \
        "$gathering_url/graphql" | sed -n 's/.*"accessToken":"\([^"]*\)".*/\1/p')
    if [[ ! $token ]]; then die "$email cannot sign in"; fi
}

# `serve [NAME]`: starts the server over that PostgreSQL and signs in as this user, or the demo user; sets token.
serve() {
    start_and_sign_in "${1-demo}@example.com"
    # The sign-in is written down behind the answer, and is none of what is measured.
    while [[ $(sql "$database_url" --command='SELECT count(*) FROM audit_log') == "${written:-0}" ]]; do sleep 0.1; done
    written=$(sql "$database_url" --command='SELECT count(*) FROM audit_log')
}

# `request FILE [VARIABLES]`: prints the request for the document of a file.
request() {
    local document
    document=$(tr -s '[:space:]' ' ' <"$1")
    printf '{"query":"%s","variables":%s}' "${document//\"/\\\"}" "${2:-{\}}"
}

# `ask QUERY [VARIABLES]`: asks bench/queries/QUERY.graphql; leaves request and answer in the scratch folder
# as QUERY.request and QUERY.answer. An answer with errors ends the script.
ask() {
    local request=$scratch/$1.request answer=$scratch/$1.answer
    request "bench/queries/$1.graphql" "${@:2}" >"$request"
    curl --silent --show-error --data-binary "@$request" --output "$answer" --header 'Content-Type: application/json' \
        --header 'Accept: application/graphql-response+json' --header "Authorization: Bearer $token" "$gathering_url/graphql"
    if ! grep -q '^{"data":{' "$answer" || grep -q '"errors":' "$answer"; then
        die "$1 was not answered: $(head -c 2000 "$answer")"
    fi
}
