#!/usr/bin/env bash
# Makes the virtual environment .venv ready; does nothing when it is.
#
#   misc/setup.sh offline   what the replay of traces needs
#   misc/setup.sh live      what vmaggreg.py and scroogevm.py need too
#   misc/setup.sh all       what vmballooning.py needs too, which is built with a compiler
#   misc/setup.sh tests     what the tests need too, Debian packages included
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
    command -v "$python" >/dev/null || apt_install python3
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { say "$python is older than 3.10"; exit 2; }
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3-venv || exit 2
    fi
    printf '%s' "$python"
}

main() {
    local what=${1:-}
    case $what in offline | live | all | tests) ;; *)
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
    [ -x .venv/bin/python ] || { say "making .venv"; "$python" -m venv .venv; }
    local pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check)
    say "installing Python packages for: $what"
    case $what in
    offline) "${pip[@]}" -c requirements.txt "${OFFLINE[@]}" ;;
    live)
        grep -v '^libvirt-python' requirements.txt >.venv/requirements-live.txt
        "${pip[@]}" -r .venv/requirements-live.txt
        ;;
    all)
        apt_install "${BUILD[@]}" python3-dev || true
        "${pip[@]}" -r requirements.txt
        ;;
    tests)
        apt_install "${BUILD[@]}" python3-dev prometheus \
            prometheus-node-exporter prometheus-libvirt-exporter chromium || true
        # Real guests; their kernel is only downloaded, by the tests.
        apt_install libvirt-daemon libvirt-daemon-driver-qemu qemu-system-x86 busybox-static \
            openssh-server openssh-client || true
        # libvirt-python is compiled against the system's libvirt; where that can't be had, its tests skip.
        grep -v '^-r' requirements-dev.txt | cat - <(grep -v '^libvirt-python' requirements.txt) >.venv/requirements-tests.txt
        "${pip[@]}" -r .venv/requirements-tests.txt
        "${pip[@]}" "$(grep '^libvirt-python' requirements.txt)" || say "libvirt-python could not be built"
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
