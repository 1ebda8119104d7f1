#!/usr/bin/env bash
# InfluxDB 2.x in a container, ready for ScroogeVM.
#
#   misc/influxdb.sh [start]   starts the container; the first start also creates organisation, bucket and token.
#                              Each start creates or updates the coarse bucket and its task, if that bucket is set
#   misc/influxdb.sh stop      stops the container; the data stays
#   misc/influxdb.sh status    shows the state; exit code 0 if the server responds, otherwise 3
#
# Settings come from the environment, otherwise from .env in the working directory:
#
#   INFLUXDB_URL          http://127.0.0.1:8086; its port is published
#   INFLUXDB_ORG          scroogevm
#   INFLUXDB_BUCKET       scroogevm
#   INFLUXDB_TOKEN        default: a random one
#   INFLUXDB_RETENTION_S  2592000 (30 days), at least 3600; used when the bucket is created
#   INFLUXDB_COARSE_BUCKET       default: none; a second bucket with one sample per step of time, and a task that fills it
#   INFLUXDB_COARSE_RETENTION_S  31536000 (365 days), at least 3600; used when that bucket is created
#   STORE_COARSE_STEP_S          300 (5 minutes); length of a step, a divisor of 3600
#   INFLUXDB_LISTEN       127.0.0.1; the address to listen on
#   INFLUXDB_USER         scroogevm, for the web page
#   INFLUXDB_PASSWORD     default: a random one
#   INFLUXDB_IMAGE        influxdb:2.7
#   INFLUXDB_NAME         scroogevm-influxdb, the name of the container and of the volume
#   INFLUXDB_WAIT_S       60; how long to wait for the server
#
# Created values are printed on stdout as lines for .env, all else goes to stderr:  misc/influxdb.sh >>.env
# Docker is used, otherwise podman. Secrets reach InfluxDB over stdin and HTTP: they are on no command line and not in
# the container's configuration.
set -euo pipefail

info() { printf 'influxdb: %s\n' "$*" >&2; }
fail() { info "$2"; exit "$1"; }

# unescape TEXT LETTERS: replace \\, \' and a backslash before one of the letters.
unescape() {
    local text=$1 result='' char
    while [[ $text == *\\* ]]; do
        result+=${text%%\\*}
        text=${text#*\\}
        char=${text:0:1}
        case "\\'$2" in
        *"$char"*)
            text=${text:1}
            [[ $char != [a-z] ]] || printf -v char '%b' "\\$char"
            result+=$char
            ;;
        *) result+=\\ ;;
        esac
    done
    VALUE=$result$text
}

