#!/usr/bin/env bash
# All of ScroogeVM at work on this machine, on workers that never existed; about a minute, no server, and no root once
# python3-venv is there. The first time it makes the virtual environment, which takes some minutes.
#
#   misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb]
#
#   --seconds N     how long the figures are watched (default 60, at least 10)
#   --keep FOLDER   work there and leave everything; without it a temporary folder is used, and removed
#   --influxdb      keep the samples in InfluxDB: in that of INFLUXDB_URL, _TOKEN, _ORG and _BUCKET if they are set,
#                   else in one that is started for the demo, by influxd or else by misc/influxdb.sh
#
# Whatever it starts listens on the loopback alone, and is stopped at the end, on Ctrl-C and on any failure.
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$HERE/.venv/bin/python
SLICE_S=3
SECONDS_SHOWN=60 KEEP='' INFLUXDB=''
FOLDER='' CONTAINER=''
PIDS=() NAMES=()

say() { printf '%s\n' "$*"; }
headline() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$2" >&2; exit "$1"; }
usage() { fail 2 "$1 (usage: misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb])"; }

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        --influxdb) INFLUXDB=yes ;;
        --seconds=* | --keep=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}"
            continue
            ;;
        --seconds | --keep)
            [ $# -ge 2 ] && [ -n "$2" ] || usage "$1 needs a value"
            if [ "$1" = --keep ]; then KEEP=$2; else SECONDS_SHOWN=$2; fi
            shift
            ;;
        *) usage "unknown: $1" ;;
        esac
        shift
    done
    [[ $SECONDS_SHOWN =~ ^[0-9]{1,5}$ ]] && [ "$((10#$SECONDS_SHOWN))" -ge 10 ] ||
        usage "--seconds: '$SECONDS_SHOWN' is not a whole number of at least 10"
    SECONDS_SHOWN=$((10#$SECONDS_SHOWN))
    [ -z "$KEEP" ] || [ ! -e "$KEEP" ] || usage "--keep: $KEEP exists already"
}

# --- processes ----------------------------------------------------------------------------------------

# launch COMMAND...: in a session of its own, so that Ctrl-C reaches this script alone; it ends with the script whatever
# happens to that. Its pid is in $!.
launch() { setpriv --pdeathsig TERM -- setsid "$@" & }

# start NAME COMMAND...: a daemon that runs until the end; what it says is in NAME.log.
start() {
    local name=$1
    shift
    launch "$@" >"$name.log" 2>&1
    PIDS+=($!) NAMES+=("$name")
    say "  $name runs (pid $!)"
}

# step COMMAND...: run it to its end; unlike a plain command it can be interrupted.
step() {
    launch "$@"
    local pid=$! code=0
    PIDS+=("$pid") NAMES+=("$1")
    wait "$pid" || code=$?
    unset 'PIDS[-1]' 'NAMES[-1]'
    return "$code"
}

python() { step "$PYTHON" "$@"; }

all_run() {
    local i
    for i in "${!PIDS[@]}"; do
        kill -0 "${PIDS[i]}" 2>/dev/null || {
            tail -n 5 "${NAMES[i]}.log" >&2
            fail 1 "${NAMES[i]} has ended; above is what it said last"
        }
    done
}

# until_true SECONDS WHAT COMMAND...: wait until the command succeeds.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        all_run
        [ $SECONDS -lt "$end" ] || fail 1 "$what: not within $1 s"
        sleep 0.2
    done
}

# Whether one of the processes of ours is left: those that we started, and what they started.
left() {
    local i
    for i in "${!PIDS[@]}"; do
        if kill -0 -- "-${PIDS[i]}" 2>/dev/null || kill -0 "${PIDS[i]}" 2>/dev/null; then return 0; fi
    done
    return 1
}

