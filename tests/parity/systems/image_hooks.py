"""What passes between the modules of an image detector, by the names of the official modules."""

from __future__ import annotations

from collections import defaultdict
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from detection.model import ImageDetector
from momentdetr.detr import attention
from momentdetr.detr.denoising import Group
from momentdetr.detr.neck import resize_mask
from momentdetr.detr.proposals import Proposals, token_anchors
from momentdetr.detr.types import Memory, Output, Predictions, Queries


class Watch:
    """Listens to one forward pass.

    Attributes:
        results: of each watched module, by its name in our model, call by call.
        weights: mean attention weights (B, Q, N) of each dense or conditional attention, by its module's name.
        mask: of the images.
        memory: what the decoder looked at.
        queries: what it was given, groups included.
        layers: what it said, groups included.
        group: the denoising group, if one was made.
        proposals: of the tokens, if they proposed.
        chosen: (B, Q), the tokens whose proposals became queries.
    """

    def __init__(self, model: ImageDetector, chosen: Tensor | None = None) -> None:
        self.model, self.results, self.weights = model, defaultdict(list), {}  # type: ignore[var-annotated]
        self.mask = torch.zeros(0)
        self.memory: Memory | None = None
        self.queries: Queries | None = None
        self.group: Group | None = None
        self.proposals: Proposals | None = None
        self.chosen, self.raw_anchors = chosen, torch.zeros(0)
        self.layers: tuple[Predictions, ...] = ()
        self._stack: list[str] = []

    def __enter__(self) -> Watch:
        self._handles, self._attend = [], attention.attend
        for name, module in self.model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._enter(name)))
            self._handles.append(module.register_forward_hook(self._leave(name)))
        attention.attend = self._weigh
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        attention.attend = self._attend
        for handle in self._handles:
            handle.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...]) -> None:
            self._stack.append(name)
            if name == "detector.neck":
                self.mask = args[1]
            if name == "detector.detr.decoder":
                self.queries, self.memory = args
            if name == "detector.detr.queries.head":
                self.raw_anchors = token_anchors(args[0], module.size, module.margin)[0]

        return hook

    def _leave(self, name: str) -> Any:
        def hook(module: Any, args: tuple[Any, ...], result: Any) -> None:
            self._stack.pop()
            self.results[name].append(result)
            if name == "detector.detr.decoder":
                self.layers = result.layers
            if name == "detector.detr.denoising":
                self.group = result
            if name == "detector.detr.queries.head":
                self.proposals = result

        return hook

    def _weigh(self, query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, **options: Any) -> Tensor:
        # Identity as every head's values makes the weights visible.
        identity = torch.eye(key.shape[1], dtype=query.dtype).repeat(1, num_heads).expand(len(key), -1, -1)
        with torch.no_grad():
            weights = self._attend(query, key, identity, num_heads=num_heads, **options)
        self.weights[self._stack[-1]] = weights.unflatten(-1, (num_heads, -1)).mean(-2)
        return self._attend(query, key, value, num_heads=num_heads, **options)

    def result(self, name: str) -> Any:
        return self.results[f"detector.{name}"][0]

    def take(self, values: Tensor) -> Tensor:
        """Rows (B, Q, .) of the tokens' (B, N, .) that were chosen."""
        chosen = self.ranked().indices if self.chosen is None else self.chosen
        return values.gather(1, chosen[..., None].expand(-1, -1, values.shape[-1]))

    def ranked(self) -> Any:
        """The best proposals: values (B, Q) and indices (B, Q)."""
        queries: Any = self.model.detector.detr.queries
        assert self.proposals is not None
        scores = queries.ranking(self.proposals.logits)
        return scores.topk(min(queries.num_queries, scores.shape[1]), dim=1)


def hooks_of(system: str, model: ImageDetector, output: Output, seen: Watch) -> dict[str, Tensor]:
    """The recorded hooks of an evaluation."""
    dense = system in ("detr", "conditional_detr", "dab_detr", "dn_detr")
    hooks = _maps(model, seen, dense) | _layers(model, seen, dense, system)
    hooks |= _dino(model, output, seen) if system == "dino" else _transformer(model, system, output, seen, dense)
    for name, ours in (("enc_output_norm", "head.norm"), ("pos_trans_norm", "norm_boxes")):
        if f"detector.detr.queries.{ours}" in seen.results:
            hooks[f"transformer.{name}"] = seen.result(f"detr.queries.{ours}")
    return hooks


