#!/bin/sh
# Prints the GPUs of this machine or container for Spark's resource discovery:
#   {"name": "gpu", "addresses": ["0", "1"]}
# Without a GPU it prints the reason on standard error and exits with 1, so no worker or executor starts here.
#
# An address is one of these:
# - If CUDA_VISIBLE_DEVICES is set: an entry of it, unchanged. CUDA counts within that list, and a task looks its
#   address up in it. An index from 0 would be ambiguous: in "1,2", is 1 the first or the second?
# - If a GPU is split (MIG): the UUID of each MIG device and of each GPU that is not split. CUDA shows a process at
#   most one MIG device and then counts from 0 again, so an index is ambiguous. A GPU in MIG mode without MIG
#   devices can run nothing and is left out.
# - Otherwise: the index that nvidia-smi prints. CUDA may count in another order, but over the same range, so each
#   index is one GPU.
set -euf

fail() {
    printf 'discover_gpus.sh: %s\n' "$1" >&2
    exit 1
}

command -v nvidia-smi >/dev/null ||
    fail "nvidia-smi is not in PATH: install NVIDIA's driver, or start the container with its GPUs"
gpus=$(nvidia-smi --query-gpu=index,uuid,mig.mode.current --format=csv,noheader 2>&1) ||
    fail "nvidia-smi failed: $gpus"

# A line looks like this: 0, GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77, Disabled
if printf '%s\n' "$gpus" | grep -q '^[0-9]*, GPU-.*, Enabled'; then
    devices=$(nvidia-smi -L 2>&1) || fail "nvidia-smi -L failed: $devices"
    # A line looks like this:   MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
    devices=$(printf '%s\n' "$devices" | sed -n 's/^ *MIG .*(UUID: \(MIG-[^)]*\)).*/\1/p')
    unsplit=$(printf '%s\n' "$gpus" | sed -n '/, Enabled/d; s/^[0-9]*, \(GPU-[^,]*\),.*/\1/p')
    addresses="$devices $unsplit"
    names=$addresses
else
    addresses=$(printf '%s\n' "$gpus" | sed -n 's/^\([0-9]*\), GPU-.*/\1/p')
    names="$addresses $(printf '%s\n' "$gpus" | sed -n 's/^[0-9]*, \(GPU-[^,]*\),.*/\1/p')"
fi
# Unquoted on purpose, here and below: each word is a name.
# shellcheck disable=SC2086
set -- $names
names=$*
[ -n "$names" ] || fail "nvidia-smi lists no GPU that CUDA can use; it says: $gpus"

# Succeeds if $1 is one of the names or, as CUDA allows, the beginning of a UUID.
is_name() {
    for name in $names; do
        case $1 in
        "$name") return 0 ;;
        GPU-?* | MIG-?*) case $name in "$1"*) return 0 ;; esac ;;
        esac
    done
    return 1
}

if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    addresses=
    IFS=,
    # shellcheck disable=SC2086
    set -- $CUDA_VISIBLE_DEVICES
    unset IFS
    for entry in "$@"; do
        entry=$(printf '%s' "$entry" | tr -d '[:space:]')
        [ -z "$entry" ] || is_name "$entry" ||
            fail "CUDA_VISIBLE_DEVICES is '$CUDA_VISIBLE_DEVICES', but '$entry' is none of: $names"
        addresses="$addresses${entry:+ $entry}"
    done
    [ -n "$addresses" ] || fail "CUDA_VISIBLE_DEVICES is set and names no GPU: unset it, or name some of: $names"
fi

printf '{"name": "gpu", "addresses": ['
separator=
for address in $addresses; do
    printf '%s"%s"' "$separator" "$address"
    separator=', '
done
printf ']}\n'