stop_all() {
    local i end=$((SECONDS + 15))
    # Who writes is stopped before who is written to.
    for ((i = ${#PIDS[@]} - 1; i >= 0; i--)); do
        kill -TERM -- "-${PIDS[i]}" 2>/dev/null || kill -TERM "${PIDS[i]}" 2>/dev/null || true
    done
    while left && [ $SECONDS -lt $end ]; do sleep 0.1; done
    for i in "${!PIDS[@]}"; do kill -KILL -- "-${PIDS[i]}" 2>/dev/null || true; done
    PIDS=() NAMES=()
    if [ -n "$CONTAINER" ]; then
        for engine in docker podman; do
            "$engine" rm --force "$CONTAINER" >/dev/null 2>&1 && "$engine" volume rm "$CONTAINER" >/dev/null 2>&1 || true
        done
    fi
}

# On every way out, once; a second signal does not disturb it.
at_end() {
    local code=$?
    trap '' INT TERM HUP
    trap - EXIT
    stop_all 2>/dev/null
    cd /
    if [ -z "$KEEP" ] && [ -n "$FOLDER" ]; then rm -rf "$FOLDER"; fi
    exit "$code"
}

# --- what is started ----------------------------------------------------------------------------------

set_up_python() {
    step "$HERE/misc/setup.sh" live || fail 1 "the Python packages could not be installed; misc/setup.sh said why"
    BALLOONING=yes
    if ! "$PYTHON" -c 'import libvirt' 2>/dev/null; then
        say "the ballooning daemon needs libvirt-python, which is compiled; where that can't be, the demo goes on without"
        step "$HERE/misc/setup.sh" all || BALLOONING=''
    fi
}

make_folder() {
    if [ -n "$KEEP" ]; then
        mkdir -p -- "$KEEP" 2>/dev/null || usage "--keep: $KEEP can't be made"
        FOLDER=$(cd -- "$KEEP" && pwd)
    else
        FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/scroogevm-demo.XXXXXX")
    fi
    cd "$FOLDER"
}

# No setting of a real installation may get in here, nor a proxy on the way to the loopback.
forget_settings() {
    local name
    for name in "${!AGGREG_@}" "${!SCHED_@}" "${!STATE_@}" "${!STORE_@}" "${!BALLOONING_@}" "${!LIBVIRT_@}" \
        "${!PLACEMENT_@}" "${!METRICS_@}"; do unset "$name"; done
    [ -n "$INFLUXDB" ] || for name in "${!INFLUXDB_@}"; do unset "$name"; done
    export no_proxy='127.0.0.1,localhost' PYTHONUNBUFFERED=1
}

free_ports() {
    "$PYTHON" -c 'import socket, sys
taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(one.getsockname()[1] for one in taken))' "$1"
}

# fetch URL [JSON]: the answer's body.
fetch() {
    "$PYTHON" -c 'import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
sys.stdout.write(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data), timeout=5).read().decode())' "$@"
}

answers() { fetch "$@" >/dev/null 2>&1; }

start_influxdb() {
    if [ -n "${INFLUXDB_URL:-}" ]; then
        [ -n "${INFLUXDB_TOKEN:-}" ] || fail 2 "--influxdb: INFLUXDB_URL is set, but INFLUXDB_TOKEN is not"
        export INFLUXDB_URL INFLUXDB_TOKEN INFLUXDB_ORG=${INFLUXDB_ORG:-scroogevm} INFLUXDB_BUCKET=${INFLUXDB_BUCKET:-scroogevm}
        say "  InfluxDB at $INFLUXDB_URL, bucket $INFLUXDB_BUCKET, is used"
        return
    fi
    local port
    port=$(free_ports 1)
    export INFLUXDB_URL=http://127.0.0.1:$port INFLUXDB_ORG=scroogevm INFLUXDB_BUCKET=scroogevm INFLUXDB_TOKEN
    if command -v influxd >/dev/null; then
        INFLUXDB_TOKEN=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
        start influxd influxd run --reporting-disabled --http-bind-address "127.0.0.1:$port" --log-level error \
            --bolt-path "$FOLDER/influxd/bolt" --engine-path "$FOLDER/influxd/engine" --sqlite-path "$FOLDER/influxd/sqlite"
        until_true 60 "InfluxDB answers" answers "$INFLUXDB_URL/health"
        fetch "$INFLUXDB_URL/api/v2/setup" "{\"username\": \"demo\", \"password\": \"$INFLUXDB_TOKEN\",
            \"org\": \"$INFLUXDB_ORG\", \"bucket\": \"$INFLUXDB_BUCKET\", \"token\": \"$INFLUXDB_TOKEN\"}" >/dev/null
        return
    fi
    # The script makes the token, and prints it.
    unset INFLUXDB_TOKEN
    CONTAINER=scroogevm-demo-$$
    INFLUXDB_NAME=$CONTAINER step "$HERE/misc/influxdb.sh" start >influxdb.env 2>influxdb.log || {
        local why
        why=$(tail -n 1 influxdb.log)
        fail 2 "--influxdb: none can be had: INFLUXDB_URL is not set, influxd is not on PATH, and misc/influxdb.sh says: ${why#influxdb: }"
    }
    INFLUXDB_TOKEN=$(sed -n 's/^INFLUXDB_TOKEN=//p' influxdb.env)
    export INFLUXDB_TOKEN
    say "  InfluxDB runs in the container $CONTAINER"
}

