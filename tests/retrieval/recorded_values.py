"""A few numbers of small retrievers: running this file writes them, `test_recorded.py` compares.

They were recorded when `pytest tests/parity --goldens DIR` passed, and keep what it proved where there are no goldens.
Weights and inputs come from a rule (NumPy's PCG64 seeded by each tensor's official name), so neither torch's random
numbers nor a file of weights is needed to repeat them. Record again only when a change of the numbers is meant and the
parity tests pass; say why in the commit.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TESTS = Path(__file__).parents[1]
FOLDER = Path(__file__).with_name("recorded")
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from parity.fullsize import made_weight, uniform  # noqa: E402

from momentdetr.detr.types import Targets  # noqa: E402
from momentdetr.retrieval.layouts.table import LAYOUTS  # noqa: E402
from momentdetr.retrieval.model import MomentRetriever  # noqa: E402
from momentdetr.retrieval.presets import build  # noqa: E402
from momentdetr.retrieval.types import MomentTargets, SaliencyTargets, VideoText  # noqa: E402

SIZES: dict[str, Any] = {
    "video_dim": 10,
    "text_dim": 6,
    "width": 16,
    "num_heads": 2,
    "feed_forward": 24,
    "num_queries": 4,
    "dropout": 0.0,
    "input_dropout": 0.0,
}
CASES: dict[str, dict[str, Any]] = {
    "moment_detr": {"preset": "moment_detr"},
    "moment_detr_aligned": {"preset": "moment_detr", "alignment_size": 8},
    "moment_detr_boundaries": {
        "preset": "moment_detr",
        "boundary_clips": 12,
        "pre_norm": True,
        "text_positions": 6,
        "sizes": {"input_layers": 3},
    },
    "qd_detr": {"preset": "qd_detr"},
    "qd_detr_official": {"preset": "qd_detr", "official_batch_faults": True, "text_positions": 6},
    "cg_detr": {"preset": "cg_detr", "num_dummies": 3, "num_prompts": 4, "chosen_prompts": 2, "sizes": {"width": 32}},
    "cg_detr_official": {
        "preset": "cg_detr",
        "num_dummies": 3,
        "official_batch_faults": True,
        "text_positions": 6,
        "sizes": {"width": 32},
    },
    "tr_detr": {"preset": "tr_detr"},
    "tr_detr_official": {"preset": "tr_detr", "official_batch_faults": True, "text_positions": 6},
    "uvcom": {"preset": "uvcom", "num_clusters": 4, "likeness_size": 12, "slot_size": 12},
    "uvcom_official": {
        "preset": "uvcom",
        "num_clusters": 4,
        "likeness_size": 12,
        "slot_size": 12,
        "hard_negatives_from": 0,
        "inverted_walk": False,
        "official_batch_faults": True,
        "text_positions": 6,
    },
    "eatr": {"preset": "eatr", "sizes": {"decoder_layers": 3}},
    "eatr_official": {"preset": "eatr", "official_batch_faults": True, "text_positions": 6},
    "qd_detr_deep": {"preset": "qd_detr", "sizes": {"decoder_layers": 3, "input_layers": 1}},
    "taskweave": {"preset": "taskweave"},
    "taskweave_official": {"preset": "taskweave", "official_batch_faults": True, "text_positions": 6},
    "bam_detr": {"preset": "bam_detr", "weights": {"class_": 4.0, "cost_class": 4.0}},
    "bam_detr_official": {"preset": "bam_detr", "official_batch_faults": True, "text_positions": 6},
    "r2_tuning": {"preset": "r2_tuning", "num_layers": 2, "stored_layers": 2, "num_patches": 5},
    "flashvtg": {"preset": "flashvtg", "num_dummies": 3, "fusion_layers": 2},
    "taskweave_moments_first": {"preset": "taskweave", "direction": "moments_first"},
}


def model_of(case: str) -> MomentRetriever:
    """The case's model in float64, with weights by the rule."""
    config = CASES[case]
    model = build({**config, "sizes": {**SIZES, **config.get("sizes", {})}})
    layout = LAYOUTS[config["preset"]]
    named = layout.to_official(model.state_dict())
    official = {name: made_weight(name, list(tensor.shape)) for name, tensor in named.items()}
    model.load_state_dict(layout.to_ours(official, model.state_dict().keys()), strict=True)
    return model.double()


