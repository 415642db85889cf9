"""Clients of others against the server, where they are installed: llm, litellm, schemathesis.

None is in the extra `test`, as together they bring some sixty packages. What llm and litellm show has to be
what the library answers; schemathesis draws requests from the OpenAPI page, none of which may be a defect.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ernie_local import session
from ernie_local.loading import LoadedModel, LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.session import Chat, ImagePart
from tests.runtime.server.conftest import serving
from tests.runtime.server.serving import INVOICE, Served, data_url

pytestmark = pytest.mark.slow
QUESTION = "What is the total?"
_SECONDS = 300


@pytest.fixture(scope="module")
def expected(nano_model: LoadedModel) -> str:
    """What the library answers about the invoice."""
    return "".join(piece.text for piece in Chat(nano_model).ask(QUESTION, [ImagePart(INVOICE)]))


def run_program(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of an installed package, by the code that starts it."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_llm_asks_about_an_image_and_goes_on(served: Served, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    entry = f"- model_id: here\n  model_name: nano\n  api_base: {served.url}/v1\n  vision: true\n"
    (tmp_path / "extra-openai-models.yaml").write_text(entry)

    def llm(*arguments: str) -> str:
        start = "import sys; from llm.cli import cli; cli(sys.argv[1:])"
        done = run_program(start, *arguments, LLM_USER_PATH=str(tmp_path), OPENAI_API_KEY="none")
        assert done.returncode == 0, done.stderr
        return done.stdout.removesuffix("\n")

    for more in ((), ("--no-stream",)):
        assert llm("-m", "here", *more, "-a", str(INVOICE), QUESTION) == expected
    assert llm("-m", "here", "-c", "And the date?")


def test_litellm_reads_answers_pieces_and_refusals(
    served: Served, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the web for prices
    litellm: Any = pytest.importorskip("litellm")
    content = [
        {"type": "image_url", "image_url": {"url": data_url(INVOICE)}},
        {"type": "text", "text": QUESTION},
    ]
    asked: dict[str, Any] = {
        "model": "openai/nano",
        "api_base": f"{served.url}/v1",
        "api_key": "none",
        "messages": [{"role": "user", "content": content}],
        "num_retries": 0,
    }
    answer = litellm.completion(**asked, logprobs=True)
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].logprobs.content
    assert answer.usage.prompt_tokens_details.cached_tokens is not None
    pieces = list(litellm.completion(**asked, stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected
    assert pieces[-1].choices[0].finish_reason == "stop"
    where = {name: asked[name] for name in ("api_base", "api_key", "num_retries")}
    text = litellm.text_completion(
        model="text-completion-openai/nano", prompt="Total: ", max_tokens=4, **where
    )
    assert text.choices[0].text
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**asked, temperature=-1)
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**{**asked, "messages": [{"role": "user", "content": "x" * 30_000}]})


@pytest.fixture(scope="module")
def brief() -> Iterator[Served]:
    """nano with a context in which no answer is long."""
    model = session.open_model(find_model_files("nano"), LoadOptions(context_size=128))
    yield from serving(Chat(model), Chat(model, variant="thinking"))


def test_no_request_of_the_openapi_page_is_a_defect(brief: Served) -> None:
    pytest.importorskip("schemathesis")
    importlib.import_module("schemathesis.cli")
    start = "import sys; from schemathesis.cli import schemathesis; schemathesis(sys.argv[1:])"
    done = run_program(
        start, "run", f"{brief.url}/openapi.json", "--checks", "not_a_server_error", "--phases",
        "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1", "--no-color",
        "--suppress-health-check", "all", "--generation-database", "none",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
