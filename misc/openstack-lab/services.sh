# shellcheck shell=bash
# Starts and ends the services of the lab. Sourced by lab.sh. Each has its pid in pid/NAME and its output in log/NAME.log.

in_namespace() { ip netns exec "$NAMESPACE" "$@"; }

make_namespace() {
    ip netns list | grep -q "^$NAMESPACE\b" || ip netns add "$NAMESPACE" || return
    ip -n "$NAMESPACE" link set lo up
}

mount_chroot() {
    local name
    mountpoint -q "$CHROOT/proc" || mount -t proc proc "$CHROOT/proc" || return
    for name in dev sys; do
        mountpoint -q "$CHROOT/$name" && continue
        mount --rbind "/$name" "$CHROOT/$name" && mount --make-rslave "$CHROOT/$name" || return
    done
}

unmount_chroot() {
    local name
    for name in proc dev sys; do
        ! mountpoint -q "$CHROOT/$name" || umount -R "$CHROOT/$name" || return
    done
}

runs() { [ -e "$LAB/pid/$1" ] && kill -0 -- "-$(cat "$LAB/pid/$1")" 2>/dev/null; }

# start NAME COMMAND...: in the namespace, and in a session of its own, whose number is the pid.
start() {
    local name=$1
    shift
    ! runs "$name" || return 0
    setsid ip netns exec "$NAMESPACE" "$@" >>"$LAB/log/$name.log" 2>&1 </dev/null &
    echo $! >"$LAB/pid/$name"
}

# stop NAME [SIGNAL]: the service and all that it started; killed when it takes longer than 20 s.
stop() {
    local pid waited=0
    if runs "$1"; then
        pid=$(cat "$LAB/pid/$1")
        kill "-${2:-TERM}" -- "-$pid"
        while kill -0 -- "-$pid" 2>/dev/null; do
            [ $((waited += 1)) -le 200 ] || kill -KILL -- "-$pid" 2>/dev/null
            sleep 0.1
        done
    fi
    rm -f "$LAB/pid/$1"
}

# What services have left behind in the chroot: RabbitMQ's epmd leaves the group of the service.
end_left_behind() {
    local process
    for process in /proc/[0-9]*; do
        [ "$(readlink "$process/root")" != "$CHROOT" ] || kill "${process#/proc/}"
    done
}

# wait_port NAME PORT: until the service listens.
wait_port() {
    local waited=0
    until in_namespace bash -c "exec 3<>/dev/tcp/127.0.0.1/$2" 2>/dev/null; do
        runs "$1" && [ $((waited += 1)) -le 300 ] || return
        sleep 0.2
    done
}

# start_wsgi NAME PORT MODULE PROCESSES THREADS VARIABLE=VALUE...
start_wsgi() {
    local name=$1 port=$2 module=$3 processes=$4 threads=$5
    shift 5
    start "$name" env "$@" "$BIN/uwsgi" --http-socket "127.0.0.1:$port" --module "$module" --master --need-app \
        --processes "$processes" --threads "$threads" --lazy-apps --die-on-term --thunder-lock --buffer-size 65535 \
        --add-header "Connection: close" || return
    wait_port "$name" "$port"
}

start_service() {
    local user
    case $1 in
    mariadb)
        user=$(chroot "$CHROOT" id -u mysql):$(chroot "$CHROOT" id -g mysql)
        mkdir -p "$CHROOT/run/mysqld" && chown "$user" "$CHROOT/run/mysqld" || return
        start mariadb chroot "$CHROOT" mariadbd --user=mysql --bind-address=127.0.0.1 --max-connections=500 \
            --innodb-flush-log-at-trx-commit=2 --innodb-buffer-pool-size=256M
        wait_port mariadb 3306
        ;;
    rabbitmq)
        start rabbitmq env HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=rabbit@localhost ERL_EPMD_ADDRESS=127.0.0.1 \
            RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
            RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none" \
            chroot --userspec=rabbitmq:rabbitmq "$CHROOT" /usr/lib/rabbitmq/bin/rabbitmq-server
        wait_port rabbitmq 5672
        ;;
    keystone)
        start_wsgi keystone 5000 keystone.wsgi.api:application 2 1 \
            OS_KEYSTONE_CONFIG_DIR="$LAB/etc" OS_KEYSTONE_CONFIG_FILES="$LAB/etc/keystone.conf"
        ;;
    placement) start_wsgi placement 8778 placement.wsgi.api:application 2 2 OS_PLACEMENT_CONFIG_DIR="$LAB/etc" ;;
    glance)
        start_wsgi glance 9292 glance.wsgi.api:application 1 1 \
            OS_GLANCE_CONFIG_DIR="$LAB/etc" OS_GLANCE_CONFIG_FILES="$LAB/etc/glance-api.conf"
        ;;
    neutron)
        start neutron "$BIN/python" "$HERE/neutron_stub.py" 9696
        wait_port neutron 9696
        ;;
    nova-api) start_wsgi nova-api 8774 nova.wsgi.osapi_compute:application 2 2 OS_NOVA_CONFIG_DIR="$LAB/etc" ;;
    nova-compute-*) start_compute "${1#nova-compute-}" ;;
    nova-*) start "$1" "$BIN/$1" --config-file "$LAB/etc/nova.conf" ;;
    esac
}

# start_compute HOST: a host of nova's fake driver; hosts/HOST holds its size, etc/HOST.conf its own options.
start_compute() {
    local size
    read -ra size <"$LAB/hosts/$1" || return
    mkdir -p "$LAB/state/$1"
    [ -e "$LAB/etc/$1.conf" ] || : >"$LAB/etc/$1.conf"
    printf '[DEFAULT]\nhost = %s\nstate_path = %s\ncompute_driver = openstacklab.Host\n' "$1" "$LAB/state/$1" \
        >"$LAB/state/$1/host.conf"
    start "nova-compute-$1" env LAB_CORES="${size[0]}" LAB_MEMORY_MB="${size[1]}" LAB_DEDICATED="${size[2]}" \
        "$BIN/nova-compute" --config-file "$LAB/etc/nova.conf" --config-file "$LAB/state/$1/host.conf" \
        --config-file "$LAB/etc/$1.conf"
}

openstack() {
    in_namespace env OS_AUTH_URL=http://127.0.0.1:5000/v3 OS_USERNAME=admin OS_PASSWORD=admin OS_PROJECT_NAME=admin \
        OS_USER_DOMAIN_NAME=Default OS_PROJECT_DOMAIN_NAME=Default OS_IDENTITY_API_VERSION=3 "$BIN/openstack" "$@"
}
