#!/bin/sh
# Adds Ray, Nightjar and what KubeRay calls to an image that has vLLM, as the Dockerfile's targets on other projects' images do.
#
#   add_nightjar.sh LOCK WHEEL
#
# No package that is in the image changes: its versions are pip's constraints, so the build fails where ours contradict them. What is
# new is one of LOCK's lines, with the hash of its file; WHEEL asks pip for Nightjar's wheel, with a hash as well.
set -eu

apt-get update
apt-get install --yes --no-install-recommends ca-certificates g++ gcc libc6-dev libnuma1 wget
rm -rf /var/lib/apt/lists/*

constraints="$(mktemp)"
python3 -m pip list --format=freeze > "$constraints"
awk -F== '{ name = tolower($1); gsub(/[-_.]+/, "-", name) }
          NR == FNR { has[name] = 1; next }
          /==/ && !has[name]' "$constraints" "$1" > "$constraints.new"
cat "$constraints.new" >> "$constraints"
PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --require-hashes --constraint "$constraints" --requirement "$2"
rm "$constraints" "$constraints.new"

# A user with a name: PyTorch asks for it where it keeps compiled kernels. Ray's image has one of that number already.
getent passwd 1000 > /dev/null || useradd --uid 1000 --user-group --no-create-home nightjar
mkdir -p /home/nightjar
chown 1000:1000 /home/nightjar
