#!/bin/sh
# ssh for libvirt's qemu+ssh: never prompts, and fails within seconds when the host does not respond. vmballooning.py adds
# it to URIs without a command of their own.
exec ssh -o BatchMode=yes -o ConnectTimeout=3 -o ServerAliveInterval=1 -o ServerAliveCountMax=3 "$@"
