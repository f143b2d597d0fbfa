#!/usr/bin/env bash
#
# Whether the time of a failed sign-in tells which e-mail addresses have an account: bench/sign-in.sh
#
# Sends sign-ins with a wrong password for an address with an account and for one without, by turns, one at a
# time, and compares the times in which they are answered. What the failures lock is unlocked again before it
# counts, since a locked account takes another path. The ratio of the medians should be 1, give or take what
# two runs differ by.
#
# BENCH_ROUNDS (200) sets how many of each are sent.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
rounds=${BENCH_ROUNDS:-200}

start_postgres
fill /dev/null
start_gathering env DATABASE_URL="$database_url" GATHERING__AUTH__SIGNING_KEY="$(head -c 32 /dev/urandom | base64)" \
    GATHERING__LIMITS__MODE=off "$program" serve

# `attempt ADDRESS`: prints the time until the answer, in milliseconds.
attempt() {
    local seconds
    printf '{"query":"mutation { login(input: { email: \\"%s\\", password: \\"a wrong one\\" }) { accessToken } }"}' \
        "$1" >"$scratch/request"
    seconds=$(curl --silent --show-error --data-binary "@$scratch/request" --output "$scratch/answer" \
        --header 'Content-Type: application/json' --write-out '%{time_total}' "$gathering_url/graphql")
    grep -q UNAUTHENTICATED "$scratch/answer" || die "not answered as expected: $(head -c 2000 "$scratch/answer")"
    awk -v seconds="$seconds" 'BEGIN { printf "%.3f\n", seconds * 1000 }'
}

unlock() { sql "$database_url" --command='DELETE FROM lockouts'; }

median() { sort -n "$1" | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

addresses=(demo@example.com nobody@example.com)
attempt "${addresses[0]}" >/dev/null # the first one computes what the others are compared with
say "signing in $rounds times to each"
for ((round = 0; round < rounds; round++)); do
    if ((round % 4 == 0)); then unlock; fi
    # Each goes first as often as the other.
    for turn in $((round % 2)) $(((round + 1) % 2)); do
        attempt "${addresses[turn]}" >>"$scratch/times-$turn"
    done
done

say "results"
known=$(median "$scratch/times-0") unknown=$(median "$scratch/times-1")
echo "median with an account:    $known ms"
echo "median without an account: $unknown ms"
awk -v known="$known" -v unknown="$unknown" 'BEGIN { printf "ratio: %.3f\n", known / unknown }'
