-- Sends one request over and over, for whoever has the access token that is given with it. Its last line is
-- the result: how many requests in how many seconds, the median, 95th and 99th percentile and maximum of
-- their latency in milliseconds, and how many failed: by connection, by status, or by GraphQL errors in the
-- answer.

failures = 0 -- global, because `done` reads it from the thread

local load_thread

function setup(thread)
    load_thread = thread
end

function init(args)
    wrk.method = "POST"
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Accept"] = "application/graphql-response+json"
    wrk.headers["Authorization"] = "Bearer " .. args[2]
    wrk.body = assert(io.open(args[1])):read("*a")
end

function response(status, _, body)
    if status ~= 200 or body:find('"errors":', 1, true) then
        failures = failures + 1
    end
end

function done(summary, latency)
    local lost = summary.errors
    io.write(string.format("%d %.3f %.2f %.2f %.2f %.2f %d\n",
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
        lost.connect + lost.read + lost.write + lost.timeout + load_thread:get("failures")))
end
