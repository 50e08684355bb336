#!/usr/bin/env bash
# Prepares a node of cluster.yaml: caches on local NVMe, then Python with the pinned packages. `ray up` copies it and
# runs it on every node; a second run changes nothing. On an image made from a prepared node it takes seconds.
#
#   ~/tlray-setup/setup_node.sh
set -euo pipefail
shopt -s inherit_errexit # a disk that cannot be mounted ends the set-up, also within $(...)
setup=$(cd "$(dirname "$0")" && pwd)
environment=$HOME/tlray-env
python=3.11
uv=0.13.9
# sha256 of uv's wheel for x86_64, which is the architecture of cluster.yaml's image. With another version:
# `pip download --no-deps --platform manylinux2014_x86_64 --only-binary=:all: uv==VERSION`, then sha256sum.
uv_sha256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19

# Where the instance store is mounted; nothing where the node has none. TLRAY_LOCAL_DISK names another disk.
local_disk() {
    if [ -n "${TLRAY_LOCAL_DISK:-}" ]; then
        echo "$TLRAY_LOCAL_DISK"
        return
    fi
    local disk
    disk=$(lsblk --nodeps --noheadings --paths --output NAME,MODEL | awk '/Instance Storage/ {print $1; exit}')
    if [ -z "$disk" ]; then
        return
    fi
    # Amazon's deep-learning images mount theirs, all of a node as one, by a service that may still be at work.
    if systemctl cat dlami-nvme.service >/dev/null 2>&1; then
        for _ in $(seq 60); do
            if mountpoint -q /opt/dlami/nvme || systemctl is-failed -q dlami-nvme.service; then
                break
            fi
            sleep 1
        done
    fi
    local mounted
    for mounted in /opt/dlami/nvme /mnt/nvme; do
        if mountpoint -q "$mounted"; then
            echo "$mounted"
            return
        fi
    done
    sudo mkfs.ext4 -q -F -E nodiscard "$disk" >&2
    sudo mkdir -p /mnt/nvme
    sudo mount -o noatime "$disk" /mnt/nvme
    echo /mnt/nvme
}

# ~/.cache is where tlray, PyTorch and Hugging Face keep what can be fetched or computed again. It is also where
# cluster.yaml spills objects to.
caches_on() {
    local cache=$1/tlray-cache
    sudo mkdir -p "$cache"
    sudo chown "$(id -u):$(id -g)" "$cache"
    if [ -d "$HOME/.cache" ] && [ ! -L "$HOME/.cache" ]; then
        cp -a "$HOME/.cache/." "$cache/"
        rm -rf "$HOME/.cache"
    fi
    ln -sfn "$cache" "$HOME/.cache"
}

# pip compares the checksum before it unpacks anything, and refuses every other file.
install_uv() {
    local folder
    folder=$(mktemp -d)
    if ! python3 -m pip --version >/dev/null 2>&1; then
        sudo apt-get update -qq
        sudo apt-get install -y -qq python3-pip >/dev/null
    fi
    echo "uv==$uv --hash=sha256:$uv_sha256" >"$folder/requirements"
    python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --require-hashes \
        --target "$folder/uv" --requirement "$folder/requirements"
    mkdir -p "$HOME/.local/bin"
    install -m 755 "$folder/uv/bin/uv" "$HOME/.local/bin/uv"
    rm -rf "$folder"
}

install_packages() {
    local wanted
    wanted=$(cat "$setup/pyproject.toml" "$setup/constraints.txt" | sha256sum | cut -d' ' -f1)
    if [ "$(cat "$environment/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    if [ "$("$HOME/.local/bin/uv" --version 2>/dev/null | cut -d' ' -f2)" != "$uv" ]; then
        install_uv
    fi
    "$HOME/.local/bin/uv" venv --quiet --clear --python "$python" "$environment"
    # The dependencies alone: tlray itself arrives with each job, in its working directory.
    "$HOME/.local/bin/uv" pip install --quiet --no-cache --python "$environment/bin/python" \
        --requirements "$setup/pyproject.toml" --constraints "$setup/constraints.txt"
    # Written last: its presence means that the rest is whole.
    echo "$wanted" >"$environment/installed"
}

disk=$(local_disk)
if [ -n "$disk" ]; then
    caches_on "$disk"
elif [ ! -e "$HOME/.cache" ]; then
    rm -f "$HOME/.cache" # where the image was made of a node with a disk: a link to nothing
fi
mkdir -p "$HOME/.cache/ray-spill"
install_packages
line='export PATH=$HOME/tlray-env/bin:$PATH'
grep -qxF "$line" "$HOME/.bashrc" || echo "$line" >>"$HOME/.bashrc"
echo "ready: packages in $environment, caches in $(readlink -f "$HOME/.cache")"
