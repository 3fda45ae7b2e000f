#!/bin/sh
# Puts service 1001 of examples/service-management/demo.yaml into a 3scale backend, through
# its internal API: the service, its token, metrics, plans and applications.
#
#   BACKEND=http://localhost:3000 INTERNAL_API=user:password sh seed.sh
#
# It can be run again. Run it before the first request: the backend's listeners remember
# for a minute what they did not find.
set -eu

: "${BACKEND:?the address of the backend listener}"
: "${INTERNAL_API:?user:password of the internal API}"

# METHOD PATH JSON
send() {
  echo "$1 $2"
  # The listener may still be starting.
  curl --silent --show-error --fail --retry 30 --retry-delay 1 --retry-all-errors \
    --user "$INTERNAL_API" --request "$1" --header 'Content-Type: application/json' \
    --data "$3" --output /dev/null "$BACKEND/internal$2"
}

# ID NAME [PARENT_ID]
metric() {
  send PUT "/services/1001/metrics/$1" "{\"metric\": {\"name\": \"$2\", \"parent_id\": ${3:-null}}}"
}

# PLAN METRIC_ID PERIOD MAXIMUM
limit() {
  send PUT "/services/1001/plans/$1/usagelimits/$2/$3" "{\"usagelimit\": {\"$3\": $4}}"
}

# ID PLAN USER_KEY [STATE]
application() {
  send PUT "/services/1001/applications/$1" \
    "{\"application\": {\"state\": \"${4:-active}\", \"plan_id\": \"$2\", \"plan_name\": \"$2\"}}"
  send PUT "/services/1001/applications/$1/key/$3" '{}'
}

# backend_version 1: applications are known by user_key.
send PUT /services/1001 '{"service": {"id": "1001", "provider_key": "demo-provider", "backend_version": "1", "default_service": true, "state": "active"}}'
send POST /service_tokens/ '{"service_tokens": {"demo-token": {"service_id": "1001"}}}'

metric 1 hits
metric 2 orders '"1"'
metric 3 reports '"1"'

limit small 1 minute 5
limit business 1 minute 60
limit business 1 day 1000
limit business 2 minute 10
limit business 2 month 500
limit no-reports 3 eternity 0

application alice unlimited alice-key
application bob small bob-key
application carol unlimited carol-key suspended
application dave business dave-key
application erin no-reports erin-key

echo "seeded"
