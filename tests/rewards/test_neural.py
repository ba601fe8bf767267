"""Reward models: tiny real classifiers, saved and loaded as anyone's would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs

Inputs = Callable[..., RewardInputs]
Score = Callable[..., list[float]]
Refused = Callable[..., str]

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
)
COMPLETIONS = ["42", "", "it is forty-two, I am quite sure of it", "7", "no", "6 times 7 makes 42"]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def make_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """Byte level: any text, no unknown token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<end>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    made.chat_template = template
    return made


def save(folder: Path, kind: str, labels: int = 3, template: str | None = None) -> str:
    tokenizer = make_tokenizer(template)
    torch.manual_seed(0)
    if kind == "bert":
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        config: Any = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
            num_labels=labels,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.5,
        )
        model: Any = BertForSequenceClassification(config)
    else:
        config = GPT2Config(
            vocab_size=len(tokenizer),
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            num_labels=labels,
            initializer_range=0.5,
        )
        head = GPT2LMHeadModel if kind == "lm" else GPT2ForSequenceClassification
        model = head(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("model"), "gpt2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def score(inputs: Inputs) -> Score:
    def of(folder: str, completions: list[str] = COMPLETIONS, **settings: Any) -> list[float]:
        reward = component("reward", "neural", model=folder, device="cpu", **settings)
        return list(reward(inputs(completions)).total)

    return of


@pytest.fixture
def refused(score: Score) -> Refused:
    def message(folder: str, **settings: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            score(folder, ["42"], **settings)
        return str(caught.value)

    return message


def logits(folder: str, text: str) -> torch.Tensor:
    """[C] logits of one text, by the shortest way."""
    kind = (
        BertForSequenceClassification
        if "bert" in (Path(folder) / "config.json").read_text()
        else GPT2ForSequenceClassification
    )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        result: torch.Tensor = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
    return result


def test_scores_are_the_models_logits(score: Score, folder: str) -> None:
    expected = [logits(folder, "6 * 7 =" + completion)[1].item() for completion in COMPLETIONS]
    assert score(folder, label=1) == pytest.approx(expected, abs=1e-4)
    assert len(set(expected)) > 1


def test_scores_do_not_depend_on_the_batch_size(score: Score, folder: str) -> None:
    one = score(folder, batch_size=1)
    for batch_size in (2, 4, 64):
        assert score(folder, batch_size=batch_size) == pytest.approx(one, abs=1e-4)


def test_scores_follow_their_completions(score: Score, folder: str) -> None:
    there, back = score(folder), score(folder, COMPLETIONS[::-1])
    assert there == pytest.approx(back[::-1], abs=1e-4)


def test_the_same_scores_every_time(inputs: Inputs, score: Score, folder: str) -> None:
    reward = component("reward", "neural", model=folder, device="cpu")
    state = torch.random.get_rng_state()
    first, second = reward(inputs(COMPLETIONS)).total, reward(inputs(COMPLETIONS)).total
    assert first == second == score(folder)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_from_logits_to_scores(score: Score, gpt2: str) -> None:
    plain = torch.stack([logits(gpt2, "6 * 7 =" + completion) for completion in COMPLETIONS])
    softmax = plain.softmax(dim=-1)[:, 2].tolist()
    assert score(gpt2, score="softmax", label=2) == pytest.approx(softmax, abs=1e-4)
    sigmoid = plain[:, 0].sigmoid().tolist()
    assert score(gpt2, score="sigmoid") == pytest.approx(sigmoid, abs=1e-4)
    clipped = plain[:, 0].clamp(-0.1, 0.1).tolist()
    assert score(gpt2, clip=[-0.1, 0.1]) == pytest.approx(clipped, abs=1e-4)


def test_a_chat_template_is_used(score: Score, tmp_path: Path) -> None:
    folder = save(tmp_path, "gpt2", template=TEMPLATE)
    # It reads the last end token in a batch too: end tokens must not be taken for padding.
    expected = logits(folder, "<user>6 * 7 =<end><assistant>42<end>")[0].item()
    assert score(folder, ["42"]) == pytest.approx([expected], abs=1e-4)
    assert score(folder, ["42", "a longer one"])[0] == pytest.approx(expected, abs=1e-4)


def test_a_long_input_loses_its_beginning(score: Score, gpt2: str) -> None:
    long = "x" * 200 + "the end of it"
    whole = "6 * 7 =" + long
    assert score(gpt2, [long]) == pytest.approx([logits(gpt2, whole[-64:])[0].item()], abs=1e-4)
    short = logits(gpt2, whole[-8:])[0].item()
    assert score(gpt2, [long], max_length=8) == pytest.approx([short], abs=1e-4)


def test_an_empty_batch(score: Score, gpt2: str) -> None:
    assert score(gpt2, []) == []


def test_an_input_without_a_token_is_unscorable_alone(inputs: Inputs, gpt2: str) -> None:
    reward = component("reward", "neural", model=gpt2, device="cpu")
    scores = reward(inputs(["", "a"], prompt="")).total
    assert [math.isnan(score) for score in scores] == [True, False]


def test_a_failing_batch_is_unscorable(
    score: Score, gpt2: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(GPT2ForSequenceClassification, "forward", fail)
    assert all(map(math.isnan, score(gpt2)))


def test_models_that_cannot_score_are_refused(
    score: Score, refused: Refused, tmp_path: Path, gpt2: str
) -> None:
    assert "cannot be loaded" in refused(str(tmp_path / "nothing"))
    assert "has no weights for score.weight" in refused(save(tmp_path / "lm", "lm"))
    assert "has 3 label(s); allowed: 0 to 2" in refused(gpt2, label=3)
    single = save(tmp_path / "single", "gpt2", labels=1)
    assert "has one label" in refused(single, score="softmax")
    assert len(score(single)) == len(COMPLETIONS)


def test_pickled_weights_are_refused(refused: Refused, tmp_path: Path) -> None:
    folder = Path(save(tmp_path, "gpt2"))
    weights = GPT2ForSequenceClassification.from_pretrained(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "safetensors" in refused(str(folder))


def test_a_bad_clip_is_refused() -> None:
    for clip in ([1.0], [1.0, 0.0]):
        with pytest.raises(ConfigError, match=r"reward.clip: "):
            component("reward", "neural", model="x", clip=clip)


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^reward.device: 'gpu' given; allowed: auto, cpu"):
        component("reward", "neural", model="x", device="gpu")
    for device in ("auto", "cpu", "cuda:1", "mps"):
        component("reward", "neural", model="x", device=device)


def test_a_device_by_its_number(inputs: Inputs, score: Score, gpt2: str) -> None:
    reward = component("reward", "neural", model=gpt2, device="cpu:0")
    assert reward(inputs(COMPLETIONS)).total == score(gpt2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_refused(inputs: Inputs, gpt2: str) -> None:
    with pytest.raises(ConfigError, match=r"reward.device=cuda: there is no GPU here"):
        component("reward", "neural", model=gpt2, device="cuda")(inputs(["42"]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_scores(inputs: Inputs, score: Score, gpt2: str) -> None:
    reward = component("reward", "neural", model=gpt2, device="cuda")
    assert reward(inputs(COMPLETIONS)).total == pytest.approx(score(gpt2), abs=1e-2)
