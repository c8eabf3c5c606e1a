# Sourced by steps that run tests side by side, since most of them wait most of the time. `start NAME COMMAND…` starts one lane,
# `finish` waits for all, shows what each has said, and fails when one has failed.
said=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null || true; rm -rf "$said"' EXIT
names=() pids=()

start() {
    "${@:2}" >"$said/$1" 2>&1 &
    names+=("$1") pids+=($!)
}

finish() {
    local status=0 number
    for number in "${!pids[@]}"; do
        wait "${pids[number]}" || status=1
        echo "-- ${names[number]}"
        cat "$said/${names[number]}"
    done
    names=() pids=()
    return "$status"
}

apart() { # a command with processes, mounts, network and /var/tmp of its own: tests that look at the node don't see another lane
    unshare --mount --pid --fork --kill-child --mount-proc --net --uts --ipc bash -ec '
        mkdir -p /run/netns
        mount -t tmpfs -o mode=755 none /run/netns
        mount -t tmpfs -o mode=1777 none /var/tmp
        ip link set lo up
        exec "$@"' apart "$@"
}
