"""The detector: queries over a memory, decoded."""

from __future__ import annotations

from torch import nn

from momentdetr.detr.decoder import Decoder
from momentdetr.detr.types import Memory, Output


class Detr(nn.Module):
    """Memory -> Output, in any number of dimensions.

    Args:
        queries: Memory -> Queries.
        decoder: (Queries, Memory) -> Output.
    """

    def __init__(self, *, queries: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.queries, self.decoder = queries, decoder

    def forward(self, memory: Memory) -> Output:
        return self.decoder(self.queries(memory), memory)
