"""Keeps vision tower and resampler in RAM, and has each stage of them on a GPU while it computes.

Experts give up memory for the largest stage while images are encoded, and have it again afterwards. Stages
come in the order in which they compute, on the stream that computes, so that none overwrites one in use. The
images of a prompt have a stage one after the other, so that all stages are copied once for them.
"""

from __future__ import annotations

import weakref
from functools import partial
from typing import Protocol

import torch

from ernie_local.checkpoint.parts import image_stage
from ernie_local.experts.device import CudaDevice
from ernie_local.loading.image_weights import ImageWeights
from ernie_local.model.ernie import ErnieModel
from ernie_local.sizes import aligned, format_bytes


class WeightLender(Protocol):
    """Who has the memory of the GPU."""

    def lend_for_weights(self, num_bytes: int) -> torch.Tensor:
        """At least (num_bytes,) uint8 of the GPU until `take_weights_back`; DoesNotFit if there is less."""
        ...

    def take_weights_back(self) -> None:
        """What was lent is not used any more by work that is given from now on."""
        ...


class GpuImageWeights:
    """SwappedWeights that compute on a GPU. Between `read` and `drop` the model's layers lie in a window."""

    budget_bytes = 0  # the window is lent apart
    is_streamed = True

    def __init__(
        self, host: ImageWeights, model: ErnieModel, lender: WeightLender, device: CudaDevice
    ) -> None:
        """host: the weights in RAM, which are read now, and locked for copies. model: what has them.

        ModelUnusable for values that cannot be used.
        """
        host.read()
        self.num_bytes = host.num_bytes
        self.page_lock = device.lock(host.memory)
        self._host = host
        self._lender = lender
        self._device = device
        self._stages: dict[str, list[str]] = {}
        for name in host.places:
            self._stages.setdefault(image_stage(name), []).append(name)
        self._offsets: dict[str, int] = {}
        self.window_bytes = max(self._place(names) for names in self._stages.values())
        self._window: dict[str, torch.Tensor] = {}  # each tensor's place in it
        self._there: str | None = None
        for stage in self._stages:
            model.get_submodule(stage).register_forward_pre_hook(partial(_bring, weakref.ref(self), stage))

    def _place(self, names: list[str]) -> int:
        """Give each tensor of a stage its place in the window; the bytes that they take."""
        end = 0
        for name in names:
            self._offsets[name] = end
            end += aligned(self._host.places[name].nbytes)
        return end

    def read(self) -> None:
        """Have a window for them, DoesNotFit if experts cannot give it. Each stage comes when it computes."""
        if self._window:
            return
        memory = self._lender.lend_for_weights(self.window_bytes)
        # Not in inference mode, as other weights are not.
        with torch.inference_mode(False), torch.no_grad():
            window = {}
            for name, place in self._host.places.items():
                start = self._offsets[name]
                window[name] = memory[start : start + place.nbytes].view(place.dtype).view(place.shape)
            self._host.give(window)
        self._window = window

    def drop(self) -> None:
        """Give the window back, whatever a `read` has got to."""
        self._window = {}
        self._there = None
        self._lender.take_weights_back()

    def describe(self) -> str:
        """For people."""
        return (
            f"vision tower and resampler: {format_bytes(self.num_bytes)} in RAM, "
            f"{self.page_lock.describe()}; at most {format_bytes(self.window_bytes)} of them on the GPU, "
            "while images are encoded"
        )

    def bring(self, stage: str) -> None:
        """Have the stage in the window; it computes next."""
        if self._there == stage:
            return
        self._there = None
        for name in self._stages[stage]:
            self._device.bring(self._host.places[name], self._window[name])
        self._there = stage


def _bring(weights: weakref.ref[GpuImageWeights], stage: str, *_: object) -> None:
    """A hook of the stage's module. As weights know the module, it does not keep them alive."""
    found = weights()
    assert found is not None, "the model has them"
    found.bring(stage)
