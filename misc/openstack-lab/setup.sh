# shellcheck shell=bash
# Builds what the lab runs: a Debian chroot, Python packages, configuration, databases. Sourced by lab.sh.
# Each function is one step; lab.sh runs it once and keeps a mark in done/.

# MariaDB and RabbitMQ, in a chroot in which no package may start a service.
install_chroot() {
    local site
    # shellcheck disable=SC2016  # a format of apt
    site=$(apt-get indextargets --format '$(SITE)' | grep -m 1 debian) || return
    if [ ! -x "$CHROOT/usr/bin/apt-get" ]; then
        debootstrap --variant=minbase bookworm "$CHROOT" "$site" || return
    fi
    # What reaches the mirror from this machine reaches it from the chroot.
    rm -f "$CHROOT/etc/apt/sources.list"
    cp -r /etc/apt/. "$CHROOT/etc/apt/" && cp /etc/resolv.conf /etc/hosts "$CHROOT/etc/" || return
    printf '#!/bin/sh\nexit 101\n' >"$CHROOT/usr/sbin/policy-rc.d"
    chmod +x "$CHROOT/usr/sbin/policy-rc.d"
    mount_chroot || return
    export DEBIAN_FRONTEND=noninteractive LC_ALL=C
    chroot "$CHROOT" apt-get -q update || return
    chroot "$CHROOT" apt-get -q install -y --no-install-recommends mariadb-server rabbitmq-server
}

install_packages() {
    python3 -m venv "$LAB/venv" || return
    "$LAB/venv/bin/pip" install -q nova openstack-placement keystone glance python-openstackclient pymysql \
        python-memcached uwsgi || return
    # nova looks its drivers up below nova.virt.
    ln -sf "$HERE/driver.py" "$LAB"/venv/lib/python3*/site-packages/nova/virt/openstacklab.py
}

# configure_service_login USER: the options with which a service logs in to Keystone.
configure_service_login() {
    printf '%s\n' "auth_url = http://127.0.0.1:5000/v3" "auth_type = password" "username = $1" "password = $1" \
        "user_domain_name = Default" "project_domain_name = Default" "project_name = service" "region_name = RegionOne"
}

write_configuration() {
    local database=mysql+pymysql://openstack:openstack@127.0.0.1 login token
    mkdir -p "$LAB"/etc "$LAB"/state/{nova,glance,glance-tasks,glance-staging,lock} || return
    login=$(configure_service_login nova)
    token=$(printf '%s\n' "[keystone_authtoken]" "www_authenticate_uri = http://127.0.0.1:5000/v3" \
        "service_token_roles_required = true" "$login")

    cat >"$LAB/etc/keystone.conf" <<END || return
[DEFAULT]
log_file = $LAB/log/keystone.log
[database]
connection = $database/keystone
max_pool_size = 5
[token]
expiration = 14400
[fernet_tokens]
key_repository = $LAB/etc/fernet-keys
[credential]
key_repository = $LAB/etc/credential-keys
[cache]
enabled = false
END

    cat >"$LAB/etc/placement.conf" <<END || return
[DEFAULT]
log_file = $LAB/log/placement.log
[placement_database]
connection = $database/placement
max_pool_size = 10
[api]
auth_strategy = keystone
$token
END

    cat >"$LAB/etc/glance-api.conf" <<END || return
[DEFAULT]
log_file = $LAB/log/glance.log
enabled_backends = files:file
enabled_import_methods = []
[database]
connection = $database/glance
[glance_store]
default_backend = files
[files]
filesystem_store_datadir = $LAB/state/glance
[os_glance_tasks_store]
filesystem_store_datadir = $LAB/state/glance-tasks
[os_glance_staging_store]
filesystem_store_datadir = $LAB/state/glance-staging
[paste_deploy]
flavor = keystone
config_file = $LAB/venv/etc/glance/glance-api-paste.ini
$token
END

    # Quotas, power states and VMs of which nova does not know are not what the lab is about.
    cat >"$LAB/etc/nova.conf" <<END || return
[DEFAULT]
transport_url = rabbit://guest:guest@127.0.0.1:5672/
my_ip = 127.0.0.1
state_path = $LAB/state/nova
enabled_apis = osapi_compute
reserved_host_memory_mb = 512
update_resources_interval = 20
sync_power_state_interval = -1
running_deleted_instance_poll_interval = 0
use_journal = false
[compute]
resource_provider_association_refresh = $REFRESH_S
[api_database]
connection = $database/nova_api
max_pool_size = 5
[database]
connection = $database/nova
max_pool_size = 5
[oslo_concurrency]
lock_path = $LAB/state/lock
[wsgi]
api_paste_config = $LAB/venv/etc/nova/api-paste.ini
[scheduler]
workers = 1
[workarounds]
disable_fallback_pcpu_query = true
[conductor]
workers = 1
[quota]
instances = -1
cores = -1
ram = -1
[vnc]
enabled = false
[glance]
api_servers = http://127.0.0.1:9292
[cinder]
catalog_info = volumev3::publicURL
[placement]
$login
[neutron]
$login
[service_user]
send_service_user_token = true
$login
$token
END
    cp "$LAB/venv/etc/nova/api-paste.ini" "$LAB/etc/"
}

