"""Draws invoice.png and writes its facts to invoice.json. From a checkout: python examples/make_invoice.py

The vendor and the items are names that nano never saw in training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "calibration"))

from ernie_calibration.images import draw_image

SEED = 11
SCALE = 3.349  # 1001 x 700 pixels: a page of seven lines


def main() -> None:
    drawn = draw_image("invoice", SEED, width=299, height=209, scale=SCALE, held_out=True)
    drawn.image.save(HERE / "invoice.png", optimize=True)
    answers = {question.kind: question.answer for question in drawn.questions}
    facts = {
        "What is the total?": answers["total"],
        "What is the date?": answers["date"],
        "What is the invoice number?": answers["number"],
    }
    page = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
    (HERE / "invoice.json").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
