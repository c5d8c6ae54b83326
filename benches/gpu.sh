#!/usr/bin/env bash
# One whole round on a GPU from a prebuilt binary (kernels embedded): self-test, memory and race checks where compute-sanitizer
# is, benchmarks, and the PyTorch peers on the same shapes. Everything lands in one folder, failures included.
#
# usage: benches/gpu.sh BINARY OUT [PYTHON]      COMMIT=... says what was built, if this is no checkout
#                                                PARTS=bench|peers: only the parts whose names match
set -uo pipefail
binary=$(realpath "$1") out=$2 python=${3:-python3}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
failed=0

# Runs a command into $out/NAME.txt (stdout into $out/NAME.json if it says --json) and goes on whatever comes of it.
part() {
    local name=$1 began=$SECONDS rc=0
    shift
    [[ $name =~ ${PARTS:-.} ]] || return 0
    case " $* " in
        *" --json "*) "$@" >"$out/$name.json" 2>"$out/$name.txt" || rc=$? ;;
        *) "$@" >"$out/$name.txt" 2>&1 || rc=$? ;;
    esac
    printf '%-24s exit %-3d %4d s\n' "$name" "$rc" $((SECONDS - began)) | tee -a "$out/parts.txt"
    [ "$rc" -eq 0 ] || failed=1
}

{
    echo "date: $(date -u +%FT%TZ)"
    echo "commit: ${COMMIT:-$(git -C "$here" rev-parse HEAD 2>/dev/null || echo unknown)}"
    echo "command: $0 $*"
    nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv
} >"$out/about.txt" 2>&1

part selftest "$binary" selftest --device cuda
if command -v compute-sanitizer >/dev/null; then
    part memcheck compute-sanitizer --tool memcheck --error-exitcode 9 "$binary" selftest --device cuda
    part racecheck compute-sanitizer --tool racecheck --error-exitcode 9 "$binary" selftest --device cuda
fi
part bench-kernels "$binary" bench kernels --device cuda --json
part bench-step "$binary" bench step --device cuda --json
part bench-decode "$binary" bench decode --device cuda --json
for group in attention decode_attention memory_bound grouped_logprob training_step decode; do
    part "peers-$group" timeout 580 "$python" "$here/peers/gpu_peers.py" --only "$group"
done
exit "$failed"
