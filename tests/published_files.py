"""The values of the small files that Baidu and others published: each form of config.json, image settings."""

from __future__ import annotations

from typing import Any

Raw = dict[str, Any]

_REMOTE_CODE = "modeling_ernie4_5_vl.Ernie4_5_VLMoeForConditionalGeneration"
# config.json of 28B-A3B-Base-PT, 28B-A3B-PT and 28B-A3B-Thinking.
PT_28B: Raw = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "auto_map": {
        "AutoConfig": "configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig",
        "AutoModel": _REMOTE_CODE,
        "AutoModelForCausalLM": _REMOTE_CODE,
    },
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "im_patch_id": 100295,
    "image_start_token_id": 101304,
    "image_end_token_id": 101305,
    "video_start_token_id": 101306,
    "video_end_token_id": 101307,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5_moe_vl",
    "moe_capacity": [128, 128, 128],
    "moe_gate": "topk",
    "moe_intermediate_size": [1536, 512],
    "moe_k": 6,
    "moe_layer_end_index": [29, 28],
    "moe_layer_interval": 1,
    "moe_layer_start_index": [1, 1],
    "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
    "moe_num_experts": [64, 64],
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "pixel_hidden_size": 1280,
    "rms_norm_eps": 1e-05,
    "rope_3d": True,
    "rope_theta": 500000,
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "vocab_size": 103424,
    "tie_word_embeddings": True,
    "use_cache": True,
    "use_rmsnorm": True,
    "use_bias": False,
    "rope_scaling": {"type": "default", "mrope_section": [22, 22, 20]},
    "vision_config": {
        "attn_implementation": "eager",
        "depth": 32,
        "embed_dim": 1280,
        "hidden_act": "quick_gelu",
        "hidden_size": 1280,
        "in_channels": 3,
        "in_chans": 3,
        "mlp_ratio": 4,
        "num_heads": 16,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "vit_first_fwd_bsz": 128,
        "attn_sep": True,
    },
}
_NOT_IN_PADDLE = {
    "auto_map", "torch_dtype", "pad_token_id", "bos_token_id", "eos_token_id", "im_patch_id",
    "image_start_token_id", "image_end_token_id", "video_start_token_id", "video_end_token_id",
    "max_position_embeddings", "rope_scaling",
}  # fmt: skip
PADDLE_28B: Raw = {key: value for key, value in PT_28B.items() if key not in _NOT_IN_PADDLE} | {
    "dtype": "bfloat16"
}
# One number for both modalities, no end, no shared experts, no ids, a head of its own.
PADDLE_424B: Raw = {
    key: value
    for key, value in PADDLE_28B.items()
    if key not in ("moe_layer_end_index", "moe_num_shared_experts")
} | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 54,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "moe_layer_start_index": 3,
    "moe_k": 8,
    "moe_intermediate_size": [3584, 1536],
    "moe_capacity": [64, 64, 64],
    "freq_allocation": 20,
    "loss_subbatch_seqlen": 8192,
    "tie_word_embeddings": False,
}
# tiny-random/ernie-4.5-vl-moe, saved by the classes of 424B-A47B-PT with every default of theirs.
_424B_CODE = "baidu/ERNIE-4.5-VL-424B-A47B-PT--"
_OFF = """
    add_tail_layers cachekv_quant disable_ffn_model_parallel fuse_gate_detach_matmul fuse_linear fuse_ln
    fuse_rms_norm fuse_rope fuse_softmax_mask fuse_swiglu global_aux_loss modality_detach moe_fuse_experts
    moe_group_experts moe_layer_feed_fake_token moe_num_attn_experts moe_reverse_token_drop
    moe_use_size_all2all moe_use_token_type_bias output_attentions recompute recompute_use_reentrant
    resampler_fuse_rms_norm tie_word_embeddings token_balance_loss token_balance_seqlen use_bias
    use_ep_comm_overlap use_fast_ln use_fused_head_and_loss_fn use_recompute_lm_head use_recompute_loss_fn
    use_recompute_moe use_recompute_resampler use_sparse_head_and_loss_fn use_var_len_flash_attn
    using_precision_check
"""
_ON = """
    enable_delay_scale_loss fuse_attn_ffn moe_group_orthogonal_loss moe_norm_gate_logits moe_use_aux_free
    moe_use_hard_gate rope_3d sinkhorn_2gate use_cache use_flash_attention use_rmsnorm use_sparse_flash_attn
    use_temporal_conv weight_share_add_bias
"""
_NULL = "dpo_config max_sequence_length max_text_id transformers_version"
TINY_RANDOM: Raw = {
    "architectures": ["Ernie4_5_VLMoeForConditionalGeneration"],
    "auto_map": {"AutoConfig": f"{_424B_CODE}configuration_ernie4_5_vl.Ernie4_5_VLMoEConfig"},
    "attention_probs_dropout_prob": 0.0,
    "bos_token_id": 1,
    "compression_ratio": 1.0,
    "dtype": "bfloat16",
    "eos_token_id": 2,
    "freq_allocation": 20,
    "hidden_act": "silu",
    "hidden_dropout_prob": 0.0,
    "hidden_size": 8,
    "ignored_index": -100,
    "im_patch_id": 100295,
    "initializer_range": 0.20411393876950196,
    "intermediate_size": 32,
    "loss_subbatch_seqlen": 8192,
    "max_position_embeddings": 131072,
    "micro_batch_size": -1,
    "mm_vocab_size": 0,
    "model_type": "ernie4_5_moe_vl",
    "moe_all_to_all_dropout": 0.0,
    "moe_aux_loss_lambda": 0.01,
    "moe_capacity": [64, 64, 64],
    "moe_dense_experts_token_type_id": 3,
    "moe_dropout_prob": 0.0,
    "moe_gate": "topk",
    "moe_gate_act": "softmax",
    "moe_group": "world",
    "moe_intermediate_size": [32, 32],
    "moe_k": 8,
    "moe_layer_end_index": 1,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_multimodal_dispatch_use_allgather": "v2-alltoall-unpad-text",
    "moe_num_experts": [32, 32],
    "moe_num_shared_experts": 0,
    "moe_orthogonal_loss_lambda": 0.01,
    "moe_z_loss_lambda": 0.0001,
    "num_acc_steps": 1,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "pixel_hidden_size": 16,
    "pp_seg_method": "layer:ErnieDecoderLayer|EmptyLayer",
    "recompute_granularity": "core_attn",
    "refined_recompute": {},
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"mrope_section": [22, 22, 20], "type": "default"},
    "rope_theta": 500000,
    "sinkhorn_temp": 0.03,
    "skip_recompute_ops": {},
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "tensor_parallel_degree": 1,
    "video_end_token_id": 101307,
    "video_start_token_id": 101306,
    "vision_config": {
        "attn_implementation": "eager",
        "attn_sep": True,
        "depth": 2,
        "embed_dim": 16,
        "hidden_act": "quick_gelu",
        "hidden_size": 16,
        "in_channels": 3,
        "in_chans": 3,
        "mlp_ratio": 4,
        "model_type": "DFNRope_vision_transformer",
        "num_heads": 1,
        "patch_size": 14,
        "pp_data_balance": False,
        "recompute": False,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "vit_first_fwd_bsz": 128,
        "vit_num_recompute_layers": 10000,
    },
    "vocab_size": 103424,
    **dict.fromkeys(_OFF.split(), False),
    **dict.fromkeys(_ON.split(), True),
    **dict.fromkeys(_NULL.split()),
}
TEXT_21B: Raw = {
    "architectures": ["Ernie4_5_MoeForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5_moe",
    "moe_capacity": [64, 64, 64],
    "moe_gate": "topk",
    "moe_intermediate_size": 1536,
    "moe_k": 6,
    "moe_layer_interval": 1,
    "moe_layer_start_index": 1,
    "moe_num_experts": 64,
    "moe_num_shared_experts": 2,
    "moe_use_aux_free": True,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "num_nextn_predict_layers": 1,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "vocab_size": 103424,
}
TEXT_300B: Raw = TEXT_21B | {
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "moe_intermediate_size": 3584,
    "moe_k": 8,
    "moe_layer_start_index": 3,
    "moe_num_shared_experts": 0,
    "num_attention_heads": 64,
    "num_hidden_layers": 54,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
TEXT_03B: Raw = {
    "architectures": ["Ernie4_5_ForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 131072,
    "model_type": "ernie4_5",
    "num_attention_heads": 16,
    "num_hidden_layers": 18,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": True,
    "vocab_size": 103424,
}
# preprocessor_config.json of 28B-A3B-Base-PT and 28B-A3B-Thinking. Baidu publishes no processor_config.json.
PREPROCESSOR: Raw = {
    "auto_map": {
        "AutoProcessor": "processing_ernie4_5_vl.Ernie4_5_VLProcessor",
        "AutoImageProcessor": "processing_ernie4_5_vl.Ernie4_5_VLImageProcessor",
    },
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 224, "width": 224},
    "min_pixels": 3136,
    "max_pixels": 4816896,
    "processor_class": "Ernie4_5_VLProcessor",
    "image_processor_type": "Ernie4_5_VLImageProcessor",
}
PADDLE_PREPROCESSOR: Raw = {key: value for key, value in PREPROCESSOR.items() if key != "auto_map"} | {
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_processor_type": "CLIPImageProcessor",
    "processor_class": "CLIPProcessor",
}
# tiny-random again, which has both files.
TINY_RANDOM_PREPROCESSOR: Raw = PREPROCESSOR | {
    "merge_size": 2,
    "patch_size": 14,
    "size": {"max_pixels": 4816896, "min_pixels": 3136},
    "temporal_conv_size": 2,
}
TINY_RANDOM_PROCESSOR: Raw = {
    "auto_map": {"AutoProcessor": f"{_424B_CODE}processing_ernie4_5_vl.Ernie4_5_VLProcessor"},
    "image_max_pixels": 4842768,
    "image_min_pixels": 3136,
    "processor_class": "Ernie4_5_VLProcessor",
    "spatial_conv_size": 2,
    "temporal_conv_size": 2,
    "video_max_pixels": 937664,
    "video_min_pixels": 234416,
}
