"""Values of form fields are drawn, also where the file has no drawing of them."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from ernie_local.media.open_image import open_images
from tests.pdf_files import one_page, stream

_TEXT = b"/FT /Tx /V (Hello 42) /DA (/Helv 12 Tf 0 g)"
_TICKED = b"/FT /Btn /V /On /AS /On /MK << /CA (4) >>"
_CHOSEN = b"/V (two) /Opt [(one) (two)] /DA (/Helv 12 Tf 0 g)"
_EMPTY = b"/AP << /N 5 0 R >>"


def page_with_field(field: bytes, form: bytes = b"", more: bytes = b"<< >>") -> bytes:
    """A page of 200 x 100 points with a field of 100 x 50 in its middle; `more` is object 5."""
    widget = b"<< /Type /Annot /Subtype /Widget /T (a) /F 4 /Rect [50 25 150 75] %s >>" % field
    return one_page(
        b"0 0 200 100",
        b"/Annots [4 0 R]",
        b"/AcroForm << /Fields [4 0 R] %s >>" % form,
        (widget, more, stream(b"", b"<xdp/>")),
    )


def ink(data: bytes) -> float:
    """The share of the page that is dark."""
    (opened,) = open_images(data)
    return float((np.asarray(opened.image.convert("L")) < 100).mean())


@pytest.mark.parametrize("xfa", [b"", b"/XFA 6 0 R"])
def test_filled_form_fields_are_seen(xfa: bytes, caplog: pytest.LogCaptureFixture) -> None:
    black_box = stream(b"/Type /XObject /Subtype /Form /BBox [0 0 100 50]", b"0 0 0 rg 0 0 100 50 re f")
    data = page_with_field(b"/FT /Tx /AP << /N 5 0 R >>", xfa, black_box)
    level = logging.getLogger("pypdfium2").level
    (opened,) = open_images(data)
    assert (np.asarray(opened.image) < 50).mean() == pytest.approx(0.25, abs=0.01)
    assert ["XFA" in note for note in opened.notes] == ([True] if xfa else [])
    assert not caplog.records
    assert logging.getLogger("pypdfium2").level == level


@pytest.mark.parametrize("form", [b"", b"/NeedAppearances true"])
@pytest.mark.parametrize(
    "field",
    [
        _TEXT,
        _TEXT + b" /AP << >>",
        _TEXT + _EMPTY,
        b"/FT /Ch /Ff 131072 " + _CHOSEN,
        b"/FT /Ch " + _CHOSEN,
        _TICKED,
        _TICKED.replace(b"/On", b"/Yes"),
        _TICKED + b" /Ff 32768",
        _TICKED + b" /AP << /N << /Off 5 0 R >> >>",
    ],
)
def test_a_value_without_a_drawing_is_drawn(field: bytes, form: bytes) -> None:
    assert 0.003 < ink(page_with_field(field, form, stream(b"/Subtype /Form /BBox [0 0 9 9]", b""))) < 0.2


@pytest.mark.parametrize(
    "field",
    [
        b"/FT /Tx /DA (/Helv 12 Tf 0 g)",
        _TEXT + b" /F 2",
        _TICKED.replace(b"/On", b"/Off"),
        b"/FT /Sig /V << >>",
        _TICKED.replace(b"/Btn", b"/Unheard"),
    ],
)
def test_nothing_is_drawn_for_what_has_no_value_or_is_hidden(field: bytes) -> None:
    assert ink(page_with_field(field.replace(b"/F 4 ", b""))) == 0
