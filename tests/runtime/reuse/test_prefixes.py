"""Names of the beginnings of conversations, and which of them a prompt finds; features in memory."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from ernie_local.model.limits import chunk_stops
from ernie_local.reuse.features import FeatureMemory
from ernie_local.reuse.prefixes import PlacedImage, PrefixNames, Segment, SegmentKind, image_groups_end

IDS = list(range(100, 160))
IMAGE = PlacedImage(5, 15, "red")


def chain(
    ends: Sequence[tuple[int, SegmentKind]], ids: Sequence[int] = IDS, images: Sequence[PlacedImage] = ()
) -> list[Segment]:
    return PrefixNames("0" * 32, ids, images).chain(ends)


def found(
    names: list[str],
    ids: Sequence[int] = IDS,
    images: Sequence[PlacedImage] = (),
    root: str = "0" * 32,
    chunk: int = 20,
) -> list[int]:
    stored = PrefixNames(root, ids, images).find(names, lambda start: min(start + chunk, len(ids)))
    return [segment.stop for segment, _ in stored]


def test_the_longest_beginning_is_found() -> None:
    names = [one.name for one in chain([(20, "c"), (40, "c"), (47, "t")])]
    random.Random(1).shuffle(names)
    assert found(names) == [20, 40, 47]
    assert found(names, IDS[:47]) == [20, 40]  # the last token has to be computed
    assert found(names, IDS[:48]) == [20, 40, 47]
    assert found(names, [*IDS[:30], 7, *IDS[31:]]) == [20]
    assert found(names, [7, *IDS[1:]]) == []
    assert found(names, root="1" * 32) == []
    assert found([names[0], "prefix-", "features-1", *names]) == [20, 40, 47]


def test_a_chunk_is_found_only_where_it_would_be_computed() -> None:
    names = [one.name for one in chain([(20, "c"), (40, "c")])]
    assert found(names, chunk=21) == []
    tails = [one.name for one in chain([(20, "t"), (40, "t")])]
    assert found(tails, chunk=21) == [20, 40]


def test_images_are_part_of_a_name_and_are_not_cut() -> None:
    names = [one.name for one in chain([(10, "c"), (20, "c")], images=[IMAGE])]
    assert found(names, images=[IMAGE], chunk=10) == [10, 20]
    assert found(names[:1], images=[IMAGE], chunk=10) == []
    for other in ([], [PlacedImage(5, 15, "blue")], [PlacedImage(6, 15, "red")]):
        assert found(names, images=other, chunk=10) == []


def test_a_group_of_images_ends_where_a_question_begins() -> None:
    pages = [PlacedImage(4, 10, "a"), PlacedImage(17, 23, "b"), PlacedImage(40, 46, "c")]
    assert image_groups_end(pages, 60) == [24, 47]
    assert image_groups_end(pages, 47) == [24]
    assert image_groups_end([], 60) == []


def test_chunks_end_at_cuts() -> None:
    assert chunk_stops(10, 4) == [4, 8, 10]
    assert chunk_stops(8, 4) == [4, 8]
    assert chunk_stops(10, 4, [6]) == [4, 6, 10]
    assert chunk_stops(20, 100, [3, 9, 20, 25]) == [3, 9, 20]
    draw = random.Random(3)
    for _ in range(200):
        length, chunk = draw.randint(1, 50), draw.randint(1, 20)
        cuts = sorted(draw.sample(range(60), draw.randint(0, 5)))
        stops = chunk_stops(length, chunk, cuts)
        assert stops[-1] == length
        assert set(stops) >= {cut for cut in cuts if 0 < cut <= length}
        assert all(0 < after - before <= chunk for before, after in zip([0, *stops], stops, strict=False))


def test_features_that_were_used_last_stay_within_the_limit() -> None:
    memory, one = FeatureMemory(3 * 400), torch.zeros(10, 10)
    for name in "abc":
        memory.keep(name, one)
    assert memory.find("a") is one
    memory.keep("d", one)
    assert [memory.find(name) is one for name in "abcd"] == [True, False, True, True]
    memory.keep("large", torch.zeros(31, 10))
    assert memory.find("large") is None
    assert memory.num_bytes == 1200
    memory.keep("half", torch.zeros(20, 10))
    assert memory.num_bytes <= 1200
    nothing = FeatureMemory(0)
    nothing.keep("a", one)
    assert nothing.find("a") is None
