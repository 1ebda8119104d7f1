#!/usr/bin/env bash
# A real OpenStack on one machine, to try ScroogeVM on: Keystone, Placement, Glance and Nova, whose hosts are simulated.
# Needs root, debootstrap and Debian's and PyPI's packages; 4 GB of disk, 4 GB of memory, a quarter of an hour.
#
#   misc/openstack-lab/lab.sh up FOLDER [OPTIONS]     install what is missing, start what does not run
#   misc/openstack-lab/lab.sh run FOLDER [OPTIONS]    the closed loop: nova, its VMs' usage, ScroogeVM (run FOLDER -h)
#   misc/openstack-lab/lab.sh points FOLDER [OPTIONS] single situations, one after the other (points FOLDER -h)
#   misc/openstack-lab/lab.sh openstack FOLDER ...    OpenStack's own client
#   misc/openstack-lab/lab.sh start FOLDER NAME       one service, e.g. placement or nova-compute-compute1
#   misc/openstack-lab/lab.sh stop FOLDER NAME
#   misc/openstack-lab/lab.sh down FOLDER             end everything; FOLDER stays and can be started again
#
# Options of up:
#   --hosts N         hosts (default 4)
#   --cores N         cores of each (default 32)
#   --memory-mb N     memory of each (default 262144)
#   --dedicated N     cores of the last host that are for pinned VMs only (default 8)
#   --refresh-s N     period in which nova-compute reads its inventory again (default 20; nova's own default is 300)
#
# Everything is below FOLDER, which is outside of any repository, and listens on the loopback of a network namespace.
# FOLDER/log has a file per service and per step.
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
CHECKOUT=$(cd "$HERE/../.." && pwd)
# shellcheck source=misc/openstack-lab/setup.sh
. "$HERE/setup.sh"
# shellcheck source=misc/openstack-lab/services.sh
. "$HERE/services.sh"

HOSTS=4 CORES=32 MEMORY_MB=262144 DEDICATED=8 REFRESH_S=20
SERVICES=(mariadb rabbitmq keystone placement glance neutron nova-conductor nova-scheduler nova-api)

info() { printf '%s\n' "$*"; }
fail() {
    printf 'openstack-lab: %s\n' "$2" >&2
    exit "$1"
}
usage() { fail 2 "$1 (lab.sh -h shows the usage)"; }

read_options() {
    while [ $# -gt 0 ]; do
        [ $# -ge 2 ] && [[ $2 =~ ^[0-9]{1,7}$ ]] || usage "$1: takes a whole number"
        case $1 in
        --hosts) HOSTS=$2 ;;
        --cores) CORES=$2 ;;
        --memory-mb) MEMORY_MB=$2 ;;
        --dedicated) DEDICATED=$2 ;;
        --refresh-s) REFRESH_S=$2 ;;
        *) usage "unknown option $1" ;;
        esac
        shift 2
    done
    [ "$HOSTS" -ge 1 ] && [ "$HOSTS" -le 20 ] || usage "--hosts: takes 1 to 20"
    [ "$DEDICATED" -lt "$CORES" ] || usage "--dedicated: at least one core is shared"
}

# set_folder FOLDER: the lab's folder, by its real name.
set_folder() {
    mkdir -p -- "$1" 2>/dev/null || usage "$1 cannot be created"
    LAB=$(cd -- "$1" && pwd -P)
    ! git -C "$LAB" rev-parse --git-dir >/dev/null 2>&1 || usage "$LAB is in a repository"
    CHROOT=$LAB/chroot BIN=$LAB/venv/bin
    NAMESPACE=oslab-$(cksum <<<"$LAB" | cut -d ' ' -f 1)
    mkdir -p "$LAB"/{log,pid,done,hosts,state}
    export no_proxy=127.0.0.1,localhost NO_PROXY=127.0.0.1,localhost
}

# step NAME COMMAND...: a step that can be repeated; its output goes to a log.
step() {
    local name=$1 begun=$SECONDS
    shift
    "$@" >>"$LAB/log/$name.log" 2>&1 </dev/null || fail 1 "$name failed: see the end of $LAB/log/$name.log"
    [ $((SECONDS - begun)) -lt 3 ] || info "$name: $((SECONDS - begun)) s"
}

