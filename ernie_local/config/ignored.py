"""The rule for keys of config.json that nobody reads.

A key passes unread only if (1) it stands in one of the lists below, each of settings that cannot change
what the model computes at inference: how it was trained, how another program ran it, what a caller wants
returned; or (2) it starts with an underscore and names no part of the model: libraries keep their private
notes so; or (3) its value is the one that means "not used", in a list below or null. Every other key is
refused by name, in `keys.Keys.finish`.
"""

from __future__ import annotations

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
    pp_data_balance initializer_factor pad_to_multiple_of
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

# Parts that transformers gives to any model, with the value for a model that has not got them.
_UNUSED: dict[str, object] = {"add_cross_attention": False, "pruned_heads": {}, "tie_encoder_decoder": False}

_IGNORED = frozenset(f"{_LIBRARY} {_GENERATION} {_TRAINING} {_RUNTIME}".split())

# Parts of a key's name, and what a reader of the message should think of.
_SMELLS = {
    "quant": "quantized weights",
    "expert": "the experts",
    "moe": "the experts",
    "router": "the router",
    "routing": "the router",
    "gate": "the router",
    "topk": "the router",
    "rope": "the position encoding",
    "rotary": "the position encoding",
    "freq": "the position encoding",
    "position": "the position encoding",
    "attn": "attention",
    "attention": "attention",
    "head": "attention",
    "window": "attention",
    "kv": "attention",
    "norm": "the norms",
    "bias": "the weights",
    "layer": "the layers",
    "scale": "the computation",
    "cap": "the computation",
}


def is_ignored(key: str, value: object) -> bool:
    """Whether `key` with this value cannot change what the model computes at inference."""
    if value is None or (key in _UNUSED and value == _UNUSED[key]):
        return True
    return key in _IGNORED or (key.startswith("_") and smells_of_the_model(key) is None)


def smells_of_the_model(key: str) -> str | None:
    """The part of the model that the name of an unknown key speaks of, in words; None if none."""
    lowered = key.lower()
    return next((part for smell, part in _SMELLS.items() if smell in lowered), None)
