#!/usr/bin/env bash
#
# Faults under load: bench/scenarios.sh [kill] [stop] [redis] [postgres] [clock] [rolling] [soak]
#
#   kill      Each instance in turn is killed (SIGKILL) and started again.
#   stop      An instance is stopped (SIGSTOP) for 30 seconds and continued.
#   redis     Redis is stopped (SIGSTOP) and continued, then restarted empty.
#   postgres  PostgreSQL is stopped (SIGSTOP) for 12 seconds, then restarted, then crashes and recovers.
#   clock     The clock of an instance is an hour fast, then an hour slow.
#   rolling   Each instance in turn is shut down (SIGTERM) and started again.
#   soak      No fault: a moderate load for an hour (SOAK_MINUTES), with the memory of the instances each minute. Only by
#             name.
#
# Three instances run on a throw-away PostgreSQL and Redis behind HAProxy with the configuration ops/haproxy.cfg. Writers
# send mutations with idempotency keys through the proxy, and repeat a failed one with the same key. Readers receive the
# events over WebSocket and Server-Sent Events, and resume after their last cursor when their connection ends.
#
# The status is 1 if a reader lost an event, received one twice or out of order, if a write was applied twice, if a rate
# limit was exceeded, if a request failed or was refused in `rolling`, or if the memory grew in `soak`.
#
# BENCH_PROGRAM is the path of a server that is already built, BENCH_LOGS a folder for the logs of all processes.
# HAProxy and libfaketime are installed from Debian's packages if they are missing. Needs Node 20 or newer.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
source bench/common.sh
if (($# == 0)); then set -- kill stop redis postgres clock rolling; fi
install_missing node nodejs
install_missing npm npm
install_missing redis-server redis-server
install_missing haproxy haproxy
if [[ " $* " == *' clock '* ]]; then install_missing faketime faketime; fi
run npm --prefix bench/scenarios ci --silent --no-audit --no-fund
ulimit -n "$(ulimit -Hn)"

start_postgres
fill /dev/null
# The scenarios start and stop this PostgreSQL themselves.
end "$postgres_pid" INT

run env SCENARIOS_PROGRAM="$program" SCENARIOS_DATABASE_URL="$database_url" SCENARIOS_POSTGRES="$scratch/postgres" \
    SCENARIOS_LOGS="${BENCH_LOGS:-$scratch}" node bench/scenarios/main.mjs "$@"
