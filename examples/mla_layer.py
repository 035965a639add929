"""One layer of multi-head latent attention in PyTorch: prefill, a paged cache, and three ways to decode.

Prompts run in MHA mode: the latent of each token is expanded to a key and a value of every head. The cache
keeps of a token its latent, and a rotated key that all heads share. Decoding runs in MQA mode: the weights
that expand latents are absorbed into query and output, and all heads attend over the latents themselves. It
runs dense over a bf16 cache, sparse over the same cache, and sparse over an fp8_v32 cache; the indices of
sparse name all tokens.

All of it is compared with MHA mode in float32 from the same weights. Ends with 1 if a mode is out of bounds.

    python examples/mla_layer.py                             the sizes of DeepSeek-V3; takes 2 GB of memory
    python examples/mla_layer.py --heads 8 --hidden 256      a small one
"""

from __future__ import annotations

import argparse
import copy
import sys

import torch
from flash_mla import flash_attn_varlen_func, flash_mla_with_kvcache, get_mla_metadata, ops
from torch import Tensor, nn

LATENT, ROPE, NOPE, VALUE = 512, 64, 128, 128
SCALE = (NOPE + ROPE) ** -0.5
PAGE = 64

# Allowed norm of the difference from float32, relative to the norm. A bf16 number is off by up to 2^-9, an
# e4m3 number by up to 2^-4; with the sizes of DeepSeek-V3 it came to 0.0052 and 0.033.
BOUNDS = {"bf16": 0.01, "fp8_v32": 0.05}


