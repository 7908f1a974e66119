-- Sends signed GitHub pushes over kept connections, each with a delivery id of its own. Bodies and signatures were made
-- beforehand (one a line: signature, tab, body), so that the sender costs next to nothing. Arguments: file, path, a seed.

local parts = {}
local sent = 0

function init(args)
  local path = args[2]
  math.randomseed(os.time() + tonumber(args[3]))
  run_id = string.format("%08x-%04x-4%03x", math.random(0, 0x7fffffff), math.random(0, 0xffff), math.random(0, 0xfff))
  for line in io.lines(args[1]) do
    local signature, body = line:match("^([^\t]+)\t(.*)$")
    parts[#parts + 1] = {
      "POST " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: GitHub-Hookshot/bench\r\nAccept: */*\r\n"
        .. "Content-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Hook-ID: 412900331\r\n"
        .. "X-GitHub-Hook-Installation-Target-Type: repository\r\nX-GitHub-Delivery: " .. run_id .. "-8",
      "\r\nX-Hub-Signature-256: " .. signature .. "\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body,
    }
  end
end

function request()
  sent = sent + 1
  local part = parts[sent % #parts + 1]
  return part[1] .. string.format("%03x-%012x", sent % 4096, sent) .. part[2]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n{"rate": %.3f, "requests": %d, "p50_ms": %.3f, "p99_ms": %.3f, "refused": %d, "broken": %d}\n',
    summary.requests / (summary.duration / 1e6), summary.requests,
    latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect + errors.read + errors.write + errors.timeout))
end
