"""The byte layouts of the FP8 cache formats, read and written anew from their description."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fp8Format:
    """What a token looks like: quantized values in groups that share a scale, then RoPE values."""

    d_qk: int
    quantized: int
    group: int
    row: int
    separate_scales: bool

    @property
    def groups(self) -> int:
        """Scales of a token."""
        return self.quantized // self.group

    def block_stride(self, page: int) -> int:
        """Bytes from one block to the next as caches in use have it."""
        return -(-page * 584 // 576) * 576 if self.separate_scales else page * self.row

    def _split(self, block: Tensor, page: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views ``[blocks page bytes]`` of values, scales and RoPE of blocks of ``page * row`` bytes."""
        if self.separate_scales:
            rows = block[:, : page * 576].unflatten(1, (page, 576))
            scales = block[:, page * 576 :].unflatten(1, (page, 8))[..., :7]
            return rows[..., :448], scales, rows[..., 448:]
        rows = block.unflatten(1, (page, 656))
        return rows[..., :512], rows[..., 512:528], rows[..., 528:]

    def dequantize(self, block: Tensor, page: int) -> Tensor:
        """bf16 ``[blocks page d_qk]`` of bytes ``[blocks page*row]``."""
        values, scales, rope = (part.contiguous() for part in self._split(block, page))
        scale = torch.exp2(scales.float() - 127).masked_fill(scales == 255, torch.nan)
        if not self.separate_scales:
            scale = scales.view(torch.float32)
        product = values.view(torch.float8_e4m3fn).float() * scale.repeat_interleave(self.group, -1)
        return torch.cat([product.bfloat16(), rope.view(torch.bfloat16)], -1)

    def quantize(self, kv: Tensor) -> Tensor:
        """Bytes ``[blocks page*row]`` of finite bf16 ``[blocks page d_qk]``; the unused byte is 0."""
        blocks, page, _ = kv.shape
        block = torch.zeros(blocks, page * self.row, dtype=torch.uint8)
        x = kv[..., : self.quantized].double().unflatten(-1, (self.groups, self.group))
        exponent = torch.log2((x.abs().amax(-1) / 448).clamp_min(1e-4)).ceil()
        codes = (x / torch.exp2(exponent).unsqueeze(-1)).flatten(-2).float().to(torch.float8_e4m3fn)
        values, scales, rope = self._split(block, page)
        values.copy_(codes.view(torch.uint8))
        rope.copy_(kv[..., self.quantized :].contiguous().view(torch.uint8))
        if self.separate_scales:
            scales.copy_((exponent + 127).to(torch.uint8))
        else:
            scales.copy_(torch.exp2(exponent).float().view(torch.uint8))
        return block


FP8_FORMATS = {
    "fp8_v32": Fp8Format(d_qk=576, quantized=512, group=128, row=656, separate_scales=False),
    "fp8_model1": Fp8Format(d_qk=512, quantized=448, group=64, row=584, separate_scales=True),
}


def empty_cache(name: str, blocks: int, page: int, spare: int = 0) -> Tensor:
    """An FP8 cache u8 ``[blocks page 1 row]`` full of NaN, with ``spare`` unused rows between its blocks."""
    layout = FP8_FORMATS[name]
    stride = -(-(layout.block_stride(page) + spare * layout.row) // 16) * 16
    memory = torch.full((blocks, stride), 0xFF, dtype=torch.uint8)
    return memory[:, : page * layout.row].unflatten(1, (page, 1, layout.row))


def bytes_of_blocks(cache: Tensor) -> Tensor:
    """The bytes ``[blocks page*row]`` of each block of a cache ``[blocks page 1 row]``, packed."""
    return cache.view(torch.uint8).flatten(1)