class MlaLayer(nn.Module):
    """The weights of a layer and the steps around its attention. Tokens of all sequences are in one list."""

    def __init__(self, hidden: int, heads: int, query_rank: int) -> None:
        """Random weights that keep the size of what they multiply."""
        super().__init__()
        self.heads = heads
        self.query_down = nn.Linear(hidden, query_rank, bias=False)
        self.query_norm = nn.RMSNorm(query_rank)
        self.query_up = nn.Linear(query_rank, heads * (NOPE + ROPE), bias=False)
        self.kv_down = nn.Linear(hidden, LATENT + ROPE, bias=False)
        self.latent_norm = nn.RMSNorm(LATENT)
        self.kv_up = nn.Linear(LATENT, heads * (NOPE + VALUE), bias=False)
        self.output = nn.Linear(heads * VALUE, hidden, bias=False)
        for linear in (self.query_down, self.query_up, self.kv_down, self.kv_up, self.output):
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def query(self, x: Tensor, positions: Tensor) -> Tensor:
        """``[tokens, heads, 192]`` of ``x``, ``[tokens, hidden]``."""
        q = self.query_up(self.query_norm(self.query_down(x))).unflatten(-1, (self.heads, NOPE + ROPE))
        return torch.cat([q[..., :NOPE], rotate(q[..., NOPE:], positions)], -1)

    def cached(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """What the cache keeps: latents ``[tokens, 512]`` and rotated keys ``[tokens, 64]``."""
        latent, k_rope = self.kv_down(x).split([LATENT, ROPE], -1)
        return self.latent_norm(latent), rotate(k_rope[:, None], positions)[:, 0]

    def expand(self, latent: Tensor, k_rope: Tensor) -> tuple[Tensor, Tensor]:
        """Keys ``[tokens, heads, 192]`` and values ``[tokens, heads, 128]`` of MHA mode."""
        k, v = self.kv_up(latent).unflatten(-1, (self.heads, NOPE + VALUE)).split([NOPE, VALUE], -1)
        return torch.cat([k, k_rope[:, None].expand(-1, self.heads, -1)], -1), v

    def absorb(self, q: Tensor) -> Tensor:
        """Queries ``[tokens, heads, 576]`` of MQA mode: ``<q, W latent>`` is ``<W^T q, latent>``."""
        of_keys = self.kv_up.weight.unflatten(0, (self.heads, NOPE + VALUE))[:, :NOPE]
        return torch.cat([torch.einsum("thn,hnl->thl", q[..., :NOPE], of_keys), q[..., NOPE:]], -1)

    def values_of(self, latents: Tensor) -> Tensor:
        """``[tokens, heads, 128]`` of the weighted sums of latents, ``[tokens, heads, 512]``."""
        of_values = self.kv_up.weight.unflatten(0, (self.heads, NOPE + VALUE))[:, NOPE:]
        return torch.einsum("thl,hvl->thv", latents, of_values)


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """RoPE of ``[tokens, heads, 64]``: neighbours are a complex number, turned by its token's position."""
    frequencies = 10000.0 ** -(torch.arange(0, ROPE, 2, device=x.device) / ROPE)
    angles = positions[:, None, None] * frequencies
    turned = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * torch.polar(
        torch.ones_like(angles), angles
    )
    return torch.view_as_real(turned).flatten(-2).to(x.dtype)


def float32_outputs(layer: MlaLayer, x: Tensor, lengths: list[int]) -> list[Tensor]:
    """The layer in MHA mode, float32 and plain PyTorch: ``[length, hidden]`` of each sequence."""
    layer = copy.deepcopy(layer).float()
    outputs = []
    for tokens in x.float().split(lengths):
        positions = torch.arange(len(tokens), device=x.device)
        q = layer.query(tokens, positions)
        k, v = layer.expand(*layer.cached(tokens, positions))
        logits = torch.einsum("qhd,khd->hqk", q, k) * SCALE
        hidden = torch.ones_like(logits[0], dtype=torch.bool).triu(1)
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        outputs.append(layer.output(torch.einsum("hqk,khd->qhd", weights, v).flatten(1)))
    return outputs


class Caches:
    """A bf16 and an fp8_v32 cache of the same tokens, whose blocks lie in random order."""

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        """Caches for sequences of up to so many tokens."""
        blocks_of = [-(-length // PAGE) for length in lengths]
        order = torch.randperm(sum(blocks_of)).int().split(blocks_of)
        self.block_table = nn.utils.rnn.pad_sequence(list(order), batch_first=True, padding_value=-1).to(
            device
        )
        # Not a number: what no token has written must not be read.
        self.bf16 = torch.full(
            (sum(blocks_of), PAGE, 1, LATENT + ROPE), torch.nan, dtype=torch.bfloat16, device=device
        )
        self.fp8 = torch.full((sum(blocks_of), PAGE, 1, 656), 0xFF, dtype=torch.uint8, device=device)

    def slots(self, sequences: Tensor, positions: Tensor) -> Tensor:
        """Where in the caches the tokens at these positions of these sequences are."""
        blocks = self.block_table[sequences, positions // PAGE]
        return (blocks * PAGE + positions % PAGE).int()

    def append(self, latent: Tensor, k_rope: Tensor, slots: Tensor) -> None:
        """Write new tokens."""
        for cache in (self.bf16, self.fp8):
            ops.append_kv(latent=latent, rope=k_rope, slot_mapping=slots, kv_cache=cache)


def prefill(layer: MlaLayer, x: Tensor, lengths: list[int], caches: Caches) -> Tensor:
    """Run prompts in MHA mode and fill the caches: ``[tokens, hidden]``."""
    sequences = torch.repeat_interleave(torch.tensor(lengths)).to(x.device)
    positions = torch.cat([torch.arange(length, device=x.device) for length in lengths])
    latent, k_rope = layer.cached(x, positions)
    caches.append(latent, k_rope, caches.slots(sequences, positions))
    bounds = torch.tensor([0, *lengths], device=x.device).cumsum(0).int()
    k, v = layer.expand(latent, k_rope)
    longest = max(lengths)
    out, _ = flash_attn_varlen_func(
        layer.query(x, positions), k, v, bounds, bounds, longest, longest, softmax_scale=SCALE, causal=True
    )
    return layer.output(out.flatten(1))


def decode(layer: MlaLayer, x: Tensor, lengths: Tensor, caches: Caches) -> dict[str, Tensor]:
    """Run a new token of each sequence, the last of ``lengths``: ``[batch, hidden]`` of each way."""
    positions = lengths - 1
    batch = torch.arange(len(lengths), device=x.device)
    caches.append(*layer.cached(x, positions), caches.slots(batch, positions))
    q = layer.absorb(layer.query(x, positions))[:, None]
    # Sparse: the places of all tokens; -1 names none.
    tokens = torch.arange(int(lengths.max()), device=x.device).expand(len(lengths), -1)
    places = caches.slots(batch[:, None], tokens.minimum(positions[:, None]))
    indices = places.masked_fill(tokens >= lengths[:, None], -1)[:, None]

    def attend(cache: Tensor, *of_dense: Tensor | None, **of_sparse: object) -> Tensor:
        table, seqlens = of_dense or (None, None)
        out, _ = flash_mla_with_kvcache(
            q, cache, table, seqlens, LATENT, *get_mla_metadata(), softmax_scale=SCALE, **of_sparse
        )
        return layer.output(layer.values_of(out[:, 0]).flatten(1))

    return {
        "decode, MQA dense, bf16 cache": attend(caches.bf16, caches.block_table, lengths.int()),
        "decode, MQA sparse, bf16 cache": attend(caches.bf16, indices=indices),
        "decode, MQA sparse, fp8_v32 cache": attend(caches.fp8, indices=indices, is_fp8_kvcache=True),
    }


def run(layer: MlaLayer, sequences: list[Tensor], steps: int) -> dict[str, list[Tensor]]:
    """Prefill all but the last ``steps`` tokens and decode these; gives what came out, first tokens first."""
    lengths = [len(tokens) for tokens in sequences]
    prompts = [length - steps for length in lengths]
    device = sequences[0].device
    caches = Caches(lengths, device)
    outputs = {"prefill, MHA": [prefill(layer, torch.cat([t[:-steps] for t in sequences]), prompts, caches)]}
    for step in range(steps):
        new = torch.stack([tokens[step - steps] for tokens in sequences])
        grown = torch.tensor(prompts, device=device) + step + 1
        for way, out in decode(layer, new, grown, caches).items():
            outputs.setdefault(way, []).append(out)
    return outputs


@torch.no_grad()
def main() -> int:
    """Run a batch through prefill and decoding, and print how far each is from float32."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--heads", type=int, default=128)
    parser.add_argument("--hidden", type=int, default=7168)
    parser.add_argument("--query-rank", type=int, default=1536)
    parser.add_argument("--prompts", type=int, nargs="+", default=[300, 64, 17], metavar="LENGTH")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    torch.manual_seed(options.seed)
    steps = options.steps
    layer = MlaLayer(options.hidden, options.heads, options.query_rank).bfloat16().to(options.device)
    lengths = [prompt + steps for prompt in options.prompts]
    x = torch.randn(sum(lengths), options.hidden).bfloat16().to(options.device)
    outputs = run(layer, x.split(lengths), steps)
    exact = float32_outputs(layer, x, lengths)
    of_prompts = torch.cat([tokens[:-steps] for tokens in exact])
    of_steps = torch.stack([tokens[-steps:] for tokens in exact], 1).flatten(0, 1)

    print(f"{options.heads} heads, prompts of {options.prompts} tokens, {steps} steps")
    print(f"{'distance from float32':34}   largest      norm   allowed")
    good = True
    for way, parts in outputs.items():
        expected = of_prompts if "prefill" in way else of_steps
        difference = torch.cat(parts).float() - expected
        norm = (difference.norm() / expected.norm()).item()
        bound = BOUNDS["fp8_v32" if "fp8_v32" in way else "bf16"]
        print(f"{way:34}{difference.abs().max().item():10.5f}{norm:10.5f}{bound:10.5f}")
        good &= norm <= bound
    print("all within bounds" if good else "OUT OF BOUNDS")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