def batch() -> tuple[VideoText, MomentTargets]:
    """Three padded samples with two, one and no true windows."""
    clip_mask = torch.arange(12) < torch.tensor([[12], [7], [10]])
    word_mask = torch.arange(5) < torch.tensor([[3], [5], [4]])
    inputs = VideoText(
        torch.from_numpy(2 * uniform("src_vid", [3, 12, SIZES["video_dim"]]) - 1) * clip_mask[..., None],
        clip_mask,
        torch.from_numpy(2 * uniform("src_txt", [3, 5, SIZES["text_dim"]]) - 1) * word_mask[..., None],
        word_mask,
    )
    boxes = torch.tensor([[[0.2, 0.1], [0.7, 0.3]], [[0.5, 0.4], [0, 0]], [[0, 0], [0, 0]]], dtype=torch.float64)
    spans = Targets(torch.zeros(3, 2).long(), boxes, torch.tensor([[True, True], [True, False], [False, False]]))
    saliency = SaliencyTargets(
        torch.from_numpy(uniform("scores", [3, 12]) * 12).round() * clip_mask,
        positive=torch.tensor([[1, 2], [3, 4], [0, 6]]),
        negative=torch.tensor([[5, 7], [0, 1], [2, 9]]),
    )
    return inputs, MomentTargets(spans, saliency)


def numbers(case: str) -> dict[str, Any]:
    """Sums and first elements of what the model says, every loss term, matched pairs, norms of gradients."""
    model = model_of(case)
    inputs, targets = batch()
    output = model.train()(inputs)
    losses = model.judge(output, targets)
    losses.total.backward()
    said = {"logits": output.output.last.logits, "boxes": output.output.last.boxes, "saliency": output.saliency}
    said |= {f"layer {i} boxes": layer.boxes for i, layer in enumerate(output.output.layers[:-1])}
    return {
        "outputs": {name: _digest(tensor) for name, tensor in said.items()},
        "losses": {name: value.item() for name, value in losses.terms.items()} | {"total": losses.total.item()},
        "pairs": {
            name: [pairs.sample.tolist(), pairs.query.tolist(), pairs.target.tolist()]
            for name, pairs in losses.assignments.items()
        },
        "gradients": _norms(model, CASES[case]["preset"]),
        "scores": _digest(model.eval().predict(inputs).scores),
    }


def _norms(model: MomentRetriever, preset: str) -> dict[str, float | None]:
    """Of each gradient by its official name, so that renaming a module changes nothing; None: no gradient."""
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    given = {name: grad for name, grad in gradients.items() if grad is not None}
    layout = LAYOUTS[preset]
    absent = {layout.place(name)[0]: None for name, grad in gradients.items() if grad is None}
    return {**absent, **{name: grad.norm().item() for name, grad in layout.to_official(given).items()}}


def _digest(tensor: Tensor) -> list[float]:
    """Sum, sum of magnitudes, and the first four elements."""
    flat = tensor.detach().flatten()
    return [flat.sum().item(), flat.abs().sum().item(), *flat[:4].tolist()]


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for case in CASES:
        path = FOLDER / f"{case}.json"
        path.write_text(_lines(numbers(case)))
        sys.stdout.write(f"{path}\n")


def _lines(groups: dict[str, Any]) -> str:
    """JSON with one entry a line."""
    parts = []
    for group, entries in groups.items():
        if isinstance(entries, dict):
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entries.items())
            parts.append(f" {json.dumps(group)}: {{\n{inner}\n }}")
        else:
            parts.append(f" {json.dumps(group)}: {json.dumps(entries)}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


if __name__ == "__main__":
    main()