# Fill DOTENV by the rules of python-dotenv without interpolation, which the programs use too. The file is data: nothing
# in it is run. The expressions need extended regular expressions in variables; a quoted value may span lines.
declare -A DOTENV=()
read_dotenv() {
    local text key blanks all line
    local assignment="^(export[[:blank:]]+)?('[^']+'|[^'=#[:space:]][^=#[:space:]]*)[[:blank:]]*=([[:blank:]]*)"
    local name="^(export[[:blank:]]+)?[^'=#[:space:]][^=#[:space:]]*[[:blank:]]*(#|$)"
    local single="^'(([^'\\]|\\\\.)*)'" double='^"(([^"\]|\\.)*)"'
    [ -e .env ] || return 0
    [ -r .env ] || fail 2 ".env: cannot be read"
    text=$(tr -d '\0' <.env)
    text=${text#$'\xef\xbb\xbf'}
    text=${text//$'\r\n'/$'\n'}
    all=$text
    while text=${text#"${text%%[![:space:]]*}"} && [ -n "$text" ]; do
        line=${all%"$text"}
        line=${line//[!$'\n']/}
        if [[ $text =~ $assignment ]]; then
            key=${BASH_REMATCH[2]} blanks=${BASH_REMATCH[3]}
            key=${key#\'}
            key=${key%\'}
            text=${text:${#BASH_REMATCH[0]}}
            if [[ $text =~ $single ]]; then
                text=${text:${#BASH_REMATCH[0]}}
                unescape "${BASH_REMATCH[1]}" ''
            elif [[ $text =~ $double ]]; then
                text=${text:${#BASH_REMATCH[0]}}
                unescape "${BASH_REMATCH[1]}" '"abfnrtv'
            elif [[ $text == [\'\"]* ]]; then
                fail 2 ".env, line $((${#line} + 1)): is no setting such as KEY='value'"
            else
                VALUE=${text%%$'\n'*}
                text=${text:${#VALUE}}
                [[ -z $blanks || $VALUE != \#* ]] || VALUE=''
                VALUE=${VALUE%%[[:space:]]#*}
                VALUE=${VALUE%"${VALUE##*[![:space:]]}"}
            fi
            DOTENV[$key]=$VALUE
        elif [[ $text != \#* && ! ${text%%$'\n'*} =~ $name ]]; then
            fail 2 ".env, line $((${#line} + 1)): is no setting such as KEY='value'"
        else
            text="#$text"
        fi
        [[ ${text%%$'\n'*} =~ ^[[:blank:]]*(#|$) ]] ||
            fail 2 ".env, line $((${#line} + 1)): is no setting such as KEY='value'"
        text=${text#"${text%%$'\n'*}"}
    done
}

# setting NAME DEFAULT: from the environment, otherwise from .env; empty means the default.
setting() {
    local value=${DOTENV[$1]-}
    value=${!1-$value}
    printf '%s' "${value:-$2}"
}

read_settings() {
    read_dotenv
    URL=$(setting INFLUXDB_URL http://127.0.0.1:8086)
    URL=${URL%/}
    ORG=$(setting INFLUXDB_ORG scroogevm)
    BUCKET=$(setting INFLUXDB_BUCKET scroogevm)
    TOKEN=$(setting INFLUXDB_TOKEN '')
    RETENTION_S=$(setting INFLUXDB_RETENTION_S 2592000)
    COARSE_BUCKET=$(setting INFLUXDB_COARSE_BUCKET '')
    COARSE_RETENTION_S=$(setting INFLUXDB_COARSE_RETENTION_S 31536000)
    STEP_S=$(setting STORE_COARSE_STEP_S 300)
    LISTEN=$(setting INFLUXDB_LISTEN '')
    ADMIN=$(setting INFLUXDB_USER scroogevm)
    PASSWORD=$(setting INFLUXDB_PASSWORD '')
    IMAGE=$(setting INFLUXDB_IMAGE influxdb:2.7)
    NAME=$(setting INFLUXDB_NAME scroogevm-influxdb)
    WAIT_S=$(setting INFLUXDB_WAIT_S 60)

    [[ $URL =~ ^http://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})$ ]] ||
        fail 2 "INFLUXDB_URL: '$URL' is not like http://127.0.0.1:8086; the container serves plain HTTP"
    local host=${BASH_REMATCH[1]}
    PORT=${BASH_REMATCH[2]}
    if [ -z "$LISTEN" ]; then
        case $host in 127.*.*.* | localhost | '[::1]') ;; *)
            fail 2 "INFLUXDB_URL: $host is not the loopback of this machine; to allow access from others, set INFLUXDB_LISTEN"
            ;;
        esac
        LISTEN=127.0.0.1
        [ "$host" != '[::1]' ] || LISTEN=$host
    fi
    [[ $RETENTION_S =~ ^[0-9]{1,12}$ ]] && [ "$((10#$RETENTION_S))" -ge 3600 ] ||
        fail 2 "INFLUXDB_RETENTION_S: '$RETENTION_S' is not a whole number of seconds of at least 3600 (one hour)"
    RETENTION_S=$((10#$RETENTION_S))
    [[ $COARSE_RETENTION_S =~ ^[0-9]{1,12}$ ]] && [ "$((10#$COARSE_RETENTION_S))" -ge 3600 ] ||
        fail 2 "INFLUXDB_COARSE_RETENTION_S: '$COARSE_RETENTION_S' is not a whole number of seconds of at least 3600 (one hour)"
    COARSE_RETENTION_S=$((10#$COARSE_RETENTION_S))
    if [ -n "$COARSE_BUCKET" ]; then
        [ "$COARSE_BUCKET" != "$BUCKET" ] || fail 2 "INFLUXDB_COARSE_BUCKET: is INFLUXDB_BUCKET"
        [[ $STEP_S =~ ^[0-9]{1,4}$ ]] && [ "$((10#$STEP_S))" -gt 0 ] && [ "$((3600 % 10#$STEP_S))" -eq 0 ] ||
            fail 2 "STORE_COARSE_STEP_S: '$STEP_S' is not a number of seconds that divides an hour"
        STEP_S=$((10#$STEP_S))
    fi
    [[ $WAIT_S =~ ^[0-9]{1,5}$ ]] || fail 2 "INFLUXDB_WAIT_S: '$WAIT_S' is not a whole number of seconds"
    WAIT_S=$((10#$WAIT_S))
    [[ $TOKEN =~ ^[A-Za-z0-9._~+/=-]*$ ]] || fail 2 "INFLUXDB_TOKEN: only letters, digits and ._~+/=- are allowed"
    [ -z "$PASSWORD" ] || { [ ${#PASSWORD} -ge 8 ] && [ ${#PASSWORD} -le 72 ]; } ||
        fail 2 "INFLUXDB_PASSWORD: InfluxDB needs 8 to 72 characters"
    [[ "$ORG$BUCKET$COARSE_BUCKET$ADMIN$PASSWORD" != *[[:cntrl:]]* ]] ||
        fail 2 "INFLUXDB_ORG, _BUCKET, _COARSE_BUCKET, _USER and _PASSWORD: control characters are not allowed"
    [[ "$ORG$BUCKET$COARSE_BUCKET" != *\'* ]] ||
        fail 2 "INFLUXDB_ORG, _BUCKET and _COARSE_BUCKET: apostrophes are not allowed"
}

# The first engine that responds; one that is installed and does not respond is reported.
find_engine() {
    local failed=''
    for ENGINE in docker podman; do
        command -v "$ENGINE" >/dev/null || continue
        ! timeout 20 "$ENGINE" ps >/dev/null 2>&1 || return 0
        failed+="${failed:+ and }$ENGINE"
    done
    [ -z "$failed" ] || fail 1 "$failed is installed but does not respond (is it running, and may you use it?)"
    fail 1 "please install docker or podman"
}

# running, stopped or absent
container_state() {
    case $("$ENGINE" container inspect --format '{{.State.Running}}' "$NAME" 2>/dev/null || true) in
    true) echo running ;;
    false) echo stopped ;;
    *) echo absent ;;
    esac
}

healthy() { curl --silent --fail --max-time 2 --noproxy '*' "$URL/health" >/dev/null; }

wait_until_healthy() {
    local end=$((SECONDS + WAIT_S))
    until healthy; do
        [ "$(container_state)" = running ] || fail 1 "$NAME stopped at once; see: $ENGINE logs $NAME"
        [ $SECONDS -lt $end ] || fail 1 "$URL does not respond after $WAIT_S s; see: $ENGINE logs $NAME"
        sleep 0.5
    done
}

# call METHOD PATH [CURL OPTION...]: the body of the response, then a line with its status. A POST sends stdin.
call() {
    local method=$1 path=$2
    shift 2
    curl --silent --show-error --max-time 30 --noproxy '*' --request "$method" --write-out '\n%{http_code}' "$@" \
        "$URL$path" || fail 1 "$URL$path: no response"
}

# With the token, which curl reads from a pipe.
authorized_call() { call "$@" --config <(printf 'header = "Authorization: Token %s"\n' "$TOKEN"); }

# A JSON string of a text without control characters.
quoted() {
    local text=${1//\\/\\\\}
    printf '"%s"' "${text//\"/\\\"}"
}

encoded() {
    local LC_ALL=C text=$1 i char
    for ((i = 0; i < ${#text}; i++)); do
        char=${text:i:1}
        case $char in [A-Za-z0-9.~_-]) printf '%s' "$char" ;; *) printf '%%%02X' "'$char" ;; esac
    done
}

secret() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=\n'; }

# The message of a response that reports an error.
message() { grep -oE '"message": *"[^}]*' <<<"$1" | head -n 1 || true; }

set_up() {
    local response body new_token='' new_password=''
    [ -n "$TOKEN" ] || { TOKEN=$(secret) && new_token=yes; }
    [ -n "$PASSWORD" ] || { PASSWORD=$(secret) && new_password=yes; }
    printf -v body '{"username":%s,"password":%s,"org":%s,"bucket":%s,"retentionPeriodSeconds":%d,"token":%s}' \
        "$(quoted "$ADMIN")" "$(quoted "$PASSWORD")" "$(quoted "$ORG")" "$(quoted "$BUCKET")" "$RETENTION_S" \
        "$(quoted "$TOKEN")"
    response=$(printf '%s' "$body" | call POST /api/v2/setup --header 'Content-Type: application/json' --data-binary @-)
    [ "${response##*$'\n'}" = 201 ] || fail 1 "set-up refused: $(message "$response")"
    info "set up: organisation $ORG, bucket $BUCKET, kept for $RETENTION_S s"
    if [ -n "$new_token" ]; then
        info "lines for .env:"
        printf 'INFLUXDB_URL=%s\nINFLUXDB_TOKEN=%s\nINFLUXDB_ORG=%s\nINFLUXDB_BUCKET=%s\nINFLUXDB_RETENTION_S=%s\n' \
            "$URL" "$TOKEN" "$(for_dotenv "$ORG")" "$(for_dotenv "$BUCKET")" "$RETENTION_S"
    fi
    # The programs need no password, only the web page does.
    [ -z "$new_password" ] || printf '# web page: user %s, password %s\n' "$ADMIN" "$PASSWORD"
}

for_dotenv() {
    if [[ $1 =~ ^[A-Za-z0-9._-]+$ ]]; then printf '%s' "$1"; else printf "'%s'" "${1//\\/\\\\}"; fi
}

# Compare the settings with a server that is set up already.
check() {
    local response retention_s
    [ -n "$TOKEN" ] || fail 1 "InfluxDB is set up already; INFLUXDB_TOKEN is missing (it was printed by the set-up)"
    response=$(authorized_call GET "/api/v2/buckets?org=$(encoded "$ORG")&name=$(encoded "$BUCKET")")
    case ${response##*$'\n'} in
    401 | 403) fail 1 "InfluxDB rejects INFLUXDB_TOKEN" ;;
    200)
        retention_s=$(grep -oE '"everySeconds": *[0-9]+' <<<"$response" | grep -oE '[0-9]+' | head -n 1 || true)
        if grep -qE '"buckets": *\[ *\]' <<<"$response"; then
            fail 1 "there is no bucket $BUCKET in organisation $ORG"
        elif [ "${retention_s:-0}" != "$RETENTION_S" ]; then
            info "bucket $BUCKET keeps its data for ${retention_s:-0} s (0 = forever), not INFLUXDB_RETENTION_S=$RETENTION_S"
        fi
        ;;
    *) fail 1 "organisation $ORG, bucket $BUCKET: $(message "$response")" ;;
    esac
}

# A Flux string of a text without control characters.
flux_quoted() {
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '"%s"' "${text//\$\{/\\\$\{}"
}

# The task that thins the samples of the bucket into the coarse one, by the rule of model/store/thinning.py. A run takes
# the two hours after the last step that is in the coarse bucket, and the two hours before it again: a run that failed
# may have written a part of them. Each sample has the last millisecond of its step as its time, so that it replaces the
# one of an earlier run. A step waits until samples that were delayed by an outage have come: a quarter of the retention,
# at most a day.
thinning_task() {
    local age_s=$((RETENTION_S / 4)) largest sums others machines
    [ $age_s -le 86400 ] || age_s=86400
    [ $age_s -ge "$STEP_S" ] || age_s=$STEP_S
    # The server aggregates while it reads, as long as a filter is nothing but comparisons.
    largest='(r._field == "cpu_usage" or r._field == "mem_usage" or r._field == "cpu_wait" or
        r._field == "cpu_wait_share" or r._field == "psi_cpu" or r._field == "psi_memory" or r._field == "swap_in")'
    sums='(r._field == "elapsed_time" or r._field == "oom_kills")'
    others='r._field != "cpu_usage" and r._field != "mem_usage" and r._field != "cpu_wait" and
        r._field != "cpu_wait_share" and r._field != "psi_cpu" and r._field != "psi_memory" and
        r._field != "swap_in" and r._field != "elapsed_time" and r._field != "oom_kills" and r._field != "vm_number"'
    machines='(r._measurement == "node" or r._measurement == "domain")'
    cat <<FLUX
import "date"

option task = {name: $(flux_quoted "thin $BUCKET into $COARSE_BUCKET"), every: 1h}

step = ${STEP_S}s
align = (t) => time(v: int(v: t) / int(v: step) * int(v: step))
done = from(bucket: $(flux_quoted "$COARSE_BUCKET"))
    |> range(start: 0)
    |> filter(fn: (r) => r._measurement == "node" and r._field == "samples")
    |> last()
    |> group()
    |> max(column: "_time")
    |> findRecord(fn: (key) => true, idx: 0)
next = from(bucket: $(flux_quoted "$BUCKET"))
    |> range(start: if exists done._time then date.add(d: 1ms, to: done._time) else time(v: 0))
    |> filter(fn: (r) => r._measurement == "node" and r._field != "vm_number")
    |> first()
    |> group()
    |> min(column: "_time")
    |> findRecord(fn: (key) => true, idx: 0)
latest = align(t: date.sub(d: ${age_s}s, from: now()))
begin = if exists next._time then next._time else latest
hours = align(t: date.add(d: 2h, to: begin))
stop = if hours < latest then hours else latest
wanted = align(t: if exists done._time then date.sub(d: 2h, from: done._time) else begin)
start = if wanted < stop then wanted else date.sub(d: step, from: stop)

steps = (tables=<-, fn) =>
    tables
        |> aggregateWindow(every: step, fn: fn, createEmpty: false, timeSrc: "_stop")
        |> timeShift(duration: -1ms)
write = (tables=<-) =>
    tables
        |> to(bucket: $(flux_quoted "$COARSE_BUCKET"), tagColumns: ["domain", "url"])
$(stream "$machines and $largest") |> steps(fn: max) |> write()
$(stream "$machines and $sums") |> steps(fn: sum) |> write()
$(stream 'r._measurement == "node" and (r._field == "cpu" or r._field == "mem")') |>
    filter(fn: (r) => r._value > 0.0) |> steps(fn: min) |> write()
$(stream "r._measurement == \"node\" and r._field != \"cpu\" and r._field != \"mem\" and $others") |>
    steps(fn: last) |> write()
$(stream "r._measurement == \"domain\" and $others") |> steps(fn: last) |> write()
$(stream 'r._measurement == "node" and r._field == "vm_number"') |> steps(fn: last) |> write()
$(stream 'r._measurement == "node" and r._field == "elapsed_time"') |>
    filter(fn: (r) => r._value > 0.0) |> steps(fn: min) |> set(key: "_field", value: "elapsed_min") |> write()
$(stream 'r._measurement == "node" and r._field == "elapsed_time"') |> steps(fn: max) |>
    set(key: "_field", value: "elapsed_max") |> write()
$(stream "$machines and r._field == \"cpu_usage\"") |> filter(fn: (r) => r._value >= 0.0) |>
    steps(fn: count) |> toFloat() |> set(key: "_field", value: "cpu_samples") |> write()
$(stream "$machines and r._field == \"mem_usage\"") |> filter(fn: (r) => r._value >= 0.0) |>
    steps(fn: count) |> toFloat() |> set(key: "_field", value: "mem_samples") |> write()
$(stream 'r._measurement == "node"') |> steps(fn: count) |> toFloat() |>
    group(columns: ["_measurement", "_time", "url"]) |> max() |> set(key: "_field", value: "samples") |> write()
FLUX
}

# stream FILTER: the start of a statement over the period of a run.
stream() {
    printf 'from(bucket: %s) |> range(start: start, stop: stop) |>\n    filter(fn: (r) => %s)' "$(flux_quoted "$BUCKET")" "$1"
}

# Create the coarse bucket and its task, or update the task.
thin_samples() {
    local response org_id id body flux
    [ -n "$TOKEN" ] || fail 1 "INFLUXDB_COARSE_BUCKET: INFLUXDB_TOKEN is missing"
    response=$(authorized_call GET "/api/v2/buckets?org=$(encoded "$ORG")&name=$(encoded "$BUCKET")")
    org_id=$(id_of orgID "$response")
    [ -n "$org_id" ] || fail 1 "organisation $ORG, bucket $BUCKET: $(message "$response")"
    response=$(authorized_call GET "/api/v2/buckets?orgID=$org_id&name=$(encoded "$COARSE_BUCKET")")
    if [ -z "$(id_of orgID "$response")" ]; then
        printf -v body '{"orgID":"%s","name":%s,"retentionRules":[{"type":"expire","everySeconds":%d}]}' \
            "$org_id" "$(quoted "$COARSE_BUCKET")" "$COARSE_RETENTION_S"
        send 201 POST /api/v2/buckets "$body" "bucket $COARSE_BUCKET"
        info "bucket $COARSE_BUCKET made, kept for $COARSE_RETENTION_S s"
    fi
    flux=$(thinning_task)
    response=$(authorized_call GET "/api/v2/tasks?orgID=$org_id&name=$(encoded "thin $BUCKET into $COARSE_BUCKET")")
    [ "${response##*$'\n'}" = 200 ] || fail 1 "tasks: $(message "$response")"
    id=$(grep -oE '"self": *"/api/v2/tasks/[0-9a-f]+"' <<<"$response" | grep -oE '[0-9a-f]{16}' | head -n 1 || true)
    flux=$(quoted "$flux")
    flux=${flux//$'\n'/\\n}
    printf -v body '{"orgID":"%s","status":"active","flux":%s}' "$org_id" "$flux"
    if [ -z "$id" ]; then
        send 201 POST /api/v2/tasks "$body" "task of bucket $COARSE_BUCKET"
    else
        send 200 PATCH "/api/v2/tasks/$id" "$body" "task of bucket $COARSE_BUCKET"
    fi
    info "bucket $COARSE_BUCKET gets one sample per $STEP_S s"
}

# id_of KEY RESPONSE: the first value of a key that is an id.
id_of() { grep -oE "\"$1\": *\"[0-9a-f]{16}\"" <<<"$2" | grep -oE '[0-9a-f]{16}' | head -n 1 || true; }

# send STATUS METHOD PATH BODY SUBJECT: a request that must be answered with a status.
send() {
    local response
    response=$(printf '%s' "$4" | authorized_call "$2" "$3" --header 'Content-Type: application/json' --data-binary @-)
    [ "${response##*$'\n'}" = "$1" ] || fail 1 "$5: $(message "$response")"
}

start() {
    command -v curl >/dev/null || fail 1 "please install curl"
    case $(container_state) in
    running) info "$NAME runs" ;;
    stopped)
        "$ENGINE" start "$NAME" >/dev/null || fail 1 "$NAME could not be started"
        info "$NAME starts again"
        ;;
    absent)
        "$ENGINE" run --detach --name "$NAME" --restart unless-stopped --publish "$LISTEN:$PORT:8086" \
            --volume "$NAME:/var/lib/influxdb2" --env INFLUXD_REPORTING_DISABLED=true "$IMAGE" >/dev/null ||
            fail 1 "$NAME could not be started"
        info "$NAME starts"
        ;;
    esac
    wait_until_healthy
    local response
    response=$(call GET /api/v2/setup)
    if grep -qE '"allowed": *true' <<<"$response"; then set_up; else check; fi
    [ -z "$COARSE_BUCKET" ] || thin_samples
    info "ready at $URL"
}

stop() {
    if [ "$(container_state)" = running ]; then
        "$ENGINE" stop "$NAME" >/dev/null || fail 1 "$NAME could not be stopped"
        info "$NAME stopped; its data stays in volume $NAME"
    else
        info "$NAME does not run"
    fi
}

status() {
    local state
    state=$(container_state)
    [ "$state" = running ] || fail 3 "$NAME is $state"
    healthy || fail 3 "$NAME runs, but $URL does not respond"
    info "$NAME runs and responds at $URL"
}

main() {
    case ${1:-start} in
    start | stop | status) [ $# -le 1 ] || fail 2 "usage: misc/influxdb.sh [start|stop|status]" ;;
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
    *) fail 2 "usage: misc/influxdb.sh [start|stop|status]" ;;
    esac
    read_settings
    find_engine
    "${1:-start}"
}

main "$@"
