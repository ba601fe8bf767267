"""The lower bounds against numbers worked by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from grpolab.bench.limit import (
    Rates,
    Sizes,
    bounds,
    sampling_seconds,
    update_seconds,
    update_tokens,
)
from grpolab.bench.machine import kernels, model_sizes

SIZES = Sizes(body=100, head=20, total=130)
FAST = Rates(
    bandwidth=240.0, decode_body=10.0, decode_head=10.0, update_body=10.0, update_head=10.0,
    weight_bytes=2,
)  # fmt: skip


def test_sampling_where_reading_the_weights_takes_longest() -> None:
    # one pass reads (100 + 20) · 2 = 240 bytes: 1 s; with endless FLOPs three tokens are three
    # passes, the prompt's among them
    endless = replace(FAST, decode_body=1e9, decode_head=1e9, update_body=1e9, update_head=1e9)
    assert sampling_seconds(SIZES, endless, [4], [3, 2]) == pytest.approx(3.0)


def test_sampling_where_multiplying_takes_longest() -> None:
    # prompt: 2·100·4/10 + 2·20·1/10 = 84 s; a row's token: 2·100/10 + 2·20/10 = 24 s
    # second tokens: both rows, 48 s; third: one row, 24 s
    assert sampling_seconds(SIZES, FAST, [4], [3, 2]) == pytest.approx(84 + 48 + 24)


def test_update_counts_prompts_once_and_no_padding() -> None:
    assert update_tokens([4, 6], [3, 2, 1, 1]) == 4 + 6 + 2 + 1
    # body 6·100·7/10 = 420 s, head 6·20·5/10 = 60 s, AdamW 130·7·4/240 s
    assert update_seconds(SIZES, FAST, [4], [3, 2]) == pytest.approx(420 + 60 + 130 * 28 / 240)


def test_bounds_of_a_step_are_the_sum() -> None:
    (found,) = bounds(SIZES, FAST, [{"prompt_lengths": [4], "lengths": [3, 2]}])
    assert found["step"] == found["sample"] + found["update"]


@pytest.mark.parametrize("tied", [True, False])
def test_sizes_are_the_model_s(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip
    sizes, body, head = model_sizes(config)
    model = LlamaForCausalLM(config)
    linears = [m for n, m in model.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert sizes["body"] == sum(m.weight.numel() for m in linears)
    assert sum(body.values()) == len(linears)
    assert sizes["head"] == 50 * 16
    assert dict(head) == {(50, 16): 1}
    assert sizes["total"] == sum(p.numel() for p in model.parameters())


def test_every_kernel_multiplies() -> None:
    x, weight = torch.randn(5, 8), torch.randn(6, 8)
    for kernel in kernels(x, weight):
        torch.testing.assert_close(kernel(), x @ weight.T)
