"""Prefill and decode speed of llama.cpp on a GGUF file; the last line is one JSON object.

    pip install llama-cpp-python        # compiles for about ten minutes on two cores
    python benchmarks/llama_cpp_speed.py FILE.gguf --prompt 512 --decode 40 [--no-repack]

By default llama.cpp copies 4-bit weights into a layout of its own: decode gets faster, prefill slower.
--no-repack computes from the mapped file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import llama_cpp
import numpy as np

WARM_TOKENS = 4


def leave_layout() -> None:
    # llama_cpp.Llama does not pass this setting on.
    defaults = llama_cpp.llama_model_default_params

    def changed() -> llama_cpp.llama_model_params:
        params = defaults()
        params.use_extra_bufts = False
        return params

    llama_cpp.llama_cpp.llama_model_default_params = changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("gguf")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-repack", action="store_true")
    arguments = parser.parse_args()
    if arguments.no_repack:
        leave_layout()
    model = llama_cpp.Llama(
        arguments.gguf,
        n_ctx=arguments.prompt + arguments.decode + WARM_TOKENS + 8,
        n_batch=512,
        n_threads=arguments.threads,
        n_threads_batch=arguments.threads,
        verbose=False,
    )
    random = np.random.default_rng(0)

    def seconds_of(count: int) -> float:
        ids = random.integers(3, 100_000, count).tolist()
        start = time.perf_counter()
        model.eval(ids)
        return time.perf_counter() - start

    prefill = []
    for _ in range(3):  # the first one also reads the file
        model.reset()
        prefill.append(arguments.prompt / seconds_of(arguments.prompt))
    decode = [seconds_of(1) for _ in range(arguments.decode + WARM_TOKENS)][WARM_TOKENS:]
    print(json.dumps({"prefill_tok_s": max(prefill[1:]), "decode_tok_s": 1 / statistics.median(decode)}))


if __name__ == "__main__":
    main()
