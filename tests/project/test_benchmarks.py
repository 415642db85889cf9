"""Programs under benchmarks/, which nobody may start for months: they can be imported, and a GPU's runs."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ernie_local.loading.model import EngineSettings, LoadedModel
from ernie_local.model_files import ModelFiles
from ernie_local.planner.model_size import read_model
from ernie_local.planner.rates import GpuRates
from tests.runtime.fake_gpu import FakeGpu
from tests.runtime.paged_models import build, gpu_share, share

FOLDER = Path(__file__).parents[2] / "benchmarks"
# Of other people's programs, that are measured against or quantized.
PEERS = {
    "llama_cpp_model": "gguf",
    "llama_cpp_speed": "llama_cpp",
    "text_reader": "onnxruntime",
    "third_witness": "onnxruntime",
    "vllm_on_cpu": "vllm",
}


IMPORT_ALL = """
import importlib, sys, traceback
folder, *names = sys.argv[1:]
sys.path.insert(0, folder)
for name in names:
    try:
        importlib.import_module(name)
    except Exception:
        traceback.print_exc()
        print(name)
"""


@pytest.mark.slow
def test_all_can_be_imported() -> None:
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    missing = [name for name, peer in PEERS.items() if importlib.util.find_spec(peer) is None]
    wanted = [name for name in names if name not in missing]
    assert len(wanted) > 15
    command = [sys.executable, "-c", IMPORT_ALL, str(FOLDER), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_a_model_is_measured_at_a_budget(packed_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a simulated GPU."""
    torch.manual_seed(0)  # the tokens are random, whatever ran before
    monkeypatch.syspath_prepend(FOLDER)
    gpu_model: ModuleType = importlib.import_module("gpu_model")
    rates = GpuRates(1e9, 1e8, 1e12)
    above = gpu_share(packed_nano, FakeGpu(), share(packed_nano, 0.3))
    network = build(packed_nano, share(packed_nano, 1.0), gpu=above)
    settings = EngineSettings(16 + gpu_model.WARM_TOKENS + 20, torch.float32)
    model = LoadedModel(network, ModelFiles(packed_nano, network.config), settings, 0, 0.0)
    run = gpu_model.measure(model, "137MiB", "auto", rates, 20, 16)
    assert 0.2 < run.hit_rate < 1
    assert run.link_bytes > 0
    assert run.decode > 0
    assert run.prefill > 0
    work = read_model(packed_nano).decode_work("bfloat16")
    missed = (1 - run.hit_rate) * work.moe_layers * work.experts_per_token
    assert run.link_bytes == pytest.approx(missed * work.page_bytes, rel=0.1), "what was not found was copied"
    assert len(list(gpu_model.table([run]))) == 3
