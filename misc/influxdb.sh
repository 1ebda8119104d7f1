#!/usr/bin/env bash
# InfluxDB 2.x in a container, ready for ScroogeVM.
#
#   misc/influxdb.sh [start]   starts it; the first time it also makes the organisation, the bucket and the token
#   misc/influxdb.sh stop      stops it; the data stays
#   misc/influxdb.sh status    says how it is; exit code 0 when it is up, 3 when not
#
# Settings come from the environment, else from .env in the working directory:
#
#   INFLUXDB_URL          http://127.0.0.1:8086; its port is the one that is published
#   INFLUXDB_ORG          scroogevm
#   INFLUXDB_BUCKET       scroogevm
#   INFLUXDB_TOKEN        made when missing
#   INFLUXDB_RETENTION_S  2592000 (30 days), at least 3600; counts when the bucket is made
#   INFLUXDB_LISTEN       127.0.0.1; the address where it listens
#   INFLUXDB_USER         scroogevm, for its web page
#   INFLUXDB_PASSWORD     made when missing
#   INFLUXDB_IMAGE        influxdb:2.7
#   INFLUXDB_NAME         scroogevm-influxdb, the name of the container and of the volume
#   INFLUXDB_WAIT_S       60; how long to wait until it answers
#
# What was made is printed on stdout as lines for .env, all else on stderr:  misc/influxdb.sh >>.env
# Docker is used, else podman. Secrets are told to InfluxDB itself, over stdin and HTTP: they are on no command line,
# and not in what the container engine remembers of the container.
set -euo pipefail

say() { printf 'influxdb: %s\n' "$*" >&2; }
fail() { say "$2"; exit "$1"; }

