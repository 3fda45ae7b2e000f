-- Requests of many applications to many hosts, in turn: application and host are those of
-- a number that takes a step which has no factor in common with powers of ten, so that
-- neighbours in memory are no neighbours in time. Arguments: applications, hosts, start.
function init(arguments)
  keys, hosts = tonumber(arguments[1]), tonumber(arguments[2])
  -- Not more than all of them in turn, and at least as many as keys.
  all = math.max(keys, hosts)
  at = (tonumber(arguments[3]) * 618033) % all
end

function request()
  at = (at + 618033) % all
  return string.format(
    "GET /v1/orders HTTP/1.1\r\nhost: h%d.example.com\r\nx-api-key: k%07d\r\n\r\n",
    at % hosts, at % keys)
end
