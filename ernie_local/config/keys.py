"""Reads one JSON object of config.json strictly: types, ranges, and no key left unread.

`Keys.finish` refuses every key that was not read, except:

1. a key in one of the lists below, which cannot change what the model computes at inference: it says how the
   model was trained, how another program ran it, or what a caller wants returned;
2. a key that starts with an underscore and names no part of the model: libraries keep private notes there;
3. a key whose value means "not used": null, or the one in _UNUSED.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from ernie_local.errors import ModelUnusable
from ernie_local.strict_json import show

LARGEST_SIZE = 1 << 24  # above any real size
LARGEST_COUNT = 1 << 12  # the same for layers, and for experts in a bank
_REPORT_HINT = "use a checkpoint in the published layout, or report the key and the model's name"

# What transformers writes or once wrote into any model's config.json.
_LIBRARY = """
    architectures auto_map chunk_size_feed_forward custom_pipelines dtype finetuning_task id2label
    is_decoder is_encoder_decoder label2id name_or_path num_labels pad_token_id cls_token_id sep_token_id
    mask_token_id unk_token_id decoder_start_token_id problem_type return_dict task_specific_params
    tokenizer_class torch_dtype torchscript transformers_version transformers_weights use_bfloat16
    use_cache initializer_range prefix output_attentions output_hidden_states attn_implementation
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal
    experts_implementation _experts_implementation _experts_implementation_internal
    tf_legacy_loss unsloth_version unsloth_fixed model_max_length gradient_checkpointing
"""

# Settings of text generation, which older versions kept in config.json.
_GENERATION = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size encoder_repetition_penalty
    epsilon_cutoff eta_cutoff exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id
    length_penalty max_length max_new_tokens min_length min_p no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_scores
    remove_invalid_values repetition_penalty return_dict_in_generate suppress_tokens target_lookbehind
    temperature top_k top_p typical_p
"""

# Losses, dropout, recomputation and load balancing: training only.
_TRAINING = """
    attention_dropout attention_probs_dropout_prob hidden_dropout_prob moe_dropout_prob
    moe_all_to_all_dropout moe_aux_loss_lambda moe_z_loss_lambda moe_orthogonal_loss_lambda
    moe_group_orthogonal_loss moe_capacity moe_reverse_token_drop moe_with_send_router_loss
    router_aux_loss_coef output_router_logits global_aux_loss sinkhorn_2gate sinkhorn_temp
    enable_delay_scale_loss num_acc_steps dpo_config ignored_index ignore_index token_balance_loss
    token_balance_seqlen multi_token_pred_lambda mtp_loss_scaling_factor enable_mtp_magic_send
    use_recompute_mtp recompute recompute_granularity recompute_use_reentrant refined_recompute
    skip_recompute_ops use_recompute use_recompute_attn use_recompute_moe use_recompute_lm_head
    use_recompute_loss_fn use_recompute_resampler vit_num_recompute_layers vit_first_fwd_bsz
    micro_batch_size max_sequence_length modality_detach moe_layer_feed_fake_token using_precision_check
    pp_data_balance initializer_factor pad_to_multiple_of loss_subbatch_seqlen
"""

# How another runtime computed the same numbers: fused kernels, parallelism, dispatch of tokens.
_RUNTIME = """
    attn_sep cachekv_quant disable_ffn_model_parallel disable_pipeline_recompute fuse_attn_ffn
    fuse_gate_detach_matmul fuse_linear fuse_ln fuse_rms_norm fuse_rope fuse_softmax_mask fuse_swiglu
    moe_dense_experts_token_type_id moe_fuse_experts moe_group moe_multimodal_dispatch_use_allgather
    moe_use_size_all2all pp_seg_method resampler_fuse_rms_norm sequence_parallel tensor_parallel_degree
    tensor_parallel_output tensor_parallel_rank use_ep_comm_overlap use_fast_ln use_flash_attention
    use_flash_attn use_flash_attn_with_mask use_fused_head_and_loss_fn use_mem_eff_attn use_pure_fp16
    use_sparse_flash_attn use_sparse_head_and_loss_fn use_var_len_flash_attn virtual_pp_degree
    max_text_id weight_share_add_bias
"""

