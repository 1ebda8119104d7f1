#!/bin/sh
# Prints how long the vCPUs of the running VMs ran and waited for a CPU, in the Prometheus text format.
#
# On a worker, for the textfile collector of node_exporter; docs/workers.md describes the set-up.
set -u
LC_ALL=C
export LC_ALL

usage() {
    cat <<'END'
usage: vcpu-delay.sh [--connect URI] [--output FILE.prom]

Prints how long the vCPUs of the running VMs ran and waited for a CPU, by "virsh domstats".

  --connect URI       libvirt URI; by default that of virsh
  --output FILE.prom  writes this file instead of stdout; it is replaced at once, and removed when virsh fails
  --help              shows this text
END
}

refuse() {
    printf 'vcpu-delay.sh: %s\n' "$1" >&2
    usage >&2
    exit 2
}

uri='' output=''
while [ $# -gt 0 ]; do
    case $1 in
    -h | --help) usage; exit 0 ;;
    --connect | --output)
        [ -n "${2-}" ] || refuse "$1: needs a value"
        if [ "$1" = --connect ]; then uri=$2; else output=$2; fi
        shift 2
        ;;
    --connect=?*) uri=${1#*=}; shift ;;
    --output=?*) output=${1#*=}; shift ;;
    *) refuse "unknown argument: $1" ;;
    esac
done
case $output in
'') ;;
*.prom) [ ! -d "$output" ] || refuse "--output: $output is a folder" ;;
*) refuse "--output: $output does not end in .prom, and node_exporter would not read it" ;;
esac

# Old values must not stay: they look like VMs that never wait.
fail() {
    printf 'vcpu-delay.sh: %s\n' "$1" >&2
    if [ -n "$output" ]; then rm -f -- "$output"; fi
    exit 1
}

# A timeout of systemd ends virsh as well.
trap 'fail interrupted' HUP INT TERM

stats=$(virsh ${uri:+--connect "$uri"} domstats --vcpu --list-running) || fail 'virsh failed'

metrics=$(printf '%s\n' "$stats" | awk '
    /^Domain: / {
        # virsh puts the name between quotes and escapes nothing.
        name = substr($0, index($0, "\047") + 1)
        sub(/\047$/, "", name)
        gsub(/\\/, "\\\\", name)
        gsub(/"/, "\\\"", name)
    }
    /^ *vcpu\.[0-9]+\.(time|delay)=[0-9]+$/ {
        split($1, parts, /[.=]/)
        line = sprintf("{domain=\"%s\",vcpu=\"%s\"} %.9f", name, parts[2], parts[4] / 1e9)
        if (parts[3] == "delay") delays[++n] = line; else runs[++m] = line
    }
    function series(metric, text, lines, count,   i) {
        print "# HELP " metric " " text
        print "# TYPE " metric " counter"
        for (i = 1; i <= count; i++) print metric lines[i]
    }
    END {
        if (m > 0 && n == 0) exit 3
        series("libvirt_domain_vcpu_delay_seconds_total", "Time a vCPU waited for a CPU, seconds.", delays, n)
        series("libvirt_domain_vcpu_time_seconds_total", "Time a vCPU ran, seconds.", runs, m)
    }')
case $? in
0) ;;
3) fail 'virsh reports no delay of vCPUs: libvirt is older than 7.2' ;;
*) fail 'awk failed' ;;
esac

if [ -z "$output" ]; then
    printf '%s\n' "$metrics"
    exit 0
fi
case $output in
*/*) folder=${output%/*}/ ;;
*) folder=./ ;;
esac
# node_exporter does not read a file of another name, and mv replaces the old one at once.
temporary=$folder.vcpu-delay.$$
trap 'rm -f -- "$temporary"' EXIT
if ! { printf '%s\n' "$metrics" >"$temporary" && chmod 644 -- "$temporary" && mv -f -- "$temporary" "$output"; } 2>/dev/null
then
    fail "$output: cannot be written"
fi
