"""The engine: chunks, turns, decode, rewinding and refusals, against one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest
import torch

from ernie_local.errors import DoesNotFit, Interrupted, UsageError
from ernie_local.media.patches import EncodedImage, Patches
from ernie_local.model import memory_use
from ernie_local.model.decode_step import Mark
from ernie_local.model.memory_use import logits_rows

if TYPE_CHECKING:
    from ernie_local.config import Bank
    from ernie_local.engine import Engine
    from ernie_local.loading import LoadedModel
    from tests.conftest import Oracle

IMAGE_TOKEN, IMAGE_START, IMAGE_END = 5, 6, 7


def _press_ctrl_c(*_arguments: object) -> torch.Tensor:
    raise KeyboardInterrupt


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_tokens", [1, 2, 7, 16, 64])
def test_chunked_prefill_equals_one_pass(
    tiny_oracle: Oracle, tiny_model: LoadedModel, chunk_tokens: int
) -> None:
    ids, images = tiny_oracle.prompt([9, tiny_oracle.image(8, 6, 1), tiny_oracle.image(4, 4, 2), 11])
    engine = tiny_model.engine(context_size=len(ids), chunk_tokens=chunk_tokens)
    close(engine.prefill(ids, images), tiny_model.logits(ids, images)[-1])
    assert engine.length == len(ids)


@pytest.mark.parametrize("kv_dtype", ["float32", "int8", "bfloat16"])
def test_chunks_do_not_change_the_result_of_a_rounded_cache(
    tiny_oracle: Oracle, tiny_model: LoadedModel, kv_dtype: str
) -> None:
    ids, images = tiny_oracle.prompt([9, tiny_oracle.image(4, 4, 1), 11])
    whole = tiny_model.engine(context_size=64, kv_dtype=kv_dtype).prefill(ids, images)
    # A state next to a rounding edge may fall to the other side, so a rounded cache is equal only in the
    # main.
    bound = 1e-5 if kv_dtype == "float32" else 0.02
    chunked = tiny_model.engine(context_size=64, kv_dtype=kv_dtype, chunk_tokens=4).prefill(ids, images)
    torch.testing.assert_close(chunked, whole, atol=bound, rtol=1e-5)


@pytest.mark.parametrize("kv_dtype", ["float32", "int8", "bfloat16"])
def test_restored_tokens_and_known_features_give_the_same_bits(
    tiny_oracle: Oracle, tiny_model: LoadedModel, kv_dtype: str
) -> None:
    ids, images = tiny_oracle.prompt([5, tiny_oracle.image(4, 8, 1), tiny_oracle.image(4, 4, 2), 9])
    cut, encoded = 5 + 2 + 8, dict[int, torch.Tensor]()
    first = tiny_model.engine(context_size=64, kv_dtype=kv_dtype)
    asked = {"should_stop": lambda: False, "on_encoded": encoded.__setitem__}
    expected = first.prefill(ids, images, **asked, cuts=[cut])  # type: ignore[arg-type]
    assert sorted(encoded) == [0, 1]
    pieces = [piece.clone() for piece in first.read_rows(0, cut)]
    assert sum(piece.nbytes for piece in pieces) == first.row_bytes(cut)
    again = tiny_model.engine(context_size=64, kv_dtype=kv_dtype)
    assert not again.restore(cut, lambda targets: not list(targets))
    assert again.length == 0

    def fill(targets: Iterable[torch.Tensor]) -> bool:
        for piece, target in zip(pieces, targets, strict=True):
            target.copy_(piece)
        return True

    assert again.restore(cut, fill)
    again.rewind(Mark(cut, 5 + 2 + 4))  # the image is four tokens high
    known = EncodedImage(encoded[1].clone(), images[1].grid)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(tiny_model.network), "encode_images", _press_ctrl_c)
        assert torch.equal(again.prefill(ids[cut:], [known]), expected)
    assert torch.equal(again.decode(40), first.decode(40))
    with pytest.raises(DoesNotFit):
        again.restore(64, fill)


def test_decode_equals_teacher_forcing(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    ids, images = tiny_oracle.prompt([5, tiny_oracle.image(4, 8, 1), 3])
    answer, _ = tiny_oracle.prompt([12], seed=9)
    expected = tiny_oracle.run(ids + answer, images).logits
    close(tiny_engine.prefill(ids, images), expected[len(ids) - 1])
    for index, token_id in enumerate(answer):
        close(tiny_engine.decode(token_id), expected[len(ids) + index])


def test_images_of_later_turns(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    """Each turn prefilled and answered in its time equals one pass over the whole conversation."""
    turns: list[list[int | Patches]] = [
        [4],
        [2, tiny_oracle.image(2, 8, 1), 3],
        [tiny_oracle.image(6, 4, 2), tiny_oracle.image(2, 2, 3)],
        [6],
    ]
    all_ids: list[int] = []
    all_images: list[Patches] = []
    got: list[tuple[int, torch.Tensor]] = []
    for index, parts in enumerate(turns):
        ids, images = tiny_oracle.prompt(parts, seed=index)
        all_ids, all_images = all_ids + ids, all_images + images
        got.append((len(all_ids) - 1, tiny_engine.prefill(ids, images)))
        for token_id in tiny_oracle.prompt([3], seed=100 + index)[0]:
            all_ids = [*all_ids, token_id]
            got.append((len(all_ids) - 1, tiny_engine.decode(token_id)))
    expected = tiny_oracle.run(all_ids, all_images).logits
    for row, logits in got:
        close(logits, expected[row])


def test_next_position_is_one_past_the_largest(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    ids, images = tiny_oracle.prompt([3, tiny_oracle.image(4, 10, 1), 2])
    tiny_engine.prefill(ids, images)
    assert tiny_engine.next_position == 3 + 1 + 5 + 1 + 2  # text, tag, the longer side in tokens, tag, text
    tiny_engine.decode(20)
    assert tiny_engine.next_position == 13


def test_rewind_makes_as_if_it_had_not_been(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    first, first_images = tiny_oracle.prompt([4, tiny_oracle.image(4, 4, 1), 2])
    second, second_images = tiny_oracle.prompt([tiny_oracle.image(2, 6, 2), 5], seed=1)
    tiny_engine.prefill(first, first_images)
    mark = tiny_engine.mark()
    wanted = tiny_engine.prefill(second, second_images)
    tiny_engine.decode(30)
    tiny_engine.rewind(mark)
    assert (tiny_engine.length, tiny_engine.next_position) == (mark.length, mark.next_position)
    tiny_engine.prefill(tiny_oracle.prompt([9], seed=2)[0])
    tiny_engine.rewind(mark)
    close(tiny_engine.prefill(second, second_images), wanted)


def test_a_vision_token_met_in_decode_takes_the_vision_bank(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    banks: list[Bank] = []
    ids, _ = tiny_oracle.prompt([6])
    expected = tiny_oracle.run([*ids, IMAGE_START, 20]).logits

    def note(
        layer_id: int,
        bank: Bank,
        expert_ids: torch.Tensor,
        expert_weights: torch.Tensor,
        token_indices: torch.Tensor,
    ) -> None:
        banks.append(bank)

    with tiny_engine.reporting_routes(note):
        tiny_engine.prefill(ids)
        close(tiny_engine.decode(IMAGE_START), expected[6])
        close(tiny_engine.decode(20), expected[7])
    assert banks == ["text"] * 2 + ["vision"] * 2 + ["text"] * 2  # two sparse layers
    assert tiny_engine.decode(IMAGE_TOKEN).isfinite().all()


def test_placeholder_rule_sends_tags_to_the_text_bank(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    ids, images = tiny_oracle.prompt([2, tiny_oracle.image(4, 4, 1), 2])
    counts: dict[str, dict[Bank, int]] = {}
    for rule in ("tags", "placeholder"):
        engine = tiny_model.engine(context_size=64, vision_rule=rule)
        seen: dict[Bank, int] = {"text": 0, "vision": 0}

        def count(
            layer_id: int,
            bank: Bank,
            expert_ids: torch.Tensor,
            expert_weights: torch.Tensor,
            token_indices: torch.Tensor,
            seen: dict[Bank, int] = seen,
        ) -> None:
            seen[bank] += len(token_indices)

        with engine.reporting_routes(count):
            engine.prefill(ids, images)
        counts[rule] = seen
    assert counts["tags"] == {"text": 2 * 4, "vision": 2 * 6}
    assert counts["placeholder"] == {"text": 2 * 6, "vision": 2 * 4}


def test_int8_cache_stays_close(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    ids, images = tiny_oracle.prompt([100, tiny_oracle.image(8, 8, 1), 100])
    exact = tiny_model.logits(ids, images)
    engine = tiny_model.engine(context_size=len(ids), kv_dtype="int8")
    rounded = torch.empty_like(exact)
    engine.prefill_all(ids, images, out=rounded)
    divergence = torch.nn.functional.kl_div(
        rounded.log_softmax(-1), exact.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert 0 < divergence < 0.01
    assert (rounded.argmax(-1) == exact.argmax(-1)).float().mean() > 0.95
    full = tiny_model.engine(context_size=len(ids), kv_dtype="float32")
    assert engine.kv_cache_bytes < full.kv_cache_bytes / 2


def test_prompt_beyond_the_context_is_refused_before_computing(
    tiny_oracle: Oracle, tiny_model: LoadedModel
) -> None:
    engine = tiny_model.engine(context_size=20)
    computed: list[object] = []
    ids, images = tiny_oracle.prompt([10, tiny_oracle.image(8, 8, 1)])
    with (
        engine.reporting_routes(lambda *route, **named: computed.append(route)),
        pytest.raises(DoesNotFit, match=r"28 tokens do not fit into a context of 20"),
    ):
        engine.prefill(ids, images)
    assert not computed
    assert engine.length == 0
    engine.prefill(ids[:10])
    with pytest.raises(
        DoesNotFit, match=r"21 tokens do not fit into a context of 20\n10 are in use and 11 more"
    ):
        engine.prefill(tiny_oracle.prompt([11])[0])


def test_decode_at_the_end_of_the_context_is_refused(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    engine = tiny_model.engine(context_size=6)
    engine.prefill(tiny_oracle.prompt([5])[0])
    engine.decode(20)
    with pytest.raises(DoesNotFit, match=r"7 tokens do not fit into a context of 6"):
        engine.decode(20)


def test_positions_beyond_what_the_model_knows_are_refused(
    tiny_oracle: Oracle, tiny_model: LoadedModel
) -> None:
    limit = tiny_oracle.config.text.max_position_embeddings
    engine = tiny_model.engine(context_size=limit + 10)
    with pytest.raises(DoesNotFit, match=rf"position {limit}, the model knows 0 to {limit - 1}"):
        engine.prefill([20] * (limit + 1))


def test_stop_between_chunks_leaves_the_sequence_as_it_was(
    tiny_oracle: Oracle, tiny_model: LoadedModel
) -> None:
    engine = tiny_model.engine(context_size=64, chunk_tokens=4)
    first, _ = tiny_oracle.prompt([7])
    engine.prefill(first)
    done: list[int] = []
    with pytest.raises(Interrupted, match=r"stopped after 4 of 12 tokens"):
        engine.prefill(
            tiny_oracle.prompt([12], seed=1)[0],
            should_stop=lambda: done[-1:] == [4],
            on_progress=lambda _unit, num_done, _all: done.append(num_done),
        )
    assert done == [0, 4]
    assert (engine.length, engine.next_position) == (7, 7)
    close(engine.decode(20), tiny_oracle.run([*first, 20]).logits[-1])


def test_a_stop_comes_before_the_next_layer(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    engine = tiny_model.engine(context_size=64)
    first, _ = tiny_oracle.prompt([7])
    engine.prefill(first)
    num_layers = tiny_oracle.config.text.num_hidden_layers
    computed: list[object] = []
    for num_before in range(num_layers):
        computed.clear()
        # Asked once before the chunk, then before each of its layers.
        answers = iter([False] * (num_before + 1) + [True])
        with (
            engine.reporting_routes(lambda *route, **named: computed.append(route)),
            pytest.raises(Interrupted, match=r"stopped after 0 of 12 tokens"),
        ):
            engine.prefill(tiny_oracle.prompt([12], seed=1)[0], should_stop=answers.__next__)
        moe_layers = tiny_oracle.config.text.moe_layers[:num_before]
        assert len(computed) == sum(moe_layers)
        assert (engine.length, engine.next_position) == (7, 7)
    close(engine.decode(20), tiny_oracle.run([*first, 20]).logits[-1])


def test_a_stop_comes_before_the_next_block_of_the_tower(
    tiny_oracle: Oracle, tiny_model: LoadedModel
) -> None:
    engine = tiny_model.engine(context_size=64)
    ids, images = tiny_oracle.prompt([tiny_oracle.image(4, 4, 1)])
    blocks = tiny_model.network.vision.blocks
    computed: list[object] = []
    hooks = [block.register_forward_hook(lambda *_: computed.append(None)) for block in blocks]
    try:
        with pytest.raises(Interrupted, match=r"stopped after 0 of 1 images"):
            engine.prefill(ids, images, should_stop=lambda: len(computed) == 1)
    finally:
        for hook in hooks:
            hook.remove()
    assert len(computed) == 1 < len(blocks)
    assert engine.length == 0
    close(engine.prefill(ids, images, should_stop=lambda: False), tiny_oracle.run(ids, images).logits[-1])


def test_stop_between_images(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    engine = tiny_model.engine(context_size=64)
    ids, images = tiny_oracle.prompt([tiny_oracle.image(4, 4, 1), tiny_oracle.image(4, 4, 2)])
    done: list[int] = []
    with pytest.raises(Interrupted, match=r"stopped after 1 of 2 images"):
        engine.prefill(
            ids,
            images,
            should_stop=lambda: done[-1:] == [1],
            on_progress=lambda _unit, num_done, _all: done.append(num_done),
        )
    assert engine.length == 0
    close(engine.prefill(ids, images, should_stop=lambda: False), tiny_oracle.run(ids, images).logits[-1])


def test_progress_is_told_between_images_and_chunks(tiny_oracle: Oracle, tiny_model: LoadedModel) -> None:
    engine = tiny_model.engine(context_size=64, chunk_tokens=4)
    told: list[tuple[str, int, int]] = []
    engine.prefill(tiny_oracle.prompt([10])[0], on_progress=lambda *progress: told.append(progress))
    assert told == [("tokens", 0, 10), ("tokens", 4, 10), ("tokens", 8, 10)]
    ids, images = tiny_oracle.prompt([tiny_oracle.image(4, 4, 1), tiny_oracle.image(4, 4, 2)])
    engine.prefill(ids, images, lambda: False, lambda *progress: told.append(progress))
    assert told[3:5] == [("images", 0, 2), ("images", 1, 2)]


def test_a_failure_half_way_leaves_the_sequence_as_it_was(
    tiny_oracle: Oracle, tiny_model: LoadedModel
) -> None:
    engine = tiny_model.engine(context_size=64, chunk_tokens=4)
    calls = iter(range(100))

    def fail(*_route: object, **_named: object) -> None:
        if next(calls) == 3:
            raise RuntimeError("a GPU fell off the bus")

    with engine.reporting_routes(fail), pytest.raises(RuntimeError, match="fell off"):
        engine.prefill(tiny_oracle.prompt([12])[0])
    assert (engine.length, engine.next_position) == (0, 0)


def test_an_interrupted_decode_leaves_the_sequence_as_it_was(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_model.engine(context_size=64)
    ids, _ = tiny_oracle.prompt([4])
    engine.prefill(ids)
    with monkeypatch.context() as patch:
        patch.setattr(type(engine.model), "logits", _press_ctrl_c)
        with pytest.raises(KeyboardInterrupt):
            engine.decode(20)
    assert (engine.length, engine.next_position) == (4, 4)
    close(engine.decode(20), tiny_oracle.run([*ids, 20]).logits[-1])


@pytest.mark.parametrize(
    ("ids", "what"),
    [
        ([], "a prompt of 0 tokens"),
        ([20, 96], r"token id 96 is outside of 0 to 95"),
        ([-1], r"token id -1 is outside of 0 to 95"),
        ([20, IMAGE_TOKEN, IMAGE_TOKEN], r"2 placeholder tokens for 0 images of 0 tokens"),
    ],
)
def test_prompts_that_make_no_sense(tiny_engine: Engine, ids: list[int], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        tiny_engine.prefill(ids)
    assert tiny_engine.length == 0


def test_fewer_placeholders_than_image_tokens(tiny_oracle: Oracle, tiny_engine: Engine) -> None:
    ids, images = tiny_oracle.prompt([2, tiny_oracle.image(4, 4, 1)])
    ids.remove(IMAGE_TOKEN)
    with pytest.raises(UsageError, match=r"3 placeholder tokens for 1 images of 4 tokens"):
        tiny_engine.prefill(ids, images)


@pytest.mark.parametrize("options", [{"context_size": 0}, {"chunk_tokens": 0}, {"chunk_tokens": -3}])
def test_sizes_below_one(tiny_model: LoadedModel, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=r"size of (0|-3) tokens, at least 1"):
        tiny_model.engine(**{"context_size": 8, **options})  # type: ignore[arg-type]


def test_logits_may_be_written_to(tiny_engine: Engine) -> None:
    """Samplers mask in place; a tensor born in inference mode would refuse."""
    tiny_engine.prefill([20, 21])[3] = float("-inf")
    tiny_engine.decode(22)[3] = float("-inf")


def test_logits_of_a_prompt_are_made_in_slices(
    tiny_oracle: Oracle, tiny_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they take bounded memory of a GPU besides what is kept for a chunk."""
    ids, images = tiny_oracle.prompt([100, tiny_oracle.image(8, 8, 1), *range(100, 117)])
    expected, network = tiny_model.logits(ids, images), tiny_model.network
    assert logits_rows(network.config.text) > len(ids)
    row_bytes = 4 * network.config.text.vocab_size
    monkeypatch.setattr(memory_use, "_LOGITS_BYTES", 3 * row_bytes + 1)
    sizes, logits = [], network.logits

    def watched(hidden: torch.Tensor) -> torch.Tensor:
        sizes.append(len(hidden))
        return logits(hidden)

    monkeypatch.setattr(network, "logits", watched)
    torch.testing.assert_close(tiny_model.logits(ids, images), expected, rtol=1e-5, atol=1e-5)
    assert set(sizes[:-1]) == {3}
    assert sum(sizes) == len(ids)
