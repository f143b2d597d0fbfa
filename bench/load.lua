-- Sends a request over and over, or several requests by turns: the first argument is the file of a request, the second
-- the access token, and further ones are files of further requests. An empty file is a GET. The last line of the output
-- is the result: how many requests in how many seconds, the median, 95th and 99th percentile and maximum of their
-- latency in milliseconds, and how many failed: by connection, by status, or by errors in the answer.

failures = 0 -- global, because `done` reads it from the thread

local load_thread

function setup(thread)
    load_thread = thread
end

function init(args)
    wrk.headers["Content-Type"] = "application/json"
    wrk.headers["Accept"] = "application/graphql-response+json"
    wrk.headers["Authorization"] = "Bearer " .. args[2]
    local bodies, turn = {}, 0
    for i, path in ipairs(args) do
        if i ~= 2 then
            table.insert(bodies, assert(io.open(path)):read("*a"))
        end
    end
    wrk.body = bodies[1]
    wrk.method = wrk.body == "" and "GET" or "POST"
    if #bodies > 1 then -- without this function, wrk does not call Lua for each request
        function request()
            turn = turn % #bodies + 1
            return wrk.format(nil, nil, nil, bodies[turn])
        end
    end
end

function response(status, _, body)
    if status ~= 200 or body:find('"errors":', 1, true) or body:find('"userErrors":[{', 1, true) then
        failures = failures + 1
    end
end

function done(summary, latency)
    local lost = summary.errors
    io.write(string.format("%d %.3f %.3f %.3f %.3f %.3f %d\n",
        summary.requests, summary.duration / 1e6,
        latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3,
        lost.connect + lost.read + lost.write + lost.timeout + load_thread:get("failures")))
end
