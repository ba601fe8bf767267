"""A completion ends with the token that completes a stop string, however the tokens cut it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.policy.policy import Policy
from grpolab.sampling import static
from grpolab.sampling.base import Samples, finish
from grpolab.sampling.stops import Stops

if TYPE_CHECKING:
    from tests.policy import policies as lab
    from tests.sampling.draws import PROMPTS, SAMPLERS, sample
else:
    import policies as lab
    from draws import PROMPTS, SAMPLERS, sample

Decode = Callable[[list[int]], str]
PIECES = ["a", "b", " a", " ", "ab", "b\n", "\n", "\n\na", "", "é", "bab"]
BYTES = [b"a", b"b", b"\n", b"\xc3", b"\xa9", b"b\xc3", b"\xa9a", b"\xf0\x9f", b"\x98\x80", b"ab"]


def plain(ids: list[int]) -> str:
    return "".join(PIECES[i] for i in ids)


def first_space_stripped(ids: list[int]) -> str:
    """As SentencePiece decodes: the space before the first word goes."""
    return plain(ids).removeprefix(" ")


def bytes_replaced(ids: list[int]) -> str:
    """As byte-level BPE decodes: what is no character yet becomes U+FFFD."""
    return b"".join(BYTES[i] for i in ids).decode("utf-8", "replace")


def bytes_all_or_none(ids: list[int]) -> str:
    """As byte fallback decodes: a run of bytes that is not valid as a whole is all U+FFFD."""
    runs = re.split(r"([ab\n]+)", "".join(map(chr, b"".join(BYTES[i] for i in ids))))
    return "".join(decoded_run(run.encode("latin-1")) for run in runs)


def decoded_run(run: bytes) -> str:
    try:
        return run.decode("utf-8")
    except UnicodeDecodeError:
        return "\ufffd" * len(run)


DECODERS = [plain, first_space_stripped, bytes_replaced, bytes_all_or_none]


class Words:
    """A tokenizer that can only decode."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode

    def decode(self, ids: list[int], **_: Any) -> str:
        return self._decode(ids)


def place(decode: Decode, stop: list[str], ids: list[int]) -> int:
    """The definition: the first token after which the whole text holds a stop string."""
    for t in range(len(ids)):
        if any(s in decode(ids[: t + 1]) for s in stop):
            return t
    return -1


def found(decode: Decode, stop: list[str], ids: list[int], at_once: int = 1) -> int:
    stops = Stops(stop, Words(decode), 1)
    for start in range(0, len(ids), at_once):
        stops.feed(0, ids[start : start + at_once])
    return stops.at[0]


# -- the text ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pieces", "stop", "at"),
    [
        (["a", "b", "a"], ["ab"], 1),  # across tokens
        (["a", "b", "a", "b"], ["bab"], 3),
        (["a", "\n\na", "b"], ["\n\n"], 1),  # inside one token, which goes on behind it
        (["b\n", "\n\na"], ["b\n\n"], 1),  # the end of one and the beginning of the next
        (["a", "ab"], ["aab"], 1),
        (["a", "a", "ab"], ["aab"], 2),  # after a false start: aaab
        (["b", "a"], ["a", "b"], 0),  # the first of several
        (["a", "", "", "b"], ["ab"], 3),  # tokens without text in between
        (["a", "b"], ["ba"], -1),
        (["a", " a"], [" a"], 1),
        ([], ["a"], -1),
    ],
)
def test_by_hand(pieces: list[str], stop: list[str], at: int) -> None:
    ids = [PIECES.index(p) for p in pieces]
    assert found(plain, stop, ids) == at == place(plain, stop, ids)


def test_the_first_words_space_is_no_text_and_the_seconds_is() -> None:
    word = PIECES.index(" a")
    assert found(first_space_stripped, [" a"], [word]) == -1
    assert found(first_space_stripped, [" a"], [word, word]) == 1


def test_a_character_counts_once_its_bytes_are_there() -> None:
    first, second = BYTES.index(b"\xc3"), BYTES.index(b"\xa9")
    for decode in (bytes_replaced, bytes_all_or_none):
        assert found(decode, ["é"], [first, second, first]) == 1
        # "b" is complete in a token that also begins a character
        assert found(decode, ["b"], [BYTES.index(b"b\xc3"), second]) == 0
        assert found(decode, ["é"], [BYTES.index(b"b\xc3"), BYTES.index(b"\xa9a")]) == 1