# Parts that transformers' configs can have, with the value for a model without them.
_UNUSED: dict[str, object] = {"add_cross_attention": False, "pruned_heads": {}, "tie_encoder_decoder": False}

_IGNORED = frozenset(f"{_LIBRARY} {_GENERATION} {_TRAINING} {_RUNTIME}".split())

# Parts of the model, and what a key that has to do with one of them may contain.
_SUBJECTS = {
    "quantized weights": ("quant",),
    "the experts": ("expert", "moe"),
    "the router": ("router", "routing", "gate", "topk"),
    "the position encoding": ("rope", "rotary", "freq", "position"),
    "attention": ("attn", "attention", "head", "window", "kv"),
    "the norms": ("norm",),
    "the weights": ("bias",),
    "the layers": ("layer",),
    "the computation": ("scale", "cap"),
}


class Keys:
    """Reads keys of `raw`; `where` and `prefix` name the file and the object in messages.

    A key that is absent or null takes the default. ModelUnusable, naming the key, where there is no default.
    Readers of other files derive from it, with their own harmless keys and reasons.
    """

    harmless_keys: ClassVar[frozenset[str]] = _IGNORED
    unusable: ClassVar[str] = "the model cannot be built from this value, or would give wrong answers"
    hint: ClassVar[str] = _REPORT_HINT

    def __init__(self, raw: Mapping[str, object], where: str, prefix: str = "") -> None:
        self._raw, self.where, self._prefix = raw, where, prefix
        self._read: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether `key` is there and not null. Does not count as reading it."""
        return self._raw.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether `key` is there and null, which sometimes differs from absent."""
        return key in self._raw and self._raw[key] is None

    def value(self, key: str) -> object:
        """The unchecked value, None if absent."""
        self._read.add(key)
        return self._raw.get(key)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST_SIZE) -> int:
        """An integer from `low` to `high`."""
        return self._checked_integer(key, self._value_or(key, default), low, high)

    def optional_id(self, key: str) -> int | None:
        """A token id, or None."""
        return None if self.value(key) is None else self.integer(key, low=0)

    def ids(self, key: str) -> tuple[int, ...]:
        """Token ids written as one number or as a list; empty if absent."""
        value = self.value(key)
        if isinstance(value, list | tuple):
            return self.integers(key)
        return () if value is None else (self.integer(key, low=0),)

    def check_ids(self, vocab_size: int, *more: str) -> None:
        """Refuse an id beyond the vocabulary under any `..._token_id`, used or not, and under `more`."""
        for key, value in self._raw.items():
            if value is None or not (key.endswith(("_token_id", "_token_ids")) or key in more):
                continue
            for token_id in value if isinstance(value, list | tuple) else (value,):
                if not 0 <= self._checked_integer(key, token_id, -LARGEST_SIZE, LARGEST_SIZE) < vocab_size:
                    problem = f"is {token_id}, the vocabulary has the ids 0 to {vocab_size - 1}"
                    raise self.refuse(key, problem)

    def number(self, key: str, default: float | None = None, *, above_zero: bool = False) -> float:
        """A finite number, zero or above, or only above."""
        value = self._value_or(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(key, f"is {show(value)}, a number is expected")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not 0.0 <= number < math.inf:
            raise self.refuse(key, f"is {show(value)}, a finite number from 0 up is expected")
        if above_zero and number == 0.0:
            raise self.refuse(key, f"is {show(value)}, a finite number above 0 is expected")
        return number

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """True or false."""
        value = self._value_or(key, default)
        if not isinstance(value, bool):
            raise self.refuse(key, f"is {show(value)}, true or false is expected")
        return value

    def integers(self, key: str, length: int | None = None, low: int = 0) -> tuple[int, ...]:
        """A list of integers, of exactly `length` if given."""
        values = self.sequence(key)
        if length is not None and len(values) != length:
            raise self.refuse(key, f"has {len(values)} entries, {length} are expected")
        return tuple(self._checked_integer(key, value, low, LARGEST_SIZE) for value in values)

    def sequence(self, key: str) -> Sequence[object]:
        """A JSON list."""
        value = self._value_or(key, None)
        if not isinstance(value, list | tuple):
            raise self.refuse(key, f"is {show(value)}, a list is expected")
        return value

    def section(self, key: str, default: Mapping[str, object] | None = None) -> Keys:
        """A JSON object of settings, to be read and finished on its own."""
        return Keys(self.mapping(key, default), self.where, f"{self._prefix}{key}.")

    def mapping(self, key: str, default: Mapping[str, object] | None = None) -> Mapping[str, object]:
        """A JSON object whose keys are data."""
        value = self._value_or(key, default)
        if not isinstance(value, Mapping):
            raise self.refuse(key, f"is {show(value)}, an object is expected")
        return value

    def alias(self, key: str, other: str) -> str:
        """The one of two names under which the value is given; different values under both are refused."""
        if self.has(key) and self.has(other) and self._raw[key] != self._raw[other]:
            raise self.refuse(key, f"is {show(self._raw[key])}, but {other} is {show(self._raw[other])}")
        self._read |= {key, other}
        return other if self.has(other) and not self.has(key) else key

    def only(self, key: str, *implemented: object) -> None:
        """Refuse a value that is neither absent, null nor one of those that this code implements."""
        value = self.value(key)
        # Types too, or true would pass for 1.
        if value is None or any(type(value) is type(one) and value == one for one in implemented):
            return
        expected = " or ".join(show(one) for one in implemented) or "null"
        raise self.refuse(key, f"is {show(value)}, this code implements only {expected}")

    def all_are(self, key: str, implemented: str) -> None:
        """Refuse what is neither absent, null nor a list of nothing but the one value that is implemented."""
        for value in self.sequence(key) if self.value(key) is not None else ():
            if value != implemented:
                raise self.refuse(key, f"holds {show(value)}, this code implements only {show(implemented)}")

    def same_as(self, key: str, expected: int, meaning: str) -> None:
        """Refuse a value that is neither absent, null nor equal to the one that it repeats."""
        value = self.value(key)
        if value is not None and (isinstance(value, bool) or value != expected):
            raise self.refuse(key, f"is {show(value)}, but {meaning} is {expected}")

    def finish(self) -> None:
        """Refuse, by name, the first key that was neither read nor is known to be harmless."""
        for key, value in self._raw.items():
            if key in self._read or _is_harmless(key, value, self.harmless_keys):
                continue
            subject = _subject(key)
            raise ModelUnusable(
                f"{self.where}: unknown key {show(self._prefix + key)} with value {show(value)}",
                f"its name has to do with {subject}, so ignoring it could give wrong answers"
                if subject
                else "a setting that is not understood could give wrong answers",
                self.hint,
            )

    def refuse(self, key: str, problem: str) -> ModelUnusable:
        """The error for `key`, to be raised by the caller: 'config.json: KEY PROBLEM'."""
        return ModelUnusable(
            f"{self.where}: {self._prefix}{key} {problem}",
            self.unusable,
            self.hint,
        )

    def _value_or(self, key: str, default: object) -> object:
        given = self.value(key)
        value = default if given is None else given
        if value is None:
            raise self.refuse(key, "is missing")
        return value

    def _checked_integer(self, key: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.refuse(key, f"is {show(value)}, an integer is expected")
        if not low <= value <= high:
            raise self.refuse(key, f"is {show(value)}, outside of {low} to {high}")
        return value


def _is_harmless(key: str, value: object, harmless_keys: frozenset[str]) -> bool:
    """Whether `key` with this value cannot change what the model computes at inference."""
    if value is None or (key in _UNUSED and value == _UNUSED[key]):
        return True
    return key in harmless_keys or (key.startswith("_") and _subject(key) is None)


def _subject(key: str) -> str | None:
    """The part of the model that the name of an unknown key seems to be about; None if there is none."""
    return next(
        (part for part, marks in _SUBJECTS.items() if any(mark in key.lower() for mark in marks)), None
    )
