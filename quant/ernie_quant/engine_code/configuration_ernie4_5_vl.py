"""The configuration of ERNIE-4.5-VL in the flat form of config.json, for engines that run code of a model.

Written by ernie-local beside an exported model. It needs transformers 5 and nothing else.
"""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig


class Ernie4_5_VLVisionConfig(PretrainedConfig):
    """Sizes of the vision tower."""

    model_type = "DFNRope_vision_transformer"
    base_config_key = "vision_config"

    def __init__(
        self,
        depth: int = 32,
        embed_dim: int = 1280,
        hidden_size: int = 1280,
        hidden_act: str = "quick_gelu",
        mlp_ratio: float = 4,
        num_heads: int = 16,
        in_channels: int = 3,
        patch_size: int = 14,
        spatial_merge_size: int = 2,
        **others: Any,
    ) -> None:
        self.depth = depth
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.hidden_act = hidden_act
        self.mlp_ratio = mlp_ratio
        self.num_heads = num_heads
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        super().__init__(**others)


class Ernie4_5_VLConfig(PretrainedConfig):
    """Sizes of the whole model: all keys of config.json, and the ones that published files leave out."""

    model_type = "ernie4_5_moe_vl"
    sub_configs = {"vision_config": Ernie4_5_VLVisionConfig}

    def __init__(
        self,
        vision_config: dict[str, Any] | Ernie4_5_VLVisionConfig | None = None,
        use_temporal_conv: bool = True,
        freq_allocation: int = 20,
        rope_theta: float = 500000.0,
        rope_scaling: dict[str, Any] | None = None,
        rope_parameters: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        if not isinstance(vision_config, Ernie4_5_VLVisionConfig):
            vision_config = Ernie4_5_VLVisionConfig(**(vision_config or {}))
        self.vision_config = vision_config
        self.use_temporal_conv = use_temporal_conv
        self.freq_allocation = freq_allocation
        self.rope_theta = rope_theta
        # The parts of a position, which engines take as the mark of a model with positions in time and place.
        self.rope_parameters = {
            "rope_type": "default",
            "rope_theta": rope_theta,
            **{key: value for key, value in (rope_scaling or {}).items() if key != "type"},
            **(rope_parameters or {}),
        }
        super().__init__(**others)