@given(data=st.data(), decode=st.sampled_from(DECODERS))
def test_found_where_the_whole_text_would_tell(data: st.DataObject, decode: Decode) -> None:
    tokens = st.integers(0, len(BYTES if decode in DECODERS[2:] else PIECES) - 1)
    ids = data.draw(st.lists(tokens, max_size=24))
    text = st.text(alphabet="ab\n é😀", min_size=1, max_size=5)
    stop = data.draw(st.lists(text, min_size=1, max_size=3))
    expected = place(decode, stop, ids)
    assert found(decode, stop, ids) == expected
    assert found(decode, stop, ids, at_once=5) == expected


def test_only_the_tail_is_decoded() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return plain(ids)

    assert found(decode, ["bbb"], [0] * 300) == -1
    assert longest == 2


def test_rows_end_on_their_own() -> None:
    stops = Stops(["ab"], Words(plain), 3)
    assert [stops.feed(row, ids) for row, ids in enumerate([[0], [0, 1, 0], [1]])] == [
        False,
        True,
        False,
    ]
    assert [stops.feed(0, [1, 0]), stops.feed(1, [0, 1]), stops.feed(2, [0])] == [True, True, False]
    assert stops.places(torch.device("cpu")).tolist() == [1, 1, -1]


def test_finish_takes_the_first_of_end_token_and_stop() -> None:
    ids = torch.tensor([[5, 2, 5, 5], [5, 5, 2, 5], [5, 5, 5, 5], [5, 5, 5, 5]])
    mask, truncated = finish(ids, torch.tensor([2]), torch.tensor([2, 1, 3, -1]))
    assert mask.sum(dim=1).tolist() == [2, 2, 4, 4]
    assert truncated.tolist() == [False, False, False, True]


# -- the samplers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return lab.family(tmp_path_factory.mktemp("llama"), "Llama")


def tokens_of(samples: Samples) -> list[list[int]]:
    rows = zip(samples.completion_ids, samples.mask, strict=True)
    return [ids[m].tolist() for ids, m in rows]


def text_of(policy: Policy, ids: list[int]) -> str:
    text: str = policy.encoder.tokenizer.decode(ids, skip_special_tokens=False)
    return text


def check_cut(policy: Policy, free: Samples, cut: Samples, stop: list[str]) -> int:
    """`cut` is `free` up to the stop strings; how many completions end at one."""
    stopped = 0
    for row, (whole, ids) in enumerate(zip(tokens_of(free), tokens_of(cut), strict=True)):
        at = place(lambda ids: text_of(policy, ids), stop, whole)
        expected = whole if at < 0 else whole[: at + 1]
        assert ids == expected
        assert bool(cut.truncated[row]) == (bool(free.truncated[row]) and at < 0)
        for name in ("sampler_logps", "policy_logps"):
            a, b = (getattr(s, name)[row, : len(ids)] for s in (cut, free))
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
            assert float(getattr(cut, name)[row, len(ids) :].abs().sum()) == 0.0
        stopped += at >= 0
    return stopped


def pairs_in(policy: Policy, free: Samples) -> list[str]:
    """Two stop strings of two characters each that end some of the completions."""
    texts = [text_of(policy, ids) for ids in tokens_of(free)]
    return [texts[0][2:4], texts[-1][1:3]]


@pytest.mark.parametrize("name", SAMPLERS)
def test_greedy_completions_are_cut_the_same_by_every_sampler(llama: Policy, name: str) -> None:
    free = sample(llama, "static", samples=1, greedy=True)
    stop = pairs_in(llama, free)
    assert all(len(s) == 2 for s in stop)
    cut = sample(llama, name, samples=1, greedy=True, stop=stop)
    assert check_cut(llama, free, cut, stop) >= 2
    assert float(cut.sampler_logps.abs().max()) == 0.0