create_databases() {
    local name
    for name in keystone placement glance nova nova_api nova_cell0; do
        in_namespace chroot "$CHROOT" mariadb -e "CREATE DATABASE IF NOT EXISTS $name CHARACTER SET utf8mb3;
            GRANT ALL ON $name.* TO openstack@localhost IDENTIFIED BY 'openstack';
            GRANT ALL ON $name.* TO openstack@'127.0.0.1' IDENTIFIED BY 'openstack'" || return
    done
    mkdir -p "$LAB"/etc/fernet-keys "$LAB"/etc/credential-keys
    chmod 700 "$LAB"/etc/fernet-keys "$LAB"/etc/credential-keys
    keystone_manage db_sync || return
    keystone_manage fernet_setup --keystone-user root --keystone-group root || return
    keystone_manage credential_setup --keystone-user root --keystone-group root || return
    keystone_manage bootstrap --bootstrap-password admin --bootstrap-region-id RegionOne \
        --bootstrap-admin-url http://127.0.0.1:5000/v3/ --bootstrap-public-url http://127.0.0.1:5000/v3/ \
        --bootstrap-internal-url http://127.0.0.1:5000/v3/ || return
    in_namespace "$BIN/placement-manage" --config-file "$LAB/etc/placement.conf" db sync || return
    in_namespace "$BIN/glance-manage" --config-file "$LAB/etc/glance-api.conf" db_sync || return
    nova_manage api_db sync && nova_manage cell_v2 map_cell0 || return
    nova_manage cell_v2 list_cells | grep -q ' cell1 ' || nova_manage cell_v2 create_cell --name cell1 || return
    nova_manage db sync
}

keystone_manage() { in_namespace "$BIN/keystone-manage" --config-file "$LAB/etc/keystone.conf" "$@"; }
nova_manage() { in_namespace "$BIN/nova-manage" --config-file "$LAB/etc/nova.conf" "$@"; }

# Users, roles and the catalogue: nova, and scroogevm with the role that Placement's policy asks for.
create_catalogue() {
    local user kind url
    openstack project show service >/dev/null 2>&1 || openstack project create service -f value -c id || return
    for user in nova scroogevm; do
        openstack user create --or-show --project service --password "$user" "$user" -f value -c id || return
        openstack role add --user "$user" --project service service || return
    done
    openstack role add --user nova --project service admin || return
    while read -r kind url; do
        ! openstack service list -f value -c Type | grep -q -x "$kind" || continue
        openstack service create --name "$kind" "$kind" -f value -c id || return
        openstack endpoint create --region RegionOne "$kind" public "$url" -f value -c id || return
        openstack endpoint create --region RegionOne "$kind" internal "$url" -f value -c id || return
    done <<END
placement http://127.0.0.1:8778
image http://127.0.0.1:9292
compute http://127.0.0.1:8774/v2.1
network http://127.0.0.1:9696
END
}
