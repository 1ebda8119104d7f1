#!/usr/bin/env bash
# Replays a trace with every strategy and compares them.
#
#   ./launchallfromjson.sh TRACE.json OUTPUT_FOLDER
#
# Writes dump-<strategy>.json, summary.csv and report.html into the folder, which must not exist yet. The last line of
# the output is the path of the report.
set -euo pipefail

usage() {
    printf 'launchallfromjson.sh: %s\nusage: launchallfromjson.sh TRACE.json OUTPUT_FOLDER\n' "$1" >&2
    exit 2
}

case ${1:-} in -h | --help)
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
    exit 0
    ;;
esac
[ $# -eq 2 ] || usage "needs two arguments: a trace and the folder of the results"
trace=$1 output=$2 here=$(cd "$(dirname "$0")" && pwd)
[ -e "$trace" ] || usage "$trace does not exist"
[ ! -d "$trace" ] || usage "$trace is a folder"
[ -r "$trace" ] || usage "$trace cannot be read"
[ ! -e "$output" ] || usage "$output exists already; name a new folder"

"$here/misc/setup.sh" offline
exec "$here/.venv/bin/python" "$here/scroogevm.py" --load="$trace" --strategy=all --output="$output" --report
