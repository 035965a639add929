"""DeepSeek-V2 and V3 of Hugging Face transformers with the attention of the example."""

import functools
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import reference

transformers = pytest.importorskip(
    "transformers", minversion="5.0", reason="transformers 5 is not installed, whose models these tests run"
)
sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import transformers_deepseek as example  # noqa: E402

PROMPTS = [12, 7, 9, 3]
KINDS_AND_SEEDS = [(kind, seed) for kind in ("V2", "V3") for seed in (10, 11, 12)]


@pytest.fixture(autouse=True, scope="module")
def _registered() -> None:
    example.register()


@functools.cache
def reciting_models(kind: str, seed: int) -> tuple[Tensor, dict[str, nn.Module]]:
    """Text ``[4, 32]``, and a model that knows it, computed in three ways."""
    model = example.random_model(kind, seed)
    text = torch.randint(1, model.config.vocab_size, (4, 32))
    example.learn(model, text)
    return text, example.variants(model)


# --- models ---


@pytest.mark.parametrize(("kind", "seed"), KINDS_AND_SEEDS)
def test_greedy_tokens_are_those_of_eager_float32(kind: str, seed: int) -> None:
    text, models = reciting_models(kind, seed)
    prompts = example.left_padded(text, PROMPTS)
    expected = example.generate(models["eager float32"], prompts)
    assert len(expected.unique()) > 5
    assert torch.equal(example.generate(models["flash_mla"], prompts), expected)


@pytest.mark.parametrize("kind", ["V2", "V3"])
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(kind: str) -> None:
    text, models = reciting_models(kind, 10)
    prompts = example.left_padded(text, PROMPTS)
    expected = example.generate(models["flash_mla"], prompts)
    assert torch.equal(
        example.generate(models["flash_mla"], prompts, cache_implementation="static"), expected
    )


@pytest.mark.parametrize("kind", ["V2", "V3"])
def test_a_prompt_goes_on_alone_as_it_does_in_a_padded_batch(kind: str) -> None:
    text, models = reciting_models(kind, 10)
    of_batch = example.generate(models["flash_mla"], example.left_padded(text, PROMPTS))
    for row, length in enumerate(PROMPTS):
        alone = example.left_padded(text[row : row + 1], [length])
        assert torch.equal(example.generate(models["flash_mla"], alone)[0], of_batch[row])


def right_padded(text: Tensor, lengths: list[int]) -> dict[str, Tensor]:
    """The first tokens of each row, and padding behind them."""
    present = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": text[:, : max(lengths)] * present, "attention_mask": present.long()}


@pytest.mark.parametrize("pad", [example.left_padded, right_padded], ids=["left", "right"])
@pytest.mark.parametrize(("kind", "seed"), KINDS_AND_SEEDS)
def test_logits_and_gradient_are_as_close_to_float32_as_eager_bfloat16(kind, seed, pad) -> None:
    _, models = reciting_models(kind, seed)
    unknown = torch.randint(1, 32, (4, 40), generator=torch.Generator().manual_seed(seed))
    inputs = pad(unknown, [40, 35, 23, 10])
    results = {name: example.logits_and_gradient(model, inputs) for name, model in models.items()}
    ours = example.distances(results["flash_mla"], results["eager float32"])
    eager = example.distances(results["eager bfloat16"], results["eager float32"])
    for name, limit in example.LIMITS.items():
        assert ours[name] <= limit * eager[name], name


@pytest.mark.parametrize("kind", ["V2", "V3"])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(kind: str) -> None:
    text, models = reciting_models(kind, 10)
    inputs = example.left_padded(text, [20, 16, 9, 17])
    tokens, present = inputs["input_ids"], inputs["attention_mask"]
    cache = transformers.DynamicCache()
    logits = []
    for start, end in [(0, 5), (5, 12), (12, 13), (13, 20)]:
        result = models["flash_mla"](
            input_ids=tokens[:, start:end],
            attention_mask=present[:, :end],
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(result.logits.detach())
    pieces = torch.cat(logits, 1)[present.bool()].double()
    whole = models["eager float32"](**inputs).logits.detach()[present.bool()].double()
    assert (pieces - whole).norm() <= 0.01 * whole.norm()


def test_grouped_heads_of_a_llama_are_as_close_to_float32_as_eager_bfloat16() -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        initializer_range=0.2,
    )
    models = example.variants(
        transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    )
    inputs = example.left_padded(torch.randint(1, 32, (4, 40)), [40, 35, 23, 10])
    results = {name: example.logits_and_gradient(model, inputs) for name, model in models.items()}
    ours = example.distances(results["flash_mla"], results["eager float32"])
    eager = example.distances(results["eager bfloat16"], results["eager float32"])
    for name, limit in example.LIMITS.items():
        assert ours[name] <= limit * eager[name], name


# --- the attention function ---

SCALE = 0.11
# Of 4 sequences, which of 24 keys are tokens; None: all.
MASKS = {
    "none": None,
    "left": [[0] * n + [1] * (24 - n) for n in (0, 5, 23, 12)],
    "right": [[1] * n + [0] * (24 - n) for n in (24, 5, 1, 12)],
    "a gap": [[1] * n + [0] * (18 - n) + [1] * 6 for n in (18, 5, 0, 12)],
    "a sequence of nothing": [[1] * 24, [0] * 24, [0] * 3 + [1] * 21, [1] * 24],
}


