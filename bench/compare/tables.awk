# The tables of bench/compare.sh, from lines of: server, workload, connections, the result line of load.lua, processor
# time of the server and of PostgreSQL in microseconds. Fails if requests failed.

function add(column, value) { values[$1, cell, column] = values[$1, cell, column] " " value }

# A ratio and its goal, marked with `!` if it misses the goal.
function show(got, goal, less) {
    if (goal == "") return sprintf("%8.2f %9s", got, "")
    return sprintf("%8.2f %s %s%.1f", got, (less ? got > goal : got < goal) ? "!" : " ", less ? "≤" : "≥", goal)
}

{
    cell = $2 " " $3
    if (!(cell in workload)) { workload[cell] = $2; cells[++count] = cell }
    if (!($1 in known)) { known[$1]; servers[++width] = $1 }
    if ($4) {
        add("rate", $4 / $5); add("p50", $6); add("p95", $7); add("p99", $8)
        add("own", $11 / $4); add("postgres", $12 / $4)
    }
    errors[$1, cell] += $10; failed += $10
}

END {
    print "                                   requests                            errors  CPU per request, µs"
    print "workload  connections server       a second   p50 ms   p95 ms   p99 ms          server  PostgreSQL"
    split("rate p50 p95 p99 own postgres", columns, " ")
    for (i = 1; i <= count; i++)
        for (j = 1; j <= width; j++) {
            c = cells[i]; s = servers[j]
            for (k in columns) value[s, c, columns[k]] = median(values[s, c, columns[k]])
            split(c, part, " ")
            printf "%-9s %11d %-12s %8.0f %8.2f %8.2f %8.2f %7d %7.0f %11.0f\n", j == 1 ? part[1] : "", part[2], s, value[s, c, "rate"],
                value[s, c, "p50"], value[s, c, "p95"], value[s, c, "p99"], errors[s, c], value[s, c, "own"], value[s, c, "postgres"]
        }

    # The goals: requests a second to those of the hand-written server, and to those of the best GraphQL peer.
    split("team 1 4 circles 0.6 2 agent 1 3 typename 0.5 2 create 0.7 - team100 0.8 3", list, " ")
    for (i = 1; i in list; i += 3) {
        goal[list[i] " " connections, "handwritten"] = list[i + 1]
        if (list[i + 2] != "-") goal[list[i] " " connections, "peer"] = list[i + 2]
    }
    print "\nRatios of the server to the others (! misses the goal)"
    print "workload  connections             to axum + sqlx   to the best GraphQL peer"
    for (i = 1; i <= count; i++) {
        c = cells[i]
        line(c, "rate", 0, goal[c, "handwritten"], goal[c, "peer"])
        if (c == "team 1") line(c, "p50", 1, 1.5, 0.5)
    }
    exit failed > 0
}

function line(cell, column, less, hand, peer,    part, j, s, best, own, other) {
    split(cell, part, " ")
    own = value["gathering", cell, column]
    for (j = 1; j <= width; j++) {
        s = servers[j]; other = value[s, cell, column]
        if (s !~ /^(gathering|handwritten)$/ && (best == "" || (less ? other < value[best, cell, column] : other > value[best, cell, column])))
            best = s
    }
    printf "%-9s %11d %-10s %s", part[1], part[2], column == "p50" ? "p50" : "requests/s",
        show(own / value["handwritten", cell, column], hand, less)
    if (best != "") printf "   %s %s", show(own / value[best, cell, column], peer, less), best
    print ""
}
