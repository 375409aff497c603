#!/bin/sh
# Install what simulated hosts and a real Slurm on them need (Debian or Ubuntu, as root).
set -eu
packages="iproute2 openssh-server slurm-wlm munge"
dpkg -s $packages > /dev/null 2>&1 && exit 0
timeout 60 apt-get update -qq
DEBIAN_FRONTEND=noninteractive timeout 180 apt-get install -qq --no-install-recommends $packages
