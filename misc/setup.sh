#!/usr/bin/env bash
# Makes the virtual environment .venv ready; does nothing when it is.
#
#   misc/setup.sh offline   what the replay of traces needs
#   misc/setup.sh live      what vmaggreg.py and scroogevm.py need too
#   misc/setup.sh all       what vmballooning.py needs too, which is built with a compiler
#   misc/setup.sh tests     what the tests need too, Debian packages included
#
#   misc/setup.sh -h        this text
#
# Debian packages are installed where that is allowed (root, or sudo without a password); otherwise
# it says which ones are missing. PYTHON names the interpreter to start from (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

OFFLINE=(numpy msgspec rich pandas matplotlib jinja2 joblib)
BUILD=(gcc pkg-config libvirt-dev)

say() { printf 'setup: %s\n' "$*" >&2; }

apt_install() {
    local as_root=() missing=()
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
        sudo -n true 2>/dev/null || { say "please install: ${missing[*]}"; return 1; }
    fi
    command -v apt-get >/dev/null || { say "please install: ${missing[*]}"; return 1; }
    say "installing ${missing[*]}"
    # Services that a package brings are not started: the tests start what they need themselves.
    { "${as_root[@]}" apt-get update -qq && "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null || {
        say "could not install: ${missing[*]}"
        return 1
    }
}

interpreter() {
    local python=${PYTHON:-python3}
    command -v "$python" >/dev/null || apt_install python3 || exit 2
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { say "$python is older than 3.10"; exit 2; }
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || exit 2
    fi
    printf '%s' "$python"
}

PIP=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)

# without_libvirt [FILE]: what requirements.txt, and that file, name beside the one package that needs a compiler.
without_libvirt() {
    cat requirements.txt "$@" | grep -vE '^(-r|libvirt-python)' >.venv/requirements.txt
    "${PIP[@]}" -r .venv/requirements.txt
}

# It is compiled against the system's libvirt.
libvirt_python() {
    apt_install "${BUILD[@]}" python3-dev || true
    "${PIP[@]}" "$(grep '^libvirt-python' requirements.txt)" >.venv/libvirt-python.log 2>&1 || {
        say "libvirt-python could not be built, so there is no vmballooning.py; all else is ready (.venv/libvirt-python.log)"
        return 1
    }
}

main() {
    local what=${1:-}
    case $what in
    offline | live | all | tests) ;;
    -h | --help)
        sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' misc/setup.sh
        exit 0
        ;;
    *)
        say "usage: misc/setup.sh offline|live|all|tests"
        exit 2
        ;;
    esac
    local stamp done=.venv/.done-$what covered
    stamp=$(cat misc/setup.sh requirements.txt requirements-dev.txt | cksum)
    if [ -x .venv/bin/python ] && [ "$(cat "$done" 2>/dev/null)" = "$stamp" ]; then
        return 0
    fi
    local python
    python=$(interpreter)
    # One whose making was broken off has no pip.
    .venv/bin/python -c 'import pip' 2>/dev/null || { say "making .venv"; "$python" -m venv --clear .venv; }
    say "installing Python packages for: $what"
    case $what in
    offline) "${PIP[@]}" -c requirements.txt "${OFFLINE[@]}" ;;
    live) without_libvirt ;;
    all)
        without_libvirt
        libvirt_python || exit 1
        ;;
    tests)
        apt_install prometheus prometheus-node-exporter prometheus-libvirt-exporter chromium || true
        # Real guests; their kernel is only downloaded, by the tests.
        apt_install libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 busybox-static \
            openssh-server openssh-client git curl || true
        without_libvirt requirements-dev.txt
        libvirt_python || true
        ;;
    esac
    # Who has more has the rest as well.
    case $what in
    offline) covered=(offline) ;;
    live) covered=(offline live) ;;
    all) covered=(offline live all) ;;
    tests) covered=(offline live all tests) ;;
    esac
    for what in "${covered[@]}"; do printf '%s' "$stamp" >".venv/.done-$what"; done
}

main "$@"
