#!/usr/bin/env bash
# Builds kernels_test.cpp and runs it: with the address and undefined behaviour sanitizers here, and, where a cross
# compiler is there, for 64-bit ARM under qemu-user. What is not there is named, not skipped in silence.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out="$(mktemp -d)"
trap 'rm -rf "$out"' EXIT

common=(block_attention cpu_features decode_ops expert_page kernels_scalar low_rank packed_attention packed_experts packed_linear packed_rows quantize_ops
        runtime thread_pool tokens)

# build COMPILER DEFINITIONS FLAGS... ; kernel files are given as NAME:FLAGS
build() {
    local compiler="$1" flags="$3 ${2//ERNIE/-DERNIE}" objects=() part
    shift 3
    for part in "${common[@]/%/:}" "$@"; do
        # shellcheck disable=SC2086  # flags are words
        "$compiler" -std=c++17 -ffp-contract=off -fno-trapping-math $flags ${part#*:} -c "../${part%%:*}.cpp" -o "$out/${part%%:*}.o" &
        objects+=("$out/${part%%:*}.o")
    done
    wait
    # shellcheck disable=SC2086
    "$compiler" -std=c++17 -ffp-contract=off -fno-trapping-math $flags kernels_test.cpp "${objects[@]}" -o "$out/kernels_test" -pthread
}

if [ "$(uname -m)" = x86_64 ]; then
    build c++ "ERNIE_LOCAL_KERNELS_X86 ERNIE_LOCAL_KERNELS_AVXVNNI" "-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all" \
        "kernels_avx2:-mavx2 -mfma -mf16c" \
        "kernels_avxvnni:-mavx2 -mfma -mf16c -mavxvnni" \
        "kernels_avx512:-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
    echo "with sanitizers:"
    "$out/kernels_test"
fi

if command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null; then
    rm -f "$out"/*
    build aarch64-linux-gnu-g++ "ERNIE_LOCAL_KERNELS_ARM ERNIE_LOCAL_KERNELS_I8MM" "-O2 -static" \
        "kernels_neon:-march=armv8.2-a+dotprod" \
        "kernels_neon_i8mm:-march=armv8.2-a+dotprod+i8mm"
    echo "64-bit ARM, emulated, with and without i8mm, and without dot products:"
    for cpu in "max: neon_i8mm neon scalar" "neoverse-n1: neon scalar" "cortex-a72: scalar"; do
        qemu-aarch64 -cpu "${cpu%%:*}" "$out/kernels_test" | tee "$out/says"
        grep -qxF "kernels agree:${cpu#*:}" "$out/says" || { echo "on ${cpu%%:*} the sets should be${cpu#*:}" && exit 1; }
    done
else
    echo "64-bit ARM: not tried, aarch64-linux-gnu-g++ or qemu-aarch64 is missing (Debian: g++-aarch64-linux-gnu qemu-user)"
fi