# once NAME COMMAND...: a step that is done a single time.
once() {
    [ ! -e "$LAB/done/$1" ] || return 0
    step "$@"
    touch "$LAB/done/$1"
}

start_services() {
    local name
    for name in "$@"; do step "$name" start_service "$name"; done
}

# The hosts of an earlier call are kept: a host has an identity in nova's database.
list_hosts() {
    local i dedicated
    [ -z "$(host_services)" ] || return 0
    for ((i = 1; i <= HOSTS; i++)); do
        dedicated=0
        [ "$i" -lt "$HOSTS" ] || dedicated=$DEDICATED
        echo "$CORES $MEMORY_MB $dedicated" >"$LAB/hosts/compute$i"
    done
}

host_services() { find "$LAB/hosts" -type f -printf "nova-compute-%f\n" | sort -V; }

# Until each host has a provider in Placement, and nova's scheduler can find it.
find_hosts() {
    local expected waited=0
    expected=$(host_services | wc -l)
    until [ "$(openstack hypervisor list -f value -c ID | wc -l)" -eq "$expected" ]; do
        [ $((waited += 1)) -le 20 ] || return
        nova_manage cell_v2 discover_hosts
        sleep 2
    done
}

create_image() {
    ! openstack image list -f value -c Name | grep -q -x empty || return 0
    head -c 1048576 /dev/zero >"$LAB/state/empty.raw"
    openstack image create --disk-format raw --container-format bare --file "$LAB/state/empty.raw" empty
}

up() {
    [ "$(id -u)" -eq 0 ] || fail 2 "needs root"
    command -v debootstrap >/dev/null || fail 2 "debootstrap is missing: apt-get install debootstrap"
    list_hosts
    once chroot install_chroot
    once packages install_packages
    step configuration write_configuration
    step namespace make_namespace
    step mounts mount_chroot
    start_services mariadb rabbitmq
    once databases create_databases
    start_services keystone
    once catalogue create_catalogue
    start_services "${SERVICES[@]:3}"
    # shellcheck disable=SC2046  # names of hosts have no blanks
    start_services $(host_services)
    step hosts find_hosts
    once image create_image
    info "OpenStack runs in the network namespace $NAMESPACE; $0 down $LAB ends it"
}

down() {
    local name i
    for name in $(find "$LAB/pid" -type f -printf '%f\n' | grep -v -x -F "$(printf '%s\n' "${SERVICES[@]}")"); do
        step "$name" stop "$name"
    done
    for ((i = ${#SERVICES[@]} - 1; i >= 0; i--)); do step "${SERVICES[i]}" stop "${SERVICES[i]}"; done
    step left-behind end_left_behind
    step mounts unmount_chroot
    ! ip netns list | grep -q "^$NAMESPACE\b" || step namespace ip netns delete "$NAMESPACE"
    info "ended; $LAB stays"
}

main() {
    local command=${1:-}
    case $command in
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
        exit 0
        ;;
    up | down | run | points | openstack | start | stop) ;;
    *) usage "unknown command '$command'" ;;
    esac
    [ $# -ge 2 ] || usage "$command: the folder is missing"
    set_folder "$2"
    shift 2
    case $command in
    up)
        read_options "$@"
        up
        ;;
    down) down ;;
    start)
        [ $# -eq 1 ] || usage "start: takes a service"
        step "$1" start_service "$1"
        ;;
    stop)
        [ $# -eq 1 ] || usage "stop: takes a service"
        step "$1" stop "$1"
        ;;
    openstack) openstack "$@" ;;
    run | points)
        [ -x "$CHECKOUT/.venv/bin/python" ] || fail 2 "no Python packages: misc/setup.sh live installs them"
        exec ip netns exec "$NAMESPACE" "$CHECKOUT/.venv/bin/python" "$HERE/$command.py" --lab "$LAB" "$@"
        ;;
    esac
}

main "$@"
