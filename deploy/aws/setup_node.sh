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
# The wheel of uv on PyPI for x86_64, which is the architecture of cluster.yaml's image. With another version of uv:
# `pip download --no-deps --platform manylinux2014_x86_64 --only-binary=:all: uv==VERSION`, then sha256sum and b2sum -l 256.
uv_wheel=uv-$uv-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
uv_sha256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
uv_address=https://files.pythonhosted.org/packages/3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f

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

# Nothing that was downloaded is run before its checksum is the one above.
install_uv() {
    if [ "$(uname -m)" != x86_64 ]; then
        echo "setup_node.sh: no checksum of uv for $(uname -m) is known: add its wheel above" >&2
        return 1
    fi
    local download
    download=$(mktemp -d)
    curl -LsSf --retry 3 --output "$download/$uv_wheel" "$uv_address/$uv_wheel"
    if ! echo "$uv_sha256  $download/$uv_wheel" | sha256sum --check --status; then
        echo "setup_node.sh: $uv_address/$uv_wheel is not the file that was expected (sha256): nothing is installed" >&2
        rm -rf "$download"
        return 1
    fi
    python3 -m zipfile -e "$download/$uv_wheel" "$download/wheel"
    mkdir -p "$HOME/.local/bin"
    install -m 755 "$download/wheel/uv-$uv.data/scripts/uv" "$HOME/.local/bin/uv"
    rm -rf "$download"
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