workers_told() { [ "$(wc -l <fakeworkers.log)" -ge 2 ]; }

start_workers() {
    start fakeworkers "$PYTHON" "$HERE/misc/fakeworkers" --workers 3 --vms 8 --port 0 --format labels \
        --dialect tinkoff --stats-period 1 --print-stubs
    until_true 30 "the simulated workers answer" workers_told
    # With names that leave room for the rest of a table.
    STUBS=$(sed -nE '2s,"node": "[^"]*-0000([0-9])/node","node": "http://node\1",gp' fakeworkers.log)
    BASE=$(grep -oE 'http://[0-9.]+:[0-9]+' <<<"$STUBS" | head -n 1)
    NODE=http://node0
}

write_settings() {
    local ports
    read -ra ports <<<"$(free_ports 3)"
    cat >.env <<END
# What the demo runs with; dotenv explains each setting.
AGGREG_STUB_LIST='$STUBS'
AGGREG_FETCH_DELAY=0.5
AGGREG_METRICS_PORT=${ports[0]}
SCHED_SCOPE_S=$((2 * SLICE_S))
SCHED_SCOPE_SLICE_S=$SLICE_S
SCHED_SCOPE_HISTORICAL=1
SCHED_SCOPE_INIT_FETCH_PREVIOUS=0
SCHED_SETTLE_S=0.5
SCHED_METRICS_PORT=${ports[1]}
STATE_ENDPOINT=$FOLDER/status.json
LIBVIRT_NODES='{"$NODE": "test:///default"}'
BALLOONING_SCOPE_SLEEP_S=5
BALLOONING_STATS_AGE_S=3
BALLOONING_METRICS_PORT=${ports[2]}
END
    ENDPOINTS=("vmaggreg ${ports[0]}" "scroogevm ${ports[1]}")
    [ -z "$BALLOONING" ] || ENDPOINTS+=("vmballooning ${ports[2]}")
}

check_settings() {
    python "$HERE/vmaggreg.py" --check >check.log 2>&1 || {
        cat check.log >&2
        [ -z "$INFLUXDB" ] || fail 2 "--influxdb: InfluxDB at $INFLUXDB_URL can't be used; the table above says why"
        fail 1 "a worker or the store does not answer; the table above says which"
    }
    sed 's/ *$//' check.log
}

# --- what is shown ------------------------------------------------------------------------------------

# redraw TEXT: on a terminal in place of what it drew before.
LINES_SHOWN=0
redraw() {
    local text=$1
    if [ -n "$TERMINAL" ]; then
        [ "$LINES_SHOWN" -eq 0 ] || printf '\033[%dA\033[J' "$LINES_SHOWN"
        LINES_SHOWN=$(wc -l <<<"$text")
    fi
    printf '%s\n' "$text"
}

status_table() {
    if [ -n "$TERMINAL" ]; then
        FORCE_COLOR=1 COLUMNS=$(tput cols) "$PYTHON" "$HERE/scroogevm.py" --status
    else
        "$PYTHON" "$HERE/scroogevm.py" --status | sed 's/ *$//'
    fi
}

# Whether both figures of all nodes are there.
estimated() { [ "$(grep -oE '"state": *"ok"' status.json 2>/dev/null | wc -l)" -eq 9 ]; }

