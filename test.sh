#!/usr/bin/env bash
#
# The whole test suite, in one command: ./test.sh
#
# Needs Rust. PostgreSQL and Redis are installed from Debian's packages when they are missing and this may
# be done, and run as throw-away servers; a server that is there already is not touched. Node is needed for
# the audit, the comparison with graphql-js and the clients alone, which are skipped without it. The collector of traces
# is left out without Python and its package index.
#
# A step, or a test that ran in none of the suites, for want of a server or a right is listed as skipped at the end. When
# the environment sets CI, a skip fails.
#
#   ./test.sh             every step, in this order:
#     commits             subjects of commits: `area: Imperative summary`, at most 72 characters
#     fmt                 formatting
#     clippy              lints; a warning fails
#     sqlite              the suite on SQLite
#     postgres            the suite on PostgreSQL
#     doc                 documentation: builds without a warning, its examples run
#     deny                dependencies: licences, bans, sources, and advisories when their database can be had
#     audit               the GraphQL-over-HTTP audit, against a running server
#     differential        random operations, compared with graphql-js, against a running server
#     clients             graphql-ws, graphql-sse and Apollo Client, against a running server
#     traces              a running server sends its traces to a collector of OpenTelemetry
#   ./test.sh STEP...     these steps
#   ./test.sh --fast      commits fmt clippy sqlite

cd "$(dirname "${BASH_SOURCE[0]}")" || exit
case ${1-} in
-h | --help)
    sed -n '3,/^$/s/^# \{0,1\}//p' test.sh
    exit
    ;;
--fast) set -- commits fmt clippy sqlite ;;
'') set -- commits fmt clippy sqlite postgres doc deny audit differential clients traces ;;
esac
source tests/servers.sh

# Cargo installs its programs here, whether or not the path of the caller knows the folder.
PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin
type -P cargo >/dev/null || die "cargo is missing; please install Rust: https://rustup.rs"
program=${CARGO_TARGET_DIR:-target}/debug/gathering
cargo_deny=0.20.2
# A collector as one program, from the Python package index.
rotel=0.0.1a15

# Older commits have subjects of another form.
first_checked=2026-11-30T00:00:00Z

step_commits() {
    local subjects
    if ! subjects=$(git log --no-merges --since="$first_checked" --format=%s 2>/dev/null); then
        note='no history'
        return 0
    fi
    awk 'length > 72 || !/^[a-z][a-z0-9_.\/-]*: [A-Z]/ { print "wrong form: " $0; wrong = 1 } END { exit wrong }' \
        <<<"${subjects:-none: None}"
}

step_fmt() { run cargo fmt --all --check; }

step_clippy() { run cargo clippy --locked --workspace --all-targets -- -D warnings; }

# `keep FILE COMMAND...`: runs the command, and adds what it prints to the file as well.
keep() { run bash -o pipefail -c '"${@:2}" 2>&1 | tee -a "$1"' - "$scratch/$1" "${@:2}"; }

# Tests add themselves to the file that GATHERING_TEST_SKIPPED names when they cannot run.
suite() {
    if [[ -z ${redis_url-} ]]; then start_redis; fi
    true >"$scratch/skipped-$step"
    keep tests env GATHERING_TEST_REDIS_URL="$redis_url" GATHERING_TEST_SKIPPED="$scratch/skipped-$step" "$@" \
        cargo test --locked --workspace --tests
}

step_sqlite() { suite; }

step_postgres() {
    start_postgres -c max_connections=300
    suite GATHERING_TEST_DATABASE_URL="$postgres_url"
}

step_doc() {
    run env RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps &&
        keep tests cargo test --locked --workspace --doc
}

step_deny() {
    if ! cargo deny --version >/dev/null 2>&1; then
        run cargo install --locked "cargo-deny@$cargo_deny" || return
    fi
    local checks=(licenses bans sources)
    if run cargo deny fetch db >"$scratch/advisories" 2>&1; then
        checks+=(advisories)
    else
        note='without advisories: their database cannot be reached'
    fi
    run cargo deny --locked check --hide-inclusion-graph "${checks[@]}"
}

needs_node() {
    if type -P node npm >/dev/null; then return; fi
    note='skipped: Node is missing'
    echo "$step: Node is missing" >>"$scratch/left-out"
    return 1
}

