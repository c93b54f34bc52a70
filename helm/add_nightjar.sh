#!/bin/sh
# Adds Ray, Nightjar and what KubeRay calls to an image that has vLLM, as the Dockerfile's targets on other projects' images do.
#
#   add_nightjar.sh LOCK WHEEL
#
# No package that is in the image changes: pip is given those of LOCK's lines that the image lacks, each with the hash of its file, and
# WHEEL, which names Nightjar's wheel with a hash and an extra. Then pip's resolver looks, without an index, whether all is there that
# these need: the build fails where the image has another version, or lacks what LOCK lacks as well.
set -eu

apt-get update
apt-get install --yes --no-install-recommends ca-certificates g++ gcc libc6-dev libnuma1 wget
rm -rf /var/lib/apt/lists/*

present="$(mktemp)"
python3 -m pip list --format=freeze > "$present"
awk -F== '{ name = tolower($1); gsub(/[-_.]+/, "-", name) }
          NR == FNR { has[name] = 1; next }
          /==/ && !has[name]' "$present" "$1" > "$present.lacks"
export PIP_BREAK_SYSTEM_PACKAGES=1
python3 -m pip install --no-cache-dir --require-hashes --no-deps --requirement "$present.lacks" --requirement "$2"
python3 -m pip install --no-index --dry-run "$(sed 's/ @ .*//' "$2")"
rm "$present" "$present.lacks"

# A user with a name: PyTorch asks for it where it keeps compiled kernels. Ray's image has one of that number already.
getent passwd 1000 > /dev/null || useradd --uid 1000 --user-group --no-create-home nightjar
mkdir -p /home/nightjar
chown 1000:1000 /home/nightjar
