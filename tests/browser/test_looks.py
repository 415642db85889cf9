"""How the page looks and is reached: light and dark, on a phone, by keys alone, without seeing it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ernie_local.loading import LoadOptions
from ernie_local.model_files import find_model_files
from ernie_local.server.memory import ServedMemory
from ernie_local.session import Chat, open_model
from tests.browser.conftest import Script, listening
from tests.browser.visit import OpenVisit, Visit, png
from tests.runtime.server.serving import INVOICE
from tests.text_only import NANO_VOCAB, TextOracle

pytestmark = pytest.mark.slow
ANSWER = (
    '# A heading\n\nThe total: [{"bbox_2d": [30, 640, 990, 700], "label": "total"}]\n\n| a | b |\n|---|---|\n'
    f"| 1 | 2 |\n\n```\n{'code ' * 60}\n```\n\n- one\n\n> quoted\n\n{'A' * 400}"
)


def serious_faults(here: Visit) -> list[Any]:
    """What axe-core finds that keeps people from using the page."""
    axe = pytest.importorskip("axe_core_python.sync_playwright")
    found = axe.Axe().run(here.page)["violations"]
    return [
        (one["id"], [node["html"][:200] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 375)])
def test_nothing_keeps_people_from_using_it(
    script: Script, visit: OpenVisit, scheme: str, width: int
) -> None:
    url = script.serve({"everything": ANSWER})
    here = visit(url, color_scheme=scheme, viewport={"width": width, "height": 800})
    here.allowed.append("400")
    here.drop(png("invoice.png", INVOICE))
    here.attached(1)
    here.ask("everything").locator(".boxes").wait_for()
    here.drop(png("invoice.png", INVOICE), ("no image.png", "image/png", b"no image"))
    here.page.locator("#problem", has_text="no image.png").wait_for()
    for name in ("#show-options", "#show-server"):
        here.page.click(name)
    here.page.select_option("#form", "schema")
    here.page.locator(".memory .used").first.wait_for()
    here.page.click("text=What takes it")
    assert serious_faults(here) == []
    assert widest(here) <= width
    if width == 375:
        here.page.click("#show-chats")
        assert serious_faults(here) == []
    here.page.click("#chat-list [aria-label^=Delete]")
    assert serious_faults(here) == []


def widest(here: Visit) -> int:
    """Of the whole page, in pixels."""
    width: int = here.page.evaluate("() => document.documentElement.scrollWidth")
    return width


def test_a_theme_is_chosen_and_kept(served: str, visit: OpenVisit) -> None:
    here = visit(served)
    colour = "() => getComputedStyle(document.body).backgroundColor"
    light = here.page.evaluate(colour)
    here.page.select_option("#theme", "dark")
    dark = here.page.evaluate(colour)
    here.page.reload()
    assert here.page.evaluate(colour) == dark != light
    here.page.select_option("#theme", "auto")
    assert here.page.evaluate(colour) == light
    here.page.emulate_media(color_scheme="dark")
    assert here.page.evaluate(colour) == dark


def focused(here: Visit) -> str:
    """The id or the label of what has the focus."""
    name: str = here.page.evaluate(
        "() => document.activeElement.id || document.activeElement.getAttribute('aria-label') "
        "|| document.activeElement.textContent"
    )
    return name


def test_all_is_reached_by_keys(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve({"a": "b"}, is_slow=True))
    keys = here.page.keyboard
    assert focused(here) == "question"
    keys.type("a")
    keys.press("Shift+Enter")
    keys.type("second line")
    assert here.page.input_value("#question") == "a\nsecond line"
    keys.press("Enter")
    here.page.locator("article.assistant").wait_for()
    keys.press("Escape")
    assert here.ended(0).locator(".problem").inner_text() == "Stopped."
    assert focused(here) == "question"
    reached = []
    for _ in range(30):
        keys.press("Tab")
        reached.append(focused(here))
    wanted = [
        "files",
        "show-options",
        "send",
        "new-chat",
        "theme",
        "show-server",
        "messages",
        "Edit this question",
    ]
    assert [name for name in wanted if name not in reached] == []
    # Where the focus is can be seen everywhere.
    assert reached.index("files") < reached.index("show-options") < reached.index("send")
    here.page.focus("#show-options")
    keys.press("Enter")
    assert here.page.locator("#options").is_visible()
    here.page.focus(".skip")
    keys.press("Enter")
    keys.press("Tab")
    assert focused(here) in ("question", "files")
    here.page.focus("#chat-list [aria-label^=Delete]")
    keys.press("Enter")
    keys.press("Escape")
    assert here.page.locator("#chat-list li").count() == 1


def test_the_phase_the_speed_and_the_memory_are_shown(script: Script, visit: OpenVisit) -> None:
    here = visit(script.serve({"long": "word " * 1000}, is_slow=True))
    here.page.click("#show-server")
    here.page.locator(".memory .phases li").nth(3).wait_for()
    assert here.page.locator(".phases .name").all_inner_texts() == ["Loading", "Images", "Prompt", "Answer"]
    assert "that it may take" in here.text(".memory .now")
    here.page.fill("#question", "long")
    here.page.press("#question", "Enter")
    here.page.locator(".phases [aria-current] .name", has_text="Answer").wait_for()
    for _ in range(40):
        script.may_go.release(20)
        here.page.wait_for_timeout(100)
        if "tokens/s" in here.text("#server-state"):
            break
    assert "tokens/s" in here.text("#server-state")
    assert float(here.text(".figure b")) > 0
    here.page.click("#stop")
    here.ended(0)
    here.page.locator("#server-state", has_text="Ready").wait_for()


def test_a_model_that_reads_only_text_is_offered_no_files(visit: OpenVisit, tmp_path: Path) -> None:
    directory = TextOracle.of(NANO_VOCAB, has_experts=True).save_with_tokenizer(tmp_path / "text")
    options = LoadOptions(context_size=256)
    memory = ServedMemory(options)
    model = open_model(find_model_files(str(directory)), options)
    memory.plan(model)
    with listening((model, memory), Chat(model)) as (url, _):
        here = visit(url)
        here.page.locator("body.only-text").wait_for()
        assert not here.page.locator("label.for-images").is_visible()
        assert here.page.get_attribute("#question", "placeholder") == "Ask a question"
        here.drop(png("invoice.png", INVOICE))
        here.page.locator("#problem", has_text="reads only text").wait_for()
        assert here.page.locator("#attached .file").count() == 0
        here.page.click("#show-server")
        here.page.locator(".memory .phases li").first.wait_for()
        assert "Images" not in here.page.locator(".phases .name").all_inner_texts()
        here.limited(4).ask("Hello")
        assert serious_faults(here) == []