# Prints each test that was skipped in all suites, and each step that was left out, with the reason.
skipped() {
    local file files=("$scratch"/skipped-*)
    if [[ -e ${files[0]} ]]; then
        for file in "${files[@]}"; do awk -F': ' '!seen[$1]++' "$file"; done
    fi | awk -F': ' -v suites=${#files[@]} '
        { times[$1]++; line[$1] = $0 }
        END { for (name in times) if (times[name] == suites) print line[name] }' | sort
    if [[ -e $scratch/left-out ]]; then cat "$scratch/left-out"; fi
}

step_audit() {
    needs_node || return 0
    run npm --prefix tests/audit ci --no-audit --no-fund &&
        run cargo test --locked --workspace --tests --no-run || return
    start_gathering "$program" demo || return
    local status=0
    keep audit node tests/audit/audit.mjs "$gathering_url/graphql" || status=$?
    note=$(tail -n 1 "$scratch/audit")
    return "$status"
}

# Raises the limits of the server, because graphql-js has none. DIFFERENTIAL_SEED and DIFFERENTIAL_COUNT set the seed and
# the number of operations.
step_differential() {
    needs_node || return 0
    run npm --prefix tests/differential ci --no-audit --no-fund &&
        run cargo test --locked --workspace --tests --no-run || return
    # The events of the demo data are older than the default retention.
    local bounds=(GATHERING__LIMITS__MODE=off GATHERING__LIMITS__COST=0 GATHERING__EVENTS__RETENTION=87600h)
    local -A raised=([COMPLEXITY]=10000000 [ALIASES]=10000 [TOKENS]=100000 [DEPTH]=100 [ROOT_FIELDS]=1000)
    for bound in "${!raised[@]}"; do bounds+=("GATHERING__GRAPHQL__$bound=${raised[$bound]}"); done
    start_gathering env "${bounds[@]}" "$program" demo || return
    local token status=0
    token=$(sed -n 's/^token: //p' "$scratch/gathering.log")
    keep differential node tests/differential/differential.mjs "$gathering_url/graphql" "$token" \
        --seed "${DIFFERENTIAL_SEED:-1}" --count "${DIFFERENTIAL_COUNT:-4000}" || status=$?
    note=$(tail -n 1 "$scratch/differential")
    return "$status"
}

step_clients() {
    needs_node || return 0
    run npm --prefix tests/clients ci --no-audit --no-fund &&
        run cargo test --locked --workspace --tests --no-run || return
    start_gathering "$program" demo || return
    local token
    token=$(sed -n 's/^token: //p' "$scratch/gathering.log")
    run node tests/clients/clients.mjs "$gathering_url/graphql" "$token" "$program"
}

step_traces() {
    install_missing curl curl
    if ! run python3 -m venv "$scratch/python" >"$scratch/python.log" 2>&1 ||
        ! run "$scratch/python/bin/pip" install --quiet --disable-pip-version-check "rotel==$rotel" >>"$scratch/python.log" 2>&1; then
        note='left out: the collector cannot be installed'
        return 0
    fi
    run cargo test --locked --workspace --tests --no-run || return
    local agents=("$scratch"/python/lib/python*/site-packages/rotel/rotel-agent)
    local log=$scratch/collector.log port=$(free_port)
    "${agents[0]}" start --otlp-http-endpoint "127.0.0.1:$port" --otlp-grpc-endpoint "127.0.0.1:$(free_port)" \
        --exporter blackhole --debug-log traces --debug-log-verbosity detailed >"$log" 2>&1 </dev/null &
    started+=("$!")
    for ((tenths = 0; tenths < 100; tenths++)); do
        if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then break; fi
        sleep 0.1
    done
    start_gathering env "GATHERING__TRACE__ENDPOINT=http://127.0.0.1:$port" GATHERING__TRACE__SAMPLE=1.0 \
        "$program" demo || return
    local token answer trace=4bf92f3577b34da6a3ce929d0e0e4736 parent=00f067aa0ba902b7
    token=$(sed -n 's/^token: //p' "$scratch/gathering.log")
    answer=$(curl --silent --fail "$gathering_url/graphql" -H "Authorization: Bearer $token" \
        -H 'Content-Type: application/json' -H "traceparent: 00-$trace-$parent-01" \
        -d '{"query":"query Team { circles(first: 2) { nodes { name members { nodes { name } } } } }"}')
    # The server sends its last spans before it ends.
    end "$gathering_pid" INT
    local wanted
    for wanted in "Trace ID *: $trace" "Parent ID *: $parent" 'Kind *: SPAN_KIND_SERVER' \
        'graphql.operation.name: Str(Team)' 'gathering.batch.keys: Int(2)' 'db.query.text: Str(SELECT'; do
        grep -q "$wanted" "$log" || { echo "the collector has not received: $wanted ($answer)" && cat "$log" && return 1; }
    done
    if grep -qF "$token" "$log"; then echo 'the collector has received a token' && return 1; fi
    note="$(grep -c '^Span #' "$log") spans"
}

failed=()
summary=()
for step; do
    declare -F "step_$step" >/dev/null || die "no such step: $step (see ./test.sh --help)"
done
for step; do
    say "$step"
    note='' SECONDS=0
    if "step_$step"; then verdict=ok; else verdict=FAILED && failed+=("$step"); fi
    summary+=("$(printf '%-12s %-6s %3d:%02d  %s' "$step" "$verdict" $((SECONDS / 60)) $((SECONDS % 60)) "$note")")
done

say summary
printf '%s\n' "${summary[@]}"
skipped=$(skipped)
if [[ $skipped ]]; then
    sed 's/^/skipped: /' <<<"$skipped"
    if [[ ${CI:-false} != false ]]; then failed+=(skipped); fi
fi
if [[ -s $scratch/tests ]]; then
    # A test that skips itself passes.
    awk -v skipped="$(grep -c . <<<"$skipped")" -v passed="-$(cat "$scratch"/skipped-* 2>/dev/null | wc -l)" \
        '/^test result:/ { passed += $4; failed += $6; skipped += $8 }
        END { printf "tests: %d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$scratch/tests"
fi
if ((${#failed[@]})); then
    echo "FAILED: ${failed[*]}"
    exit 1
fi
echo "everything asked for passed: $*"
