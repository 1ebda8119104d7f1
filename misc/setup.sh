#!/usr/bin/env bash
# Installs what ScroogeVM needs into the virtual environment .venv; does nothing if it is there already.
#
#   misc/setup.sh offline   for the replay of traces
#   misc/setup.sh live      also for vmaggreg.py and scroogevm.py
#   misc/setup.sh all       also for vmballooning.py: libvirt-python, which is compiled
#   misc/setup.sh tests     also for the tests, Debian packages included
#
#   misc/setup.sh -h        this text
#
# Debian packages are installed if that is allowed (root, or sudo without a password); otherwise the missing ones are
# listed. PYTHON names the interpreter of the environment (default: python3). Runs at the same time wait for each
# other. An interrupted run is completed by the next one.
set -euo pipefail
cd "$(dirname "$0")/.."

OFFLINE=(numpy msgspec rich pandas matplotlib jinja2 joblib)
BUILD=(gcc pkg-config libvirt-dev)

info() { printf 'setup: %s\n' "$*" >&2; }

# ready WHAT: whether this set-up was completed for the present requirements.
ready() { [ -x .venv/bin/python ] && [ "$(cat ".venv/.done-$1" 2>/dev/null)" = "$STAMP" ]; }

# Wait for a set-up that is running. The lock ends with this process and its children, however they end.
lock() {
    exec 9>>.venv.lock
    flock --nonblock 9 || {
        info "waiting for another set-up"
        flock 9
    }
}

# attached COMMAND...: run a command that ends when this script is killed.
attached() { setpriv --pdeathsig TERM -- "$@"; }

apt_install() {
    local as_root=() missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || { info "please install: ${missing[*]}"; return 1; }
    fi
    command -v apt-get >/dev/null || { info "please install: ${missing[*]}"; return 1; }
    info "installing ${missing[*]}"
    # RUNLEVEL=1: do not start the services of a package; the tests start what they need.
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null 9>&- || {
        info "could not install: ${missing[*]}"
        return 1
    }
}

interpreter() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || apt_install python3 || exit 2
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { info "$python is older than Python 3.10"; exit 2; }
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || exit 2
    fi
    printf '%s' "$python"
}

make_environment() {
    local python
    python=$(interpreter)
    # An interrupted creation leaves an environment without pip.
    .venv/bin/python -c 'import pip' 2>/dev/null || {
        info "creating .venv"
        attached "$python" -m venv --clear .venv
    }
}

pip_install() { attached .venv/bin/python -m pip install --quiet --disable-pip-version-check "$@"; }

# without_libvirt [FILE]: install requirements.txt and FILE except for libvirt-python, which needs a compiler.
without_libvirt() {
    cat requirements.txt "$@" | grep -vE '^(-r|libvirt-python)' >.venv/requirements.txt
    pip_install -r .venv/requirements.txt
}

# Compile libvirt-python against the system's libvirt.
libvirt_python() {
    apt_install "${BUILD[@]}" python3-dev || true
    pip_install "$(grep '^libvirt-python' requirements.txt)" >.venv/libvirt-python.log 2>&1 || {
        info "libvirt-python could not be built: vmballooning.py will not run, all else is ready (.venv/libvirt-python.log)"
        return 1
    }
}

install_packages() {
    case $1 in
    offline) pip_install -c requirements.txt "${OFFLINE[@]}" ;;
    live) without_libvirt ;;
    all)
        without_libvirt
        libvirt_python || exit 1
        ;;
    tests)
        apt_install prometheus prometheus-node-exporter prometheus-libvirt-exporter victoria-metrics chromium || true
        # For real guests; the tests download the kernel package and do not install it.
        apt_install libvirt-daemon libvirt-daemon-driver-qemu libvirt-clients qemu-system-x86 busybox-static \
            openssh-server openssh-client git curl || true
        without_libvirt requirements-dev.txt
        libvirt_python || true
        ;;
    esac
}

main() {
    local what=${1:-} covered
    # Each set-up includes those before it.
    case $what in
    offline) covered=(offline) ;;
    live) covered=(offline live) ;;
    all) covered=(offline live all) ;;
    tests) covered=(offline live all tests) ;;
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' misc/setup.sh
        exit 0
        ;;
    *)
        info "usage: misc/setup.sh offline|live|all|tests"
        exit 2
        ;;
    esac
    STAMP=$(cat misc/setup.sh requirements.txt requirements-dev.txt | cksum)
    ! ready "$what" || return 0
    lock
    ! ready "$what" || return 0
    make_environment
    info "installing Python packages: $what"
    install_packages "$what"
    for what in "${covered[@]}"; do printf '%s' "$STAMP" >".venv/.done-$what"; done
}

main "$@"