# A setting: the environment's, else that of .env, else the default. The file is read, never run.
setting() {
    local value=${!1:-} line
    if [ -z "$value" ] && [ -r .env ]; then
        while IFS= read -r line || [ -n "$line" ]; do
            line=${line%$'\r'}
            [[ $line =~ ^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=[[:space:]]*(.*)$ ]] || continue
            value=${BASH_REMATCH[2]}
            if [[ $value =~ ^\'([^\']*)\' || $value =~ ^\"([^\"]*)\" ]]; then
                value=${BASH_REMATCH[1]}
            else
                value=${value%%[[:space:]]#*}
                value=${value%"${value##*[![:space:]]}"}
            fi
        done <.env
    fi
    printf '%s' "${value:-$2}"
}

read_settings() {
    URL=$(setting INFLUXDB_URL http://127.0.0.1:8086)
    URL=${URL%/}
    ORG=$(setting INFLUXDB_ORG scroogevm)
    BUCKET=$(setting INFLUXDB_BUCKET scroogevm)
    TOKEN=$(setting INFLUXDB_TOKEN '')
    RETENTION_S=$(setting INFLUXDB_RETENTION_S 2592000)
    LISTEN=$(setting INFLUXDB_LISTEN '')
    ADMIN=$(setting INFLUXDB_USER scroogevm)
    PASSWORD=$(setting INFLUXDB_PASSWORD '')
    IMAGE=$(setting INFLUXDB_IMAGE influxdb:2.7)
    NAME=$(setting INFLUXDB_NAME scroogevm-influxdb)
    WAIT_S=$(setting INFLUXDB_WAIT_S 60)

    [[ $URL =~ ^http://(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})$ ]] ||
        fail 2 "INFLUXDB_URL: '$URL' is not like http://127.0.0.1:8086; what is started here speaks plain HTTP"
    local host=${BASH_REMATCH[1]}
    PORT=${BASH_REMATCH[2]}
    if [ -z "$LISTEN" ]; then
        case $host in 127.*.*.* | localhost | '[::1]') ;; *)
            fail 2 "INFLUXDB_URL: $host is not this machine's loopback; to be reached from others, set INFLUXDB_LISTEN"
            ;;
        esac
        LISTEN=127.0.0.1
        [ "$host" != '[::1]' ] || LISTEN=$host
    fi
    [[ $RETENTION_S =~ ^[0-9]{1,12}$ ]] && [ "$((10#$RETENTION_S))" -ge 3600 ] ||
        fail 2 "INFLUXDB_RETENTION_S: '$RETENTION_S' is not a whole number of seconds of at least 3600 (one hour)"
    RETENTION_S=$((10#$RETENTION_S))
    [[ $WAIT_S =~ ^[0-9]{1,5}$ ]] || fail 2 "INFLUXDB_WAIT_S: '$WAIT_S' is not a whole number of seconds"
    WAIT_S=$((10#$WAIT_S))
    [[ $TOKEN =~ ^[A-Za-z0-9._~+/=-]*$ ]] || fail 2 "INFLUXDB_TOKEN: only letters, digits and ._~+/=- are possible"
    [ -z "$PASSWORD" ] || { [ ${#PASSWORD} -ge 8 ] && [ ${#PASSWORD} -le 72 ]; } ||
        fail 2 "INFLUXDB_PASSWORD: InfluxDB wants 8 to 72 characters"
    [[ "$ORG$BUCKET$ADMIN$PASSWORD" != *[[:cntrl:]]* ]] ||
        fail 2 "INFLUXDB_ORG, _BUCKET, _USER and _PASSWORD: no control characters"
    [[ "$ORG$BUCKET" != *\'* ]] || fail 2 "INFLUXDB_ORG and _BUCKET: no apostrophes, which .env has no place for"
}

# The first engine that answers. One that is there and silent is worth a word of its own.
find_engine() {
    local silent=''
    for ENGINE in docker podman; do
        command -v "$ENGINE" >/dev/null || continue
        ! timeout 20 "$ENGINE" ps >/dev/null 2>&1 || return 0
        silent+="${silent:+ and }$ENGINE"
    done
    [ -z "$silent" ] || fail 1 "$silent is installed but does not answer (is it running, and may you use it?)"
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
        [ $SECONDS -lt $end ] || fail 1 "$URL does not answer after $WAIT_S s; see: $ENGINE logs $NAME"
        sleep 0.5
    done
}

# call METHOD PATH [CURL OPTION...]: the answer's body, then a line with its status. The body of a POST comes on stdin.
call() {
    local method=$1 path=$2
    shift 2
    curl --silent --show-error --max-time 30 --noproxy '*' --request "$method" --write-out '\n%{http_code}' "$@" \
        "$URL$path" || fail 1 "$URL$path: no answer"
}

# The header with the token as a file of which only curl knows.
as_ourselves() { call "$@" --config <(printf 'header = "Authorization: Token %s"\n' "$TOKEN"); }

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

# What the server says of itself, out of an answer to a request that went wrong.
message() { grep -oE '"message": *"[^}]*' <<<"$1" | head -n 1 || true; }

set_up() {
    local answer body made_token='' made_password=''
    [ -n "$TOKEN" ] || { TOKEN=$(secret) && made_token=yes; }
    [ -n "$PASSWORD" ] || { PASSWORD=$(secret) && made_password=yes; }
    printf -v body '{"username":%s,"password":%s,"org":%s,"bucket":%s,"retentionPeriodSeconds":%d,"token":%s}' \
        "$(quoted "$ADMIN")" "$(quoted "$PASSWORD")" "$(quoted "$ORG")" "$(quoted "$BUCKET")" "$RETENTION_S" \
        "$(quoted "$TOKEN")"
    answer=$(printf '%s' "$body" | call POST /api/v2/setup --header 'Content-Type: application/json' --data-binary @-)
    [ "${answer##*$'\n'}" = 201 ] || fail 1 "set-up refused: $(message "$answer")"
    say "set up: organisation $ORG, bucket $BUCKET, kept for $RETENTION_S s"
    if [ -n "$made_token" ]; then
        say "the lines for .env:"
        printf 'INFLUXDB_URL=%s\nINFLUXDB_TOKEN=%s\nINFLUXDB_ORG=%s\nINFLUXDB_BUCKET=%s\nINFLUXDB_RETENTION_S=%s\n' \
            "$URL" "$TOKEN" "$(for_dotenv "$ORG")" "$(for_dotenv "$BUCKET")" "$RETENTION_S"
    fi
    # The programs need no password; people do, at the web page.
    [ -z "$made_password" ] || printf '# web page: user %s, password %s\n' "$ADMIN" "$PASSWORD"
}

for_dotenv() {
    if [[ $1 =~ ^[A-Za-z0-9._-]+$ ]]; then printf '%s' "$1"; else printf "'%s'" "$1"; fi
}

# It was set up before: is what we were told what it knows?
check() {
    local answer known
    [ -n "$TOKEN" ] || fail 1 "it was set up before; INFLUXDB_TOKEN is missing (it was printed then)"
    answer=$(as_ourselves GET "/api/v2/buckets?org=$(encoded "$ORG")&name=$(encoded "$BUCKET")")
    case ${answer##*$'\n'} in
    401 | 403) fail 1 "it does not know INFLUXDB_TOKEN" ;;
    200)
        known=$(grep -oE '"everySeconds": *[0-9]+' <<<"$answer" | grep -oE '[0-9]+' | head -n 1 || true)
        if grep -qE '"buckets": *\[ *\]' <<<"$answer"; then
            fail 1 "there is no bucket $BUCKET in organisation $ORG"
        elif [ "${known:-0}" != "$RETENTION_S" ]; then
            say "bucket $BUCKET keeps its data for ${known:-0} s (0 = for ever), not INFLUXDB_RETENTION_S=$RETENTION_S"
        fi
        ;;
    *) fail 1 "organisation $ORG, bucket $BUCKET: $(message "$answer")" ;;
    esac
}

start() {
    command -v curl >/dev/null || fail 1 "please install curl"
    case $(container_state) in
    running) say "$NAME runs" ;;
    stopped)
        "$ENGINE" start "$NAME" >/dev/null || fail 1 "$NAME could not be started"
        say "$NAME was stopped, and starts"
        ;;
    absent)
        "$ENGINE" run --detach --name "$NAME" --restart unless-stopped --publish "$LISTEN:$PORT:8086" \
            --volume "$NAME:/var/lib/influxdb2" --env INFLUXD_REPORTING_DISABLED=true "$IMAGE" >/dev/null ||
            fail 1 "$NAME could not be started"
        say "$NAME starts"
        ;;
    esac
    wait_until_healthy
    local answer
    answer=$(call GET /api/v2/setup)
    if grep -qE '"allowed": *true' <<<"$answer"; then set_up; else check; fi
    say "ready at $URL"
}

stop() {
    if [ "$(container_state)" = running ]; then
        "$ENGINE" stop "$NAME" >/dev/null || fail 1 "$NAME could not be stopped"
        say "$NAME stopped; its data stays in volume $NAME"
    else
        say "$NAME does not run"
    fi
}

status() {
    local state
    state=$(container_state)
    [ "$state" = running ] || fail 3 "$NAME is $state"
    healthy || fail 3 "$NAME runs, but $URL does not answer"
    say "$NAME runs, and answers at $URL"
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
