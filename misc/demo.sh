#!/usr/bin/env bash
# Runs all of ScroogeVM on simulated workers for about a minute. Needs no server, and no root once python3-venv is
# installed. The first run creates the virtual environment, which takes some minutes.
#
#   misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb] [--scheduler]
#
#   --seconds N     how long the figures are shown (default 60, at least 10)
#   --keep FOLDER   work in this new folder and keep it; the default is a temporary folder that is removed
#   --influxdb      store the samples in InfluxDB: the one of INFLUXDB_URL, _TOKEN, _ORG and _BUCKET if these are set,
#                   otherwise one that is started for the demo with influxd or misc/influxdb.sh
#   --scheduler     let a scheduler place VMs on the workers by what is published, a line per slice; with it:
#     --ratio R         compare with this fixed ratio, at which the same arrivals are simulated (default 3)
#     --workload FILE   VMs of a workload file (docs/simulation.md), one of its steps for each scrape; default: drawn VMs
#     --strategy NAME   the strategy that is published (default clt)
#     --no-guards       publish its bare figures
#
# All processes listen on the loopback only. They end with this script, however it ends.
set -euo pipefail

HERE=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=$HERE/.venv/bin/python
SLICE_S=3
SECONDS_SHOWN=60 KEEP='' INFLUXDB=''
SCHEDULER='' RATIO='' WORKLOAD='' STRATEGY='' NO_GUARDS=''
# Slices of a "virtual day" with a scheduler.
DAY_SLICES=24
NODE=http://node0
FOLDER='' CONTAINER=''
# The daemons that have to run until the end.
PIDS=() NAMES=()

info() { printf '%s\n' "$*"; }
headline() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$2" >&2; exit "$1"; }
usage() { fail 2 "$1 (usage: misc/demo.sh [--seconds N] [--keep FOLDER] [--influxdb] [--scheduler])"; }

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
        -h | --help)
            sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
            exit 0
            ;;
        --influxdb) INFLUXDB=yes ;;
        --scheduler) SCHEDULER=yes ;;
        --no-guards) NO_GUARDS=yes ;;
        --seconds=* | --keep=* | --ratio=* | --workload=* | --strategy=*)
            set -- "${1%%=*}" "${1#*=}" "${@:2}"
            continue
            ;;
        --seconds | --keep | --ratio | --workload | --strategy)
            [ $# -ge 2 ] && [ -n "$2" ] || usage "$1 needs a value"
            case $1 in
            --seconds) SECONDS_SHOWN=$2 ;;
            --keep) KEEP=$2 ;;
            --ratio) RATIO=$2 ;;
            --workload) WORKLOAD=$2 ;;
            --strategy) STRATEGY=$2 ;;
            esac
            shift
            ;;
        *) usage "unknown option: $1" ;;
        esac
        shift
    done
    [[ $SECONDS_SHOWN =~ ^[0-9]{1,5}$ ]] && [ "$((10#$SECONDS_SHOWN))" -ge 10 ] ||
        usage "--seconds: '$SECONDS_SHOWN' is not a whole number of at least 10"
    SECONDS_SHOWN=$((10#$SECONDS_SHOWN))
    [ -z "$KEEP" ] || [ ! -e "$KEEP" ] || usage "--keep: $KEEP exists already"
    if [ -z "$SCHEDULER" ]; then
        [ -z "$RATIO$WORKLOAD$STRATEGY$NO_GUARDS" ] ||
            usage "--ratio, --workload, --strategy and --no-guards need --scheduler"
        return
    fi
    [ -n "$RATIO" ] || RATIO=3
    [ -n "$STRATEGY" ] || STRATEGY=clt
    [[ $RATIO =~ ^[0-9]{1,3}(\.[0-9]{1,3})?$ ]] && [[ $RATIO =~ [1-9] ]] || usage "--ratio: '$RATIO' is not a ratio"
    if [ -n "$WORKLOAD" ]; then
        [ -f "$WORKLOAD" ] && [ -r "$WORKLOAD" ] || usage "--workload: $WORKLOAD is not a file that can be read"
        WORKLOAD=$(cd -- "$(dirname -- "$WORKLOAD")" && pwd)/$(basename -- "$WORKLOAD")
    fi
}

# --- processes ----------------------------------------------------------------------------------------

# launch COMMAND...: start a command in the background, in its own session so that Ctrl-C reaches only this script.
# The kernel sends it SIGTERM when this script ends, even by SIGKILL. A script that ends before this is arranged has
# been replaced as the parent by then, so the parent is compared afterwards. The process id is in $!.
launch() {
    # shellcheck disable=SC2016  # the inner shell expands these
    setpriv --pdeathsig TERM -- sh -c '[ "$PPID" = "$1" ] || exit 143; shift; exec setsid "$@"' launch $$ "$@" &
}

# start NAME COMMAND...: start a daemon that runs until the end; its output goes to NAME.log.
start() {
    local name=$1
    shift
    launch "$@" >"$name.log" 2>&1
    PIDS+=($!) NAMES+=("$name")
    info "  $name runs (pid $!)"
}

# step COMMAND...: run a command to its end; unlike a plain foreground command it is interrupted by signals.
step() {
    local code=0
    launch "$@"
    wait $! || code=$?
    return "$code"
}

python() { step "$PYTHON" "$@"; }

check_daemons() {
    local i
    for i in "${!PIDS[@]}"; do
        kill -0 "${PIDS[i]}" 2>/dev/null || {
            tail -n 5 "${NAMES[i]}.log" >&2
            fail 1 "${NAMES[i]} has ended; its last log lines are above"
        }
    done
}

# until_true SECONDS WHAT COMMAND...: wait until the command succeeds.
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        check_daemons
        [ $SECONDS -lt "$end" ] || fail 1 "$what: not within $1 s"
        sleep 0.2
    done
}

