"""DETR's post-norm transformer, from torch's own layers."""

from typing import Any

import torch
from torch import Tensor, nn


class EncoderLayer(nn.TransformerEncoderLayer):
    def forward(self, source: Tensor, padded: Tensor, places: Tensor) -> Tensor:  # type: ignore[override]
        placed = source + places
        source = self.norm1(source + self.self_attn(placed, placed, source, key_padding_mask=padded)[0])
        return self.norm2(source + self.linear2(self.linear1(source).relu()))


class DecoderLayer(nn.TransformerDecoderLayer):
    def forward(self, content: Tensor, memory: Tensor, padded: Tensor, places: Tensor, queries: Tensor) -> Tensor:  # type: ignore[override]
        placed = content + queries
        content = self.norm1(content + self.self_attn(placed, placed, content)[0])
        looked = self.multihead_attn(content + queries, memory + places, memory, key_padding_mask=padded)[0]
        content = self.norm2(content + looked)
        return self.norm3(content + self.linear2(self.linear1(content).relu()))


class Encoder(nn.Module):
    def __init__(self, args: Any) -> None:
        super().__init__()
        sizes = (args.hidden_dim, args.nheads, args.dim_feedforward, args.dropout)
        self.layers = nn.ModuleList([EncoderLayer(*sizes) for _ in range(args.enc_layers)])

    def forward(self, source: Tensor, padded: Tensor, places: Tensor) -> Tensor:
        for layer in self.layers:
            source = layer(source, padded, places)
        return source


class Decoder(nn.Module):
    def __init__(self, args: Any) -> None:
        super().__init__()
        sizes = (args.hidden_dim, args.nheads, args.dim_feedforward, args.dropout)
        self.layers = nn.ModuleList([DecoderLayer(*sizes) for _ in range(args.dec_layers)])
        self.norm = nn.LayerNorm(args.hidden_dim)

    def forward(self, memory: Tensor, padded: Tensor, places: Tensor, queries: Tensor) -> Tensor:
        content, found = torch.zeros_like(queries), []
        for layer in self.layers:
            content = layer(content, memory, padded, places, queries)
            found.append(self.norm(content))
        return torch.stack(found)


class Transformer(nn.Module):
    def __init__(self, args: Any) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(args), Decoder(args)

    def forward(self, source: Tensor, mask: Tensor, queries: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        batch, width, height, length = source.shape
        places, padded = places.flatten(2).permute(2, 0, 1), mask.flatten(1)
        memory = self.encoder(source.flatten(2).permute(2, 0, 1), padded, places)
        hidden = self.decoder(memory, padded, places, queries[:, None].expand(-1, batch, -1))
        return hidden.transpose(1, 2), memory.permute(1, 2, 0).reshape(batch, width, height, length)
