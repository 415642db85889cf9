"""What a request may bring: data: addresses, files below a folder, nothing else unless it is allowed."""

from __future__ import annotations

import base64
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ernie_local.server.attachments import AttachmentLimits, Attachments
from ernie_local.server.failures import ApiError, client_gone
from ernie_local.server.remote import is_public

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg=="
)


def source(url: str, limits: AttachmentLimits | None = None) -> object:
    """What the image at an address is."""
    return Attachments(limits or AttachmentLimits()).image(url, None).source


@pytest.mark.parametrize(
    "body",
    [
        base64.b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.b64encode(PNG).decode().rstrip("="),
        base64.encodebytes(PNG).decode(),
        base64.b64encode(PNG).decode().replace("+", "%2B").replace("/", "%2F"),
    ],
)
def test_base64_of_all_spellings_is_read(body: str) -> None:
    assert source(f"data:image/png;base64,{body}") == PNG
    assert source(f"data:;charset=utf-8;base64,{body}") == PNG


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64",
        "data:image/png;base64,%%%",
        "data:image/png;base64,ä",
        "cid:1",
        "",
        "/etc/passwd",
        "x" * 99,
    ],
)
def test_what_is_no_image_address_is_refused(url: str) -> None:
    with pytest.raises(ApiError) as refused:
        source(url)
    assert refused.value.status == 400


def test_web_and_files_are_off_unless_allowed() -> None:
    for url, option in (
        ("https://example.org/a.png", "--allow-remote-images"),
        ("file:///etc/passwd", "--media-path"),
    ):
        with pytest.raises(ApiError, match=option):
            source(url)


def test_files_are_read_below_the_media_path_only(tmp_path: Path) -> None:
    folder, secret = tmp_path / "media", tmp_path / "secret.png"
    (folder / "in ner").mkdir(parents=True)
    (folder / "in ner" / "a.png").write_bytes(PNG)
    secret.write_bytes(PNG)
    (folder / "link.png").symlink_to(secret)
    limits = AttachmentLimits(media_path=folder)
    for url in (f"file://{folder}/in%20ner/a.png", "file://in ner/a.png", "file:in ner/../in%20ner/a.png"):
        assert source(url, limits) == PNG
    for url in (
        f"file://{secret}",
        "file://../secret.png",
        "file://%2e%2e/secret.png",
        "file://in ner/../../secret.png",
        "file://link.png",
        "file://in ner",
        "file://a%00.png",
        "file:///dev/zero",
        f"file://{folder}/../secret.png",
    ):
        with pytest.raises(ApiError, match="not below") as refused:
            source(url, limits)
        # Whether a file is there is not told, nor where the folder is.
        assert str(tmp_path) not in str(refused.value)


def test_videos_come_by_the_same_ways_as_images(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    folder.mkdir()
    for path in (folder / "a.mp4", tmp_path / "secret.mp4"):
        path.write_bytes(b"clip")
    limits = AttachmentLimits(media_path=folder, max_bytes=4, max_images=2)

    def video(url: str) -> object:
        return Attachments(limits).video(url, {}).source

    assert video("file://a.mp4") == video("data:video/mp4;base64,Y2xpcA==") == b"clip"
    for url, words in (
        ("file://../secret.mp4", "not below"),
        ("https://example.org/a.mp4", "videos are not fetched.*--allow-remote-images"),
        ("cid:1", "video addresses"),
        ("data:video/mp4;base64,%%%", "the video is not base64"),
    ):
        with pytest.raises(ApiError, match=words) as refused:
            video(url)
        assert refused.value.status == 400
    with pytest.raises(ApiError, match="the video has 5 bytes, at most 4 bytes are read") as refused:
        video("data:,clips")
    assert refused.value.status == 413
    attachments = Attachments(limits)
    attachments.image("data:,a", None)
    attachments.video("data:,b", {})
    with pytest.raises(ApiError, match="3 of one request, at most 2"):
        attachments.video("data:,c", {})


def test_all_that_a_request_brings_is_bounded_together(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12")
    limits = AttachmentLimits(max_bytes=4, max_total_bytes=5, media_path=tmp_path)
    attachments = Attachments(limits)
    attachments.image("data:,123", None)
    for bring in (
        partial(attachments.image, "data:,abc", None),
        partial(attachments.file, "YWJj"),
        partial(attachments.video, "file://a.png", {}),
    ):
        with pytest.raises(ApiError, match=r"have [0-9]+ bytes, at most 5 bytes are read") as refused:
            bring()
        assert (refused.value.status, refused.value.code) == (413, "image_too_large")


def test_a_client_that_has_gone_is_fetched_nothing() -> None:
    def pause() -> None:
        raise client_gone()

    attachments = Attachments(AttachmentLimits(), pause)
    calls: list[Callable[[], object]] = [
        partial(attachments.image, "data:,a", None),
        partial(attachments.video, "data:,a", {}),
        partial(attachments.file, "YWJj"),
    ]
    for bring in calls:
        with pytest.raises(ApiError, match="the client has gone"):
            bring()


def test_sizes_and_counts_are_bounded(tmp_path: Path) -> None:
    limits = AttachmentLimits(max_bytes=len(PNG), max_images=2, media_path=tmp_path)
    url = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    attachments = Attachments(limits)
    attachments.image(url, None)
    attachments.image(url, "low")
    with pytest.raises(ApiError, match="3 of one request, at most 2") as refused:
        attachments.image(url, None)
    assert refused.value.status == 413
    (tmp_path / "large.png").write_bytes(PNG + b"0")
    large = base64.b64encode(PNG + b"0").decode()
    for one in (f"data:image/png;base64,{large}", "file://large.png"):
        with pytest.raises(ApiError) as refused:
            source(one, limits)
        assert refused.value.status == 413


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_only_addresses_of_the_internet_are_public(address: str, expected: bool) -> None:
    assert is_public(address) is expected


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1/a.png",
        "http://localhost/a.png",
        "http://[::1]/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "https://user@127.0.0.1/",
    ],
)
def test_hosts_that_are_not_public_are_not_asked(url: str) -> None:
    with pytest.raises(ApiError, match=r"not public|unknown") as refused:
        source(url, AttachmentLimits(allow_remote=True))
    assert refused.value.status == 400