# signal_process SIGNAL PID: to a launched process and all that it started, or to it alone until it has its session.
signal_process() { kill "-$1" -- "-$2" 2>/dev/null || kill "-$1" "$2" 2>/dev/null; }

any_runs() {
    local pid
    for pid in "$@"; do
        ! signal_process 0 "$pid" || return 0
    done
    return 1
}

stop_all() {
    local i pids end=$((SECONDS + 15))
    # The list of the shell: a signal can arrive after a start and before the pid is in PIDS.
    read -ra pids <<<"$(jobs -p | tr '\n' ' ')"
    # Stop writers before what they write to.
    for ((i = ${#pids[@]} - 1; i >= 0; i--)); do
        signal_process TERM "${pids[i]}" || true
    done
    while any_runs "${pids[@]}" && [ $SECONDS -lt $end ]; do sleep 0.1; done
    for i in "${!pids[@]}"; do signal_process KILL "${pids[i]}" || true; done
    PIDS=() NAMES=()
    if [ -n "$CONTAINER" ]; then
        for engine in docker podman; do
            "$engine" rm --force "$CONTAINER" >/dev/null 2>&1 && "$engine" volume rm "$CONTAINER" >/dev/null 2>&1 || true
        done
    fi
}

# Runs once, on every way out; further signals are ignored.
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
    step "$HERE/misc/setup.sh" live || fail 1 "the Python packages could not be installed; see above"
    BALLOONING=yes
    if [ -n "$SCHEDULER" ]; then
        BALLOONING=''
    elif ! "$PYTHON" -c 'import libvirt' 2>/dev/null; then
        info "compiling libvirt-python for the ballooning daemon; if that fails, the demo runs without this daemon"
        step "$HERE/misc/setup.sh" all || BALLOONING=''
    fi
}

make_folder() {
    if [ -n "$KEEP" ]; then
        mkdir -p -- "$KEEP" 2>/dev/null || usage "--keep: $KEEP cannot be created"
        FOLDER=$(cd -- "$KEEP" && pwd)
    else
        FOLDER=$(mktemp -d "${TMPDIR:-/tmp}/scroogevm-demo.XXXXXX")
    fi
    cd "$FOLDER"
}

# Remove the settings of a real installation, and proxies for the loopback.
clear_settings() {
    local name
    for name in "${!AGGREG_@}" "${!SCHED_@}" "${!STATE_@}" "${!STORE_@}" "${!BALLOONING_@}" "${!LIBVIRT_@}" \
        "${!PLACEMENT_@}" "${!METRICS_@}"; do unset "$name"; done
    [ -n "$INFLUXDB" ] || for name in "${!INFLUXDB_@}"; do unset "$name"; done
    export no_proxy='127.0.0.1,localhost' PYTHONUNBUFFERED=1
}

free_ports() {
    "$PYTHON" -c 'import socket, sys
servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(server.getsockname()[1] for server in servers))' "$1"
}

# fetch URL [JSON]: the body of the response.
fetch() {
    "$PYTHON" -c 'import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
sys.stdout.write(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data), timeout=5).read().decode())' "$@"
}