def random_states(mask: Tensor, s_q: int, heads: tuple[int, int], room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as transformers gives them; NaN where no token is."""
    (batch, s_k), (h_q, h_kv) = mask.shape, heads
    q = torch.randn(batch, h_q, s_q, 192).masked_fill(~mask[:, None, s_k - s_q :, None], torch.nan)
    present = nn.functional.pad(mask, (0, room))[:, None, :, None]
    k, v = (torch.randn(batch, h_kv, s_k + room, d).masked_fill(~present, torch.nan) for d in (192, 128))
    return q, k, v


def float64_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """``out [batch, s_q, heads, 128]`` and ``lse [batch, s_q, heads]``.

    A query sees the tokens up to its own; where no token is, 0 and ``+inf``.
    """
    s_k, s_q, group = mask.shape[1], q.shape[2], q.shape[1] // k.shape[1]
    own = torch.arange(s_k - s_q, s_k)[:, None]
    outs, lses = [], []
    for row, present in enumerate(mask):
        keys, values = (x[row, :, :s_k].nan_to_num(0).repeat_interleave(group, 0) for x in (k, v))
        visible = (torch.arange(s_k) <= own) & present & present[own]
        out, lse, _ = reference.attend(q[row].nan_to_num(0), keys, values, visible, SCALE)
        outs.append(out.transpose(0, 1))
        lses.append(lse.transpose(0, 1))
    return torch.stack(outs), torch.stack(lses)


def our_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Both functions of the example, called as transformers calls them."""
    s_k, s_q = 24, q.shape[2]
    present = example.present_tokens(q.shape[0], s_q, k.shape[2], s_k - s_q, attention_mask=mask)
    out, weights = example.attention(SimpleNamespace(is_causal=True), q, k, v, present, scaling=SCALE)
    assert weights is None
    return out


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("room", [0, 8], ids=["dynamic", "static"])
@pytest.mark.parametrize("s_q", [24, 6, 1])
@pytest.mark.parametrize("name", MASKS)
def test_attention_and_its_gradients_match_float64(name, s_q, room, dtype) -> None:
    given = None if MASKS[name] is None else torch.tensor(MASKS[name]).bool()
    mask = torch.ones(4, 24, dtype=torch.bool) if given is None else given
    states = [x.to(dtype).requires_grad_() for x in random_states(mask, s_q, (4, 2), room)]
    exact = [x.detach().double().requires_grad_() for x in states]
    out, (expected, lse) = our_attention(*states, given), float64_attention(*exact, mask)
    reference.assert_matches("mha", out, expected)

    d_out = torch.randn(out.shape).to(dtype)
    gradients = torch.autograd.grad(out, states, d_out)
    # The rounding of out, which backward takes <out, d_out> from, acts as a gradient of lse.
    d_lse = ((expected - out) * d_out.double()).sum(-1).detach()
    loss = (expected * d_out.double()).sum() + (d_lse * lse.where(lse.isfinite(), 0)).sum()
    expected_gradients = torch.autograd.grad(loss, exact)
    for gradient, exact_gradient in zip(gradients, expected_gradients, strict=True):
        reference.assert_matches("mha", gradient, exact_gradient)


# --- what is not covered ---


def flash_mla_model() -> nn.Module:
    """A model that has learned nothing."""
    return example.variants(example.random_model("V3", 0))["flash_mla"]


@pytest.mark.parametrize(
    ("inputs", "what"),
    [
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1]])}, "one whole sequence"),
        ({"attention_mask": torch.zeros(1, 1, 5, 5)}, "4 dimensions"),
    ],
    ids=["packed by position_ids", "mask with four dimensions"],
)
def test_masks_that_are_not_covered_raise(inputs: dict[str, Tensor], what: str) -> None:
    with pytest.raises(NotImplementedError, match=f"mla_kernels: .*{what}"):
        flash_mla_model()(input_ids=torch.ones(1, 5, dtype=torch.long), use_cache=False, **inputs)


def test_dropout_raises() -> None:
    model = flash_mla_model().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.1
    with pytest.raises(NotImplementedError, match=r"dropout_p must be 0, got 0\.1"):
        model(input_ids=torch.ones(1, 5, dtype=torch.long))


@pytest.mark.parametrize("option", ["sliding_window", "softcap", "s_aux"])
def test_options_that_change_the_result_raise(option: str) -> None:
    q, k, v = (torch.randn(1, 2, 3, d).bfloat16() for d in (192, 192, 128))
    with pytest.raises(NotImplementedError, match=f"mla_kernels: {option}"):
        example.attention(SimpleNamespace(is_causal=True), q, k, v, None, **{option: 1})


def test_a_model_in_float32_raises() -> None:
    with pytest.raises(TypeError, match=r"^mha_forward: q must be"):
        flash_mla_model().float()(input_ids=torch.ones(1, 5, dtype=torch.long))
