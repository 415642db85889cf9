"""Write a GGUF file with ERNIE-4.5-VL-28B-A3B's text architecture and random quantized weights.

    pip install gguf
    python benchmarks/llama_cpp_model.py OUT.gguf --experts Q4_K --dense Q8_0

llama.cpp runs no ERNIE-4.5-VL, but its ernie4_5-moe text model does the same work for each token.
"""

from __future__ import annotations

import argparse
import math

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QuantType

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 2560, 28, 20, 4, 128
DENSE_INNER, EXPERT_INNER, EXPERTS, TOP_K, SHARED, VOCAB = 12288, 1536, 64, 6, 2, 103424

# Weights and bytes of a block, and its fp16 scales by offset, such that weights have a mean of about zero.
BLOCKS = {
    QuantType.Q8_0: (32, 34, {0: 0.00027}),
    QuantType.Q4_K: (256, 144, {0: 0.0001, 2: 0.00075}),
    QuantType.Q2_K: (256, 84, {80: 0.002, 82: 0.003}),
    QuantType.Q6_K: (256, 210, {208: 0.00002}),
}


class Writer:
    """The tensors of one file. Blocks repeat after a while: speed does not depend on their values."""

    def __init__(self, out: str) -> None:
        self._file = gguf.GGUFWriter(out, "ernie4_5-moe")
        self._random = np.random.default_rng(0)

    def settings(self) -> None:
        file = self._file
        file.add_context_length(131072)
        file.add_embedding_length(HIDDEN)
        file.add_block_count(LAYERS)
        file.add_feed_forward_length(DENSE_INNER)
        file.add_head_count(HEADS)
        file.add_head_count_kv(KV_HEADS)
        file.add_key_length(HEAD_DIM)
        file.add_value_length(HEAD_DIM)
        file.add_rope_dimension_count(HEAD_DIM)
        file.add_rope_freq_base(500000.0)
        file.add_layer_norm_rms_eps(1e-5)
        file.add_expert_count(EXPERTS)
        file.add_expert_used_count(TOP_K)
        file.add_expert_feed_forward_length(EXPERT_INNER)
        file.add_expert_shared_count(SHARED)
        file.add_expert_shared_feed_forward_length(SHARED * EXPERT_INNER)
        file.add_interleave_moe_layer_step(1)
        file.add_leading_dense_block_count(1)
        file.add_tokenizer_model("llama")
        file.add_token_list(["<unk>", "<s>", "</s>"] + [f"t{index}" for index in range(VOCAB - 3)])
        file.add_token_scores([0.0] * VOCAB)
        file.add_token_types([2, 3, 3] + [1] * (VOCAB - 3))
        file.add_bos_token_id(1)
        file.add_eos_token_id(2)

    def quantized(self, name: str, shape: tuple[int, ...], kind: QuantType) -> None:
        weights, num_bytes, scales = BLOCKS[kind]
        count = math.prod(shape) // weights
        blocks = self._random.integers(0, 256, (min(count, 1 << 16), num_bytes), dtype=np.uint8)
        for offset, value in scales.items():
            blocks[:, offset : offset + 2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)
        data = np.resize(blocks, (*shape[:-1], shape[-1] // weights * num_bytes))
        self._file.add_tensor(name, data, raw_shape=data.shape, raw_dtype=kind)

    def plain(self, name: str, values: np.ndarray) -> None:
        self._file.add_tensor(name, values.astype(np.float32))

    def router(self, name: str) -> None:
        self.plain(f"{name}ffn_gate_inp.weight", self._random.standard_normal((EXPERTS, HIDDEN)) * 0.02)
        self.plain(f"{name}exp_probs_b.bias", np.zeros(EXPERTS))

    def close(self) -> None:
        self._file.write_header_to_file()
        self._file.write_kv_data_to_file()
        self._file.write_tensors_to_file()
        self._file.close()


def write(out: str, experts: QuantType, dense: QuantType) -> None:
    writer = Writer(out)
    writer.settings()
    writer.quantized("token_embd.weight", (VOCAB, HIDDEN), QuantType.Q6_K)  # the head as well
    writer.plain("output_norm.weight", np.ones(HIDDEN))
    for layer in range(LAYERS):
        name = f"blk.{layer}."
        writer.plain(f"{name}attn_norm.weight", np.ones(HIDDEN))
        writer.plain(f"{name}ffn_norm.weight", np.ones(HIDDEN))
        writer.quantized(f"{name}attn_q.weight", (HEADS * HEAD_DIM, HIDDEN), dense)
        writer.quantized(f"{name}attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN), dense)
        writer.quantized(f"{name}attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN), dense)
        writer.quantized(f"{name}attn_output.weight", (HIDDEN, HEADS * HEAD_DIM), dense)
        gated: list[tuple[str, tuple[int, ...], int, QuantType]] = [("", (), DENSE_INNER, dense)]
        if layer > 0:
            writer.router(name)
            gated = [
                ("_exps", (EXPERTS,), EXPERT_INNER, experts),
                ("_shexp", (), SHARED * EXPERT_INNER, dense),
            ]
        for suffix, count, inner, kind in gated:
            writer.quantized(f"{name}ffn_gate{suffix}.weight", (*count, inner, HIDDEN), kind)
            writer.quantized(f"{name}ffn_up{suffix}.weight", (*count, inner, HIDDEN), kind)
            writer.quantized(f"{name}ffn_down{suffix}.weight", (*count, HIDDEN, inner), kind)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("out")
    parser.add_argument("--experts", default="Q4_K", choices=[kind.name for kind in BLOCKS])
    parser.add_argument("--dense", default="Q4_K", choices=[kind.name for kind in BLOCKS])
    arguments = parser.parse_args()
    write(arguments.out, QuantType[arguments.experts], QuantType[arguments.dense])


if __name__ == "__main__":
    main()