responds() { fetch "$@" >/dev/null 2>&1; }

start_influxdb() {
    if [ -n "${INFLUXDB_URL:-}" ]; then
        [ -n "${INFLUXDB_TOKEN:-}" ] || fail 2 "--influxdb: INFLUXDB_URL is set, but INFLUXDB_TOKEN is not"
        export INFLUXDB_URL INFLUXDB_TOKEN INFLUXDB_ORG=${INFLUXDB_ORG:-scroogevm} INFLUXDB_BUCKET=${INFLUXDB_BUCKET:-scroogevm}
        info "  samples go to InfluxDB at $INFLUXDB_URL, bucket $INFLUXDB_BUCKET"
        return
    fi
    local port
    port=$(free_ports 1)
    export INFLUXDB_URL=http://127.0.0.1:$port INFLUXDB_ORG=scroogevm INFLUXDB_BUCKET=scroogevm INFLUXDB_TOKEN
    if command -v influxd >/dev/null; then
        INFLUXDB_TOKEN=$(head -c 24 /dev/urandom | base64 | tr '+/' '-_')
        start influxd influxd run --reporting-disabled --http-bind-address "127.0.0.1:$port" --log-level error \
            --bolt-path "$FOLDER/influxd/bolt" --engine-path "$FOLDER/influxd/engine" --sqlite-path "$FOLDER/influxd/sqlite"
        until_true 60 "InfluxDB responds" responds "$INFLUXDB_URL/health"
        fetch "$INFLUXDB_URL/api/v2/setup" "{\"username\": \"demo\", \"password\": \"$INFLUXDB_TOKEN\",
            \"org\": \"$INFLUXDB_ORG\", \"bucket\": \"$INFLUXDB_BUCKET\", \"token\": \"$INFLUXDB_TOKEN\"}" >/dev/null
        return
    fi
    # The script creates the token and prints it.
    unset INFLUXDB_TOKEN
    CONTAINER=scroogevm-demo-$$
    INFLUXDB_NAME=$CONTAINER step "$HERE/misc/influxdb.sh" start >influxdb.env 2>influxdb.log || {
        local why
        why=$(tail -n 1 influxdb.log)
        fail 2 "--influxdb: no server: INFLUXDB_URL is not set, influxd is not on PATH, misc/influxdb.sh failed: ${why#influxdb: }"
    }
    INFLUXDB_TOKEN=$(sed -n 's/^INFLUXDB_TOKEN=//p' influxdb.env)
    export INFLUXDB_TOKEN
    info "  InfluxDB runs in the container $CONTAINER"
}

workers_listed() { [ "$(wc -l <"$1.log")" -ge 2 ]; }

start_workers() {
    start fakeworkers "$PYTHON" "$HERE/misc/fakeworkers" --workers 3 --vms 8 --cores 24 --port 0 \
        --format labels --dialect tinkoff --stats-period 1 --print-stubs
    until_true 30 "the simulated workers respond" workers_listed fakeworkers
    # Short names leave room for the figures of a table.
    STUBS=$(sed -nE '2s,"node": "[^"]*-0000([0-9])/node","node": "http://node\1",gp' fakeworkers.log)
    BASE=$(grep -oE 'http://[0-9.]+:[0-9]+' <<<"$STUBS" | head -n 1)
    info "  it simulates node_exporter and a libvirt exporter of 3 machines with 8 VMs each, at $BASE"
    }

