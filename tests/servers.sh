# shellcheck shell=bash disable=SC2034
# (the variables that are set and not used here are for the script that sources this file)
#
# Throw-away servers for the test script and the benchmarks, which source this file. They listen on free
# ports of 127.0.0.1 and keep their data in one temporary folder. However the script ends, everything it
# started is ended, by process id, and the folder is removed.

# -m gives each background job a process group of its own: a job ends with all of its children, and an
# interrupt at the terminal reaches the script first, which then ends its jobs in order.
set -euo pipefail -m

# What the caller's shell is set to must not decide which server is asked, or in which language.
unset "${!PG@}" DATABASE_URL REDIS_URL "${!GATHERING_@}"
export LC_ALL=C

scratch=$(mktemp -d "${TMPDIR:-/tmp}/gathering.XXXXXX")
chmod 711 "$scratch" # PostgreSQL, as a user of its own, has to reach its folder below
job=''     # what runs now
started=() # the servers, oldest first, each as `end` takes it

say() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# Runs a job and waits for it. Waiting, unlike running it in the foreground, lets an interrupt in at once.
run() {
    local status=0
    "$@" </dev/null &
    job=$!
    wait "$job" || status=$?
    end "$job"
    job=''
    return "$status"
}

# `end PID [SIGNAL]`: ends the job and all of its children; whoever has not gone in 10 seconds is killed.
end() {
    kill "-${2:-TERM}" -- "-$1" 2>/dev/null || return 0
    for ((tenths = 0; tenths < 100; tenths++)); do
        kill -0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL -- "-$1" 2>/dev/null || true
}

end_all() {
    trap '' INT TERM HUP
    local i
    if [[ $job ]]; then end "$job"; fi
    for ((i = ${#started[@]} - 1; i >= 0; i--)); do
        # shellcheck disable=SC2086 # two words where the signal is named
        end ${started[i]}
    done
    rm -rf "$scratch"
}
trap end_all EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

as_root() { if ((EUID)); then sudo -n "$@"; else "$@"; fi; }

# `install_missing COMMAND PACKAGE`: has the command, from Debian's package when it is not there yet.
install_missing() {
    # Debian keeps PostgreSQL's own programs off the path, in a folder for each version.
    local folder
    for folder in /usr/lib/postgresql/*/bin; do PATH=$folder:$PATH; done
    type -P "$1" >/dev/null && return
    if ! type -P apt-get >/dev/null || ! as_root true 2>/dev/null; then
        die "$1 is missing; please install it (Debian's package is $2)"
    fi
    say "installing $2"
    # Debian starts the services that it installs, unless it takes the machine to be in single-user mode.
    local apt=(env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300)
    {
        as_root "${apt[@]}" update && as_root "${apt[@]}" install -y --no-install-recommends "$2"
    } >"$scratch/apt.log" 2>&1 </dev/null || {
        cat "$scratch/apt.log" >&2
        die "$2 could not be installed"
    }
    for folder in /usr/lib/postgresql/*/bin; do PATH=$folder:$PATH; done
    hash -r
}

free_port() {
    local port
    while port=$((20000 + RANDOM % 12000)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
    echo "$port"
}

# `start_postgres [-c SETTING=VALUE]...`: sets postgres_url, postgres_pid and postgres_log. Nothing is
# synced to disk. Text sorts by the rules of English, so that an order which has to be bytewise, and is
# only so by the luck of the locale, shows.
start_postgres() {
    install_missing postgres postgresql
    local folder=$scratch/postgres port as=()
    mkdir "$folder"
    if ((EUID == 0)); then # PostgreSQL refuses to run as root
        as=(setpriv --reuid=postgres --regid=postgres --init-groups)
        chown postgres: "$folder"
    fi
    (
        cd "$folder"
        "${as[@]}" initdb --pgdata=data --username=gathering --auth=trust --encoding=UTF8 --no-sync \
            --locale=C --locale-provider=icu --icu-locale=en
    ) >"$scratch/initdb.log" 2>&1 || { cat "$scratch/initdb.log" >&2 && die "PostgreSQL could not be set up"; }
    postgres_log=$scratch/postgres.log
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        "${as[@]}" postgres -D "$folder/data" -k "$folder" -p "$port" -c listen_addresses=127.0.0.1 \
            -c fsync=off -c synchronous_commit=off -c full_page_writes=off "$@" \
            >"$postgres_log" 2>&1 </dev/null &
        postgres_pid=$!
        while kill -0 "$postgres_pid" 2>/dev/null; do
            if pg_isready -q -h "$folder" -p "$port"; then
                started+=("$postgres_pid INT") # does not wait for its clients to leave
                postgres_url=postgres://gathering@127.0.0.1:$port/postgres
                return
            fi
            sleep 0.1
        done
    done
    cat "$postgres_log" >&2
    die "PostgreSQL did not start"
}

# `start_redis`: sets redis_url.
start_redis() {
    install_missing redis-server redis-server
    local port pid
    for _ in 1 2 3 4 5; do
        port=$(free_port)
        redis-server --bind 127.0.0.1 --port "$port" --dir "$scratch" --save '' --appendonly no \
            >"$scratch/redis.log" 2>&1 </dev/null &
        pid=$!
        while kill -0 "$pid" 2>/dev/null; do
            if grep -q 'Ready to accept connections' "$scratch/redis.log"; then
                started+=("$pid")
                redis_url=redis://127.0.0.1:$port
                return
            fi
            sleep 0.1
        done
    done
    cat "$scratch/redis.log" >&2
    die "Redis did not start"
}

# `start_server NAME COMMAND...`: starts a server that prints its address; sets server_url and server_pid.
start_server() {
    local log=$scratch/$1.log
    shift
    true >"$log" # is there before the server is
    "$@" >"$log" 2>&1 </dev/null &
    server_pid=$!
    started+=("$server_pid INT") # without its time of grace
    while kill -0 "$server_pid" 2>/dev/null; do
        server_url=$(sed -n 's/^listening on \(http[^ ]*\).*/\1/p' "$log")
        if [[ $server_url ]]; then return; fi
        sleep 0.1
    done
    cat "$log" >&2
    return 1
}

# `start_gathering PROGRAM SUBCOMMAND...`: sets gathering_url and gathering_pid.
start_gathering() {
    start_server gathering "$@" --listen 127.0.0.1:0 || return
    gathering_url=$server_url gathering_pid=$server_pid
}
