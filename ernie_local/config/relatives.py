"""Recognizes published ERNIE 4.5 models that this code does not run, and says what they are and what to take.

They lie beside the right repositories and are downloaded by mistake. A message about a key would not help.
"""

from __future__ import annotations

from collections.abc import Mapping

from ernie_local.errors import ModelUnusable

_OTHERS = {"paddleocr_vl": "PaddleOCR-VL, which has another vision tower"}
# The repositories with PyTorch weights, by hidden_size of the model; those of models that read only text.
_REPOSITORIES = {
    2560: "hf:baidu/ERNIE-4.5-VL-28B-A3B-PT or hf:baidu/ERNIE-4.5-VL-28B-A3B-Thinking",
    8192: "hf:baidu/ERNIE-4.5-VL-424B-A47B-PT",
}
_TEXT_ONLY = {
    1024: "hf:baidu/ERNIE-4.5-0.3B-PT",
    2560: "hf:baidu/ERNIE-4.5-21B-A3B-PT or hf:baidu/ERNIE-4.5-21B-A3B-Thinking",
    8192: "hf:baidu/ERNIE-4.5-300B-A47B-PT",
}
# Every published file has these, except that of 28B-A3B-Paddle, which has none.
_NOT_IN_PADDLE_FILES = (
    "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "im_patch_id", "auto_map",
)  # fmt: skip


def check_relatives(raw: Mapping[str, object], where: str) -> None:
    """ModelUnusable for the config.json of PaddleOCR-VL, or of 28B-A3B-Paddle."""
    model_type = raw.get("model_type")
    if isinstance(model_type, str) and model_type in _OTHERS:
        raise ModelUnusable(
            f"{where}: model_type is '{model_type}', {_OTHERS[model_type]}",
            "it is not supported: only ERNIE 4.5 models can be run",
            f"take {_REPOSITORIES[2560]}, or nano, which comes with the package",
        )
    if model_type == "ernie4_5_moe_vl" and all(raw.get(key) is None for key in _NOT_IN_PADDLE_FILES):
        keys = f"{_NOT_IN_PADDLE_FILES[0]} and the token ids are missing"
        raise paddle_format(f"{where}: {keys}, as in a -Paddle repository", raw.get("hidden_size"))


def paddle_format(what: str, hidden_size: object, *, reads_images: bool = True) -> ModelUnusable:
    """The error for a -Paddle repository. what: how it shows. hidden_size, reads_images: of the model."""
    repositories = _REPOSITORIES if reads_images else _TEXT_ONLY
    known = repositories.get(hidden_size) if isinstance(hidden_size, int) else None
    return ModelUnusable(
        what,
        "its weights are in another format, with other names, matrices transposed and some of them joined",
        f"take the repository that ends in -PT or -Thinking instead: {known or repositories[2560]}",
    )