# The workers of this process have no VMs until its scheduler starts some.
start_scheduler() {
    local options=(--status status.json --log scheduler.jsonl --figures figures.json --slice-s "$SLICE_S"
        --slices $((SECONDS_SHOWN / SLICE_S)) --ratio "$RATIO")
    [ -z "$WORKLOAD" ] || options+=(--workload "$WORKLOAD")
    python "$HERE/misc/closedloop" --check "${options[@]}" || exit 2
    start scheduler "$PYTHON" "$HERE/misc/closedloop" "${options[@]}"
    until_true 60 "the simulated workers respond" workers_listed scheduler
    STUBS=$(sed -n 2p scheduler.log)
    info "  it simulates node_exporter and a libvirt exporter of 3 machines without VMs, and places VMs on them"
}

write_settings() {
    local ports
    read -ra ports <<<"$(free_ports 3)"
    cat >.env <<END
# Settings of the demo; the file dotenv explains each of them.
AGGREG_STUB_LIST='$STUBS'
AGGREG_FETCH_DELAY=0.5
AGGREG_METRICS_PORT=${ports[0]}
SCHED_SCOPE_S=$(($([ -n "$SCHEDULER" ] && echo $DAY_SLICES || echo 2) * SLICE_S))
SCHED_SCOPE_SLICE_S=$SLICE_S
SCHED_SCOPE_HISTORICAL=1
SCHED_SCOPE_INIT_FETCH_PREVIOUS=0
SCHED_SETTLE_S=0.5
SCHED_CONTENTION_CHECK_S=1
SCHED_METRICS_PORT=${ports[1]}
STATE_ENDPOINT=$FOLDER/status.json
LIBVIRT_NODES='{"$NODE": "test:///default"}'
BALLOONING_SCOPE_SLEEP_S=5
BALLOONING_STATS_AGE_S=3
BALLOONING_METRICS_PORT=${ports[2]}
END
    [ -z "$NO_GUARDS" ] || echo SCHED_GUARDS=0 >>.env
    STATUS_PAGE=http://127.0.0.1:${ports[1]}/
    ENDPOINTS=("vmaggreg ${ports[0]}" "scroogevm ${ports[1]}")
    [ -z "$BALLOONING" ] || ENDPOINTS+=("vmballooning ${ports[2]}")
}

check_settings() {
    python "$HERE/vmaggreg.py" --check >check.log 2>&1 || {
        cat check.log >&2
        [ -z "$INFLUXDB" ] || fail 2 "--influxdb: InfluxDB at $INFLUXDB_URL cannot be used; see the table above"
        fail 1 "a worker or the store does not respond; see the table above"
    }
    sed 's/ *$//' check.log
}

# --- what is shown ------------------------------------------------------------------------------------

# redraw TEXT: print text, on a terminal in place of the previous one.
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

# Whether the status file has both figures of all nodes.
estimated() { [ "$(grep -oE '"state": *"ok"' status.json 2>/dev/null | wc -l)" -eq 9 ]; }

watch_figures() {
    local begun=$SECONDS passed=0 failed_at='' headline='' every=4
    [ -z "$TERMINAL" ] || every=1
    while :; do
        check_daemons
        passed=$((SECONDS - begun))
        [ "$passed" -lt "$SECONDS_SHOWN" ] || break
        # Halfway through a worker fails for three slices, and the VMs of another want more than it has, to the end.
        if [ -z "$failed_at" ] && [ "$SECONDS_SHOWN" -ge 30 ] && [ "$passed" -ge $((SECONDS_SHOWN * 2 / 5)) ]; then
            failed_at=$passed
            responds "$BASE/control" "{\"worker\": 1, \"fault\": \"500\", \"seconds\": $((3 * SLICE_S))}" || true
            responds "$BASE/control" '{"worker": 0, "fault": "contention"}' || true
        fi
        headline="$passed of $SECONDS_SHOWN s"
        if [ -n "$failed_at" ] && [ $((passed - failed_at)) -le $((4 * SLICE_S)) ]; then
            headline+="; the exporters of node1 fail for now: it becomes stale after a slice without samples"
        fi
        [ -z "$failed_at" ] || headline+="; the VMs of node0 want more than it has and wait: 0 is published"
        redraw "[$headline]
$(status_table)"
        pause "$every"
    done
}

# Unlike a plain sleep it is interrupted by signals.
pause() { step sleep "$1"; }

slices_begin() { [ "$(wc -l <scheduler.log)" -ge 3 ]; }