@pytest.mark.parametrize(
    ("name", "below", "every"),
    [
        ("static", 0.75, 1),
        ("static", 0.0, 1),
        ("static", 1.0, 3),
        ("static", 0.75, 8),
        ("hf", 0, 1),
    ],
)
def test_sampled_completions_are_cut_and_nothing_else(
    llama: Policy, name: str, below: float, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each row has noise of its own, so those that stop leave the others as they are
    monkeypatch.setattr(static, "COMPACT_BELOW", below)
    monkeypatch.setattr(static, "CHECK_EVERY", {"cpu": every})
    settings: dict[str, Any] = {"temperature": 0.8, "max_new_tokens": 21}
    free = sample(llama, name, samples=8, **settings)
    stop = pairs_in(llama, free)
    cut = sample(llama, name, samples=8, stop=stop, **settings)
    assert 2 <= check_cut(llama, free, cut, stop) < 32


def test_continuous_completions_end_where_they_first_may(llama: Policy) -> None:
    # Here the rows share their noise: what a row draws depends on when the others end
    free = tokens_of(sample(llama, "continuous", samples=8))
    stop = [text_of(llama, ids)[2] for ids in free[::8]]
    cut = sample(llama, "continuous", samples=8, stop=stop, rows=5)
    assert tokens_of(sample(llama, "continuous", samples=8, stop=stop, rows=5)) == tokens_of(cut)
    ended = 0
    for row, ids in enumerate(tokens_of(cut)):
        at = place(lambda ids: text_of(llama, ids), stop, ids)
        assert at in (-1, len(ids) - 1)
        assert bool(cut.truncated[row]) == (at < 0 and ids[-1] not in llama.end_ids)
        ended += at >= 0
    assert 4 <= ended < 32


@pytest.mark.parametrize("name", SAMPLERS)
def test_stopped_rows_cost_no_further_steps(
    llama: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0
    forward = llama.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama, "decoder", None)  # whose steps are counted in test_engines.py
    monkeypatch.setattr(llama.model, "forward", counted)
    first = text_of(llama, tokens_of(sample(llama, "static", samples=1, greedy=True))[0][:1])
    steps = 0
    sample(llama, name, prompts=PROMPTS[:1], samples=2, greedy=True, stop=[first])
    assert steps == 1


@pytest.mark.parametrize("name", SAMPLERS)
def test_tokens_that_hold_more_than_the_stop_stay_whole(
    llama: Policy, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Token 7 reads "<7>": the stop string begins and ends inside tokens
    def decode(ids: list[int], **_: Any) -> str:
        return "".join(f"<{i}>" for i in ids)

    monkeypatch.setattr(llama.encoder.tokenizer, "decode", decode)
    free = tokens_of(sample(llama, name, samples=1, greedy=True))[0]
    stop = f"{free[1]}><{free[2]}"
    cut = tokens_of(sample(llama, name, samples=1, greedy=True, stop=[stop]))[0]
    assert cut == free[: place(decode, [stop], free) + 1]
    assert len(cut) == 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_prompt_holds_no_stop(llama: Policy, name: str) -> None:
    free = sample(llama, name, prompts=["47+85="], samples=1, greedy=True)
    text = text_of(llama, tokens_of(free)[0])
    across = "=" + text[0]  # ends in the completion, but begins in the prompt
    assert across not in text
    assert "47" not in text
    cut = sample(llama, name, prompts=["47+85="], samples=1, greedy=True, stop=["47", across])
    assert tokens_of(cut) == tokens_of(free)


@pytest.mark.parametrize(("name", "every"), [(n, 1) for n in SAMPLERS] + [("static", 8)])
def test_a_stop_with_the_last_token_allowed_is_no_truncation(
    llama: Policy, name: str, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "CHECK_EVERY", {"cpu": every})
    free = sample(llama, name, samples=1, greedy=True, max_new_tokens=3)
    text = text_of(llama, tokens_of(free)[0])
    assert len(text) == 3
    assert bool(free.truncated[0])
    cut = sample(llama, name, samples=1, greedy=True, max_new_tokens=3, stop=[text])
    assert tokens_of(cut) == tokens_of(free)
    assert not bool(cut.truncated[0])


def test_what_a_stop_may_be() -> None:
    assert component("sampler", "static").stop == []
    for wrong in ([""], ["a", ""], "a", [1]):
        with pytest.raises(ConfigError, match=r"sampler\.stop: .*allowed"):
            component("sampler", "static", stop=wrong)
