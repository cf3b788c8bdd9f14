"""The work sizes that deformable attention is measured at, and inputs for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

HEADS, CHANNELS, POINTS = 8, 32, 4


@dataclass(frozen=True)
class Size:
    """A model's use of the operator; queries of an encoder (0) are its tokens."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    queries: int = 0
    uniform: bool = False
    """Points anywhere, the worst case for caches; else near the reference, as trained models' are."""

    @property
    def num_dims(self) -> int:
        return len(self.shapes[0])

    @property
    def tokens(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes)


def pyramid(*first: int) -> tuple[tuple[int, ...], ...]:
    """A level and three more, each half as long on every axis."""
    return tuple(tuple(math.ceil(size / 2**level) for size in first) for level in range(4))


LARGE, MEDIUM = pyramid(100, 167), pyramid(100, 134)
SIZES = (
    Size("dino_encoder", LARGE),
    Size("dino_encoder_uniform", LARGE, uniform=True),
    Size("encoder_1066", MEDIUM),
    Size("dino_decoder_900", LARGE, 900),
    Size("decoder_300", LARGE, 300),
    *(Size(f"spans_{clips}", pyramid(clips)) for clips in (75, 750, 7_500, 75_000)),
    Size("spans_7500_decoder_100", pyramid(7_500), 100),
)


@dataclass(frozen=True)
class Inputs:
    """Arguments of `deformable_attention`, and a gradient of its output."""

    value: Tensor
    shapes: tuple[tuple[int, ...], ...]
    references: Tensor
    offsets: Tensor
    logits: Tensor
    grad_output: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Those that a training step wants gradients of."""
        return self.value, self.offsets, self.logits

    def arguments(self) -> tuple[Tensor, tuple[tuple[int, ...], ...], Tensor, Tensor, Tensor]:
        return self.value, self.shapes, self.references, self.offsets, self.logits

    def trained(self) -> Inputs:
        """The same numbers, with gradients wanted."""
        value, offsets, logits = (x.detach().requires_grad_() for x in self.tensors)
        return replace(self, value=value, offsets=offsets, logits=logits)


def make(size: Size, device: str, dtype: torch.dtype, seed: int, batch: int = 1) -> Inputs:
    """References at token centres (decoders: anywhere); offsets on rays as at the start of training, plus noise."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    dims, levels = size.num_dims, len(size.shapes)
    queries = size.queries or size.tokens
    lead = (batch, queries, HEADS, levels, POINTS)
    if size.queries:
        centers = torch.rand((queries, dims), generator=generator, device=device)
    else:
        centers = torch.cat([grid(shape, device) for shape in size.shapes])
    references = centers.expand(batch, queries, dims)[:, :, None].expand(-1, -1, levels, -1).contiguous()
    angle = torch.arange(HEADS, device=device) * (2 * math.pi / HEADS)
    rays = torch.stack((angle.cos(), angle.sin()), -1)[:, :dims]  # (H, D)
    reach = torch.arange(1, POINTS + 1, device=device)
    offsets = normal(*lead, dims) + rays[:, None, None] * reach[:, None]
    if size.uniform:
        places = torch.rand((*lead, dims), generator=generator, device=device)
        cells = torch.tensor([shape[::-1] for shape in size.shapes], device=device)
        offsets = (places - references[:, :, None, :, None]) * cells[:, None]
    value, logits = normal(batch, size.tokens, HEADS, CHANNELS), normal(*lead)
    grad = normal(batch, queries, HEADS, CHANNELS)
    return Inputs(value.to(dtype), size.shapes, references, offsets.to(dtype), logits.to(dtype), grad.to(dtype))


def grid(shape: tuple[int, ...], device: str) -> Tensor:
    """Centres of cells, (cells, D), fractions in natural order."""
    axes = [(torch.arange(count, device=device) + 0.5) / count for count in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1).flatten(0, -2)


def fewest_bytes(inputs: Inputs, backward: bool) -> int:
    """What must move through memory at least: every input read once, every output written once."""
    given = (inputs.value, inputs.references, inputs.offsets, inputs.logits, inputs.grad_output)
    once = sum(x.numel() * x.element_size() for x in given)  # the output is as large as its gradient
    grads = sum(x.numel() * x.element_size() for x in inputs.tensors)
    return once + grads if backward else once