def _maps(model: ImageDetector, seen: Watch, dense: bool) -> dict[str, Tensor]:
    """Feature maps, their masks and positions, and their projections."""
    neck, mask = model.detector.neck, seen.mask
    hooks: dict[str, Tensor] = {}
    for level, found in enumerate(seen.results["backbone"][0][-neck.num_maps :]):
        real = resize_mask(mask, found.shape[2:])
        hooks |= {f"backbone.0.{level}.tensors": found, f"backbone.0.{level}.mask": ~real}
        hooks[f"backbone.1.{level}"] = neck.encode(real).permute(0, 3, 1, 2).to(found.dtype)
    for level in range(len(neck.projections)):
        projected = seen.result(f"neck.projections.{level}")
        hooks[f"input_proj.{level}"] = projected
        if dense:
            hooks["input_proj"] = projected
    return hooks


def _layers(model: ImageDetector, seen: Watch, dense: bool, system: str) -> dict[str, Tensor]:
    """Each layer of encoder and decoder; dense code puts the sequence before the batch, DINO in the decoder only."""
    hooks = {}
    for side, attends in (("encoder", "self_attention"), ("decoder", "cross_attention")):
        official = "self_attn" if side == "encoder" else "cross_attn"
        turned = dense or (system == "dino" and side == "decoder")
        for index in range(len(getattr(model.detector.detr, side).layers)):
            ours, name = f"detr.{side}.layers.{index}", f"transformer.{side}.layers.{index}"
            layer, attended = seen.result(ours), seen.result(f"{ours}.{attends}")
            hooks[name] = layer.transpose(0, 1) if turned else layer
            hooks[f"{name}.{official}"] = attended
            if dense:
                hooks[f"{name}.{official}.0"] = attended.transpose(0, 1)
                hooks[f"{name}.{official}.1"] = seen.weights[f"detector.{ours}.{attends}"]
    return hooks


def _transformer(model: ImageDetector, system: str, output: Output, seen: Watch, dense: bool) -> dict[str, Tensor]:
    memory, references = seen.memory, output.references
    assert memory is not None
    hooks = {"transformer.encoder": memory.tokens.transpose(0, 1) if dense else memory.tokens}
    hidden = output.hidden
    if system == "detr":
        grid = memory.tokens.transpose(1, 2).unflatten(-1, memory.level_shapes[0])
        return hooks | {
            "transformer.0": hidden,
            "transformer.1": grid,
            "transformer.decoder": hidden.transpose(1, 2),
        }
    if dense:
        places = references[0] if system == "conditional_detr" else torch.stack(references)
        pair = {"0": hidden, "1": places}
        return hooks | {f"{where}.{k}": v for where in ("transformer", "transformer.decoder") for k, v in pair.items()}
    refined = model.detector.detr.decoder.refinement != "none"
    after = torch.stack([layer.boxes for layer in output.layers] if refined else list(references))
    start = references[0][0] if system == "dab_deformable_detr" else references[0]
    hooks |= {"transformer.0": hidden, "transformer.1": start, "transformer.2": after}
    if seen.proposals is not None:
        hooks |= {"transformer.3": seen.proposals.logits, "transformer.4": seen.proposals.anchors}
    return hooks | {"transformer.decoder.0": hidden, "transformer.decoder.1": after}


def _dino(model: ImageDetector, output: Output, seen: Watch) -> dict[str, Tensor]:
    """DINO's: lists, with the reference behind the last layer, and the chosen proposals."""
    decoder, memory = model.detector.detr.decoder, seen.memory
    assert memory is not None
    last = len(decoder.layers) - 1
    raw, head = seen.result(f"detr.decoder.layers.{last}"), decoder.heads[last % len(decoder.heads)]
    moved = decoder.parametrization.refine(head.boxes(raw), output.references[-1])  # type: ignore[union-attr, operator]
    references = [*output.references, moved]
    hooks = {"transformer.encoder.0": memory.tokens}
    for where in ("transformer", "transformer.decoder"):
        hooks |= {f"{where}.0.{i}": hidden for i, hidden in enumerate(output.hidden)}
        hooks |= {f"{where}.1.{i}": reference for i, reference in enumerate(references)}
    hooks["transformer.4"] = references[0]
    if seen.proposals is not None:
        hooks["transformer.2"] = seen.take(seen.proposals.tokens)[None]
        hooks["transformer.3"] = seen.take(seen.proposals.anchors).sigmoid()[None]
        hooks["transformer.4"] = seen.take(seen.raw_anchors).sigmoid()
        hooks["transformer.enc_out_bbox_embed"] = seen.result("detr.queries.head.boxes")
    return hooks