watch_figures() {
    local begun=$SECONDS passed=0 silent='' words='' every=4
    [ -z "$TERMINAL" ] || every=1
    while :; do
        all_run
        passed=$((SECONDS - begun))
        [ "$passed" -lt "$SECONDS_SHOWN" ] || break
        # In the middle a worker is silent for three slices.
        if [ -z "$silent" ] && [ "$SECONDS_SHOWN" -ge 30 ] && [ "$passed" -ge $((SECONDS_SHOWN * 2 / 5)) ]; then
            silent=$passed
            answers "$BASE/control" "{\"worker\": 1, \"fault\": \"500\", \"seconds\": $((3 * SLICE_S))}" || true
        fi
        words="$passed of $SECONDS_SHOWN s"
        if [ -n "$silent" ] && [ $((passed - silent)) -le $((4 * SLICE_S)) ]; then
            words+="; node1 was made to fall silent: after a slice without a word it is stale, and the others go on"
        fi
        redraw "[$words]
$(status_table)"
        pause "$every"
    done
}

# A sleep that a signal ends.
pause() { step sleep "$1"; }

show_results() {
    local entry name port count
    headline "The status file, which a scheduler reads: its first node"
    "$PYTHON" -c 'import json
name, node = next(iter(json.load(open("status.json")).items()))
print(json.dumps({name: node}, indent=2))'

    headline "Metrics for Prometheus: the first lines of each endpoint"
    for entry in "${ENDPOINTS[@]}"; do
        read -r name port <<<"$entry"
        say "$name.py, http://127.0.0.1:$port/metrics"
        fetch "http://127.0.0.1:$port/metrics" | grep -vE '^#|_created' | head -n 4 | sed 's/^/  /' || true
    done

    if [ -n "$BALLOONING" ]; then
        headline "Ballooning, dry run: what would be done with each VM of $NODE"
        until_true 30 "the ballooning plan" test -s vmballooning.log
        say "(its host is played by libvirt's test driver, whose one VM is none of that node: it is left alone)"
        tail -n 1 vmballooning.log
    fi

    headline "What ran is exported as a trace and replayed with every strategy: which one would have served best?"
    python "$HERE/scroogevm.py" --export=trace.json --since="$BEGUN" --url="[\"$NODE\"]"
    python "$HERE/scroogevm.py" --load=trace.json --strategy=all --output=replay --report
    count=$("$PYTHON" -c 'import json; print(len(json.load(open("trace.json"))["epoch"]))')
    say "$count slices of $SLICE_S s are few, and short: on a real node use days of half hours. Memory hardly moves in a minute, and a promise that is broken by a MB counts as broken."
}

main() {
    read_arguments "$@"
    trap at_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    TERMINAL=''
    if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then TERMINAL=yes; fi
    forget_settings
    set_up_python
    make_folder

    headline "ScroogeVM, all of it, on workers that never existed; everything is in $FOLDER"
    [ -z "$INFLUXDB" ] || start_influxdb
    start_workers
    say "  they play node_exporter and libvirt exporter of 3 machines with 8 VMs each, at $BASE"
    write_settings
    check_settings
    start vmaggreg "$PYTHON" "$HERE/vmaggreg.py"
    BEGUN=$(date +%s)
    start scroogevm "$PYTHON" "$HERE/scroogevm.py" --strategy=scroogevm,percentile,nsigma,rclike,borg
    if [ -n "$BALLOONING" ]; then
        start vmballooning "$PYTHON" "$HERE/vmballooning.py" --dry-run
    else
        say "  vmballooning.py is left out: libvirt-python could not be built here"
    fi

    headline "How much of each machine is free, by what its VMs really use; a new figure every $SLICE_S s"
    until_true 60 "the first figures" estimated
    watch_figures
    show_results

    headline "The end"
    stop_all
    say "  everything that was started is stopped"
    if [ -n "$KEEP" ]; then
        say "  in $FOLDER: .env, the store, status.json, the logs, trace.json, replay/report.html"
    else
        say "  and $FOLDER removed; with --keep FOLDER it stays: settings, store, logs, replay/report.html"
    fi
}

main "$@"