# Show each slice when it has ended, then the figures.
watch_scheduler() {
    local shown=2 lines ended=''
    while [ -z "$ended" ]; do
        check_daemons
        pause 1
        [ ! -e figures.json ] || ended=yes
        lines=$(wc -l <scheduler.log)
        [ "$lines" -eq "$shown" ] || sed -n "$((shown + 1)),${lines}p" scheduler.log
        shown=$lines
    done
}

run_scheduler() {
    headline "VMs arrive above what fits. A scheduler books what is published: booked now + free"
    info "A slice is $SLICE_S s, a virtual day $DAY_SLICES slices. VMs are placed when all machines have figures."
    info "The same figures are on the status page until the demo ends: $STATUS_PAGE"
    until_true 120 "figures of all machines" slices_begin
    info "Per slice: VMs; vCPUs sold and cores used, per core; machines over their size; vCPUs left; VMs refused"
    watch_scheduler
}

show_results() {
    local entry name port count
    headline "The status file, for schedulers: its first node"
    "$PYTHON" -c 'import json
name, node = next(iter(json.load(open("status.json")).items()))
print(json.dumps({name: node}, indent=2))'

    headline "Metrics for Prometheus: the first lines of each daemon"
    for entry in "${ENDPOINTS[@]}"; do
        read -r name port <<<"$entry"
        info "$name.py, http://127.0.0.1:$port/metrics"
        fetch "http://127.0.0.1:$port/metrics" | grep -vE '^#|_created' | head -n 4 | sed 's/^/  /' || true
    done

    if [ -n "$BALLOONING" ]; then
        headline "Ballooning, dry run: the plan for each VM of $NODE"
        until_true 30 "the ballooning plan" grep -q '^test:///' vmballooning.log
        info "(libvirt's test driver stands in for the host; its only VM has no samples and is skipped)"
        tail -n 1 vmballooning.log
    fi

    headline "The samples exported as a trace and replayed with every strategy"
    python "$HERE/scroogevm.py" --export=trace.json --since="$BEGUN" --url="[\"$NODE\"]"
    python "$HERE/scroogevm.py" --load=trace.json --strategy=all --output=replay --report
    count=$("$PYTHON" -c 'import json; print(len(json.load(open("trace.json"))["epoch"]))')
    info "$count slices of $SLICE_S s are too few and too short to choose a strategy. On a real node, replay days of half-hour slices."
}

run_figures() {
    headline "Free CPU and memory of each machine by the measured usage of its VMs, every $SLICE_S s"
    until_true 60 "the first figures" estimated
    info "The same figures are on the status page until the demo ends: $STATUS_PAGE"
    watch_figures
    show_results
}

main() {
    read_arguments "$@"
    trap at_end EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    TERMINAL=''
    if [ -t 1 ] && [ "${TERM:-dumb}" != dumb ]; then TERMINAL=yes; fi
    clear_settings
    set_up_python
    make_folder

    headline "ScroogeVM on simulated workers; all files are in $FOLDER"
    [ -z "$INFLUXDB" ] || start_influxdb
    if [ -n "$SCHEDULER" ]; then start_scheduler; else start_workers; fi
    write_settings
    check_settings
    start vmaggreg "$PYTHON" "$HERE/vmaggreg.py"
    BEGUN=$(date +%s)
    start scroogevm "$PYTHON" "$HERE/scroogevm.py" --strategy="${STRATEGY:-scroogevm,percentile,nsigma,rclike,borg}"
    if [ -n "$BALLOONING" ]; then
        start vmballooning "$PYTHON" "$HERE/vmballooning.py" --dry-run
    elif [ -z "$SCHEDULER" ]; then
        info "  vmballooning.py does not run: libvirt-python could not be built here"
    fi
    if [ -n "$SCHEDULER" ]; then run_scheduler; else run_figures; fi

    headline "The end"
    stop_all
    info "  all processes are stopped"
    if [ -n "$KEEP" ] && [ -n "$SCHEDULER" ]; then
        info "  in $FOLDER: .env, the store, status.json, logs, scheduler.jsonl with all events, figures.json"
    elif [ -n "$KEEP" ]; then
        info "  in $FOLDER: .env, the store, status.json, logs, trace.json; the report is $FOLDER/replay/report.html"
    else
        info "  $FOLDER is removed; --keep FOLDER keeps settings, store, logs and results"
    fi
}

main "$@"
