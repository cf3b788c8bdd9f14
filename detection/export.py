"""A detector as a program for other engines: `torch.export`, and ONNX without custom operations.

The program takes images (B, 3, H, W), scaled and normalised as `Predictor.prepared` does, and a mask (B, H, W), 1 where
a pixel is real; B, H and W are free, H and W from 65 on. It returns, for each image, scores (B, N) in [0, 1], labels
(B, N) and boxes (B, N, 4): corners x0, y0, x1, y1 as fractions of the image's real part, best first.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from detection.model import ImageDetector
from detection.predictor import Predictor
from momentdetr.detr.boxes import to_corners
from momentdetr.errors import BadInput, StoreError

OPSET = 20
INPUTS, OUTPUTS = ("images", "mask"), ("scores", "labels", "boxes")
# The least height and width: a map of a single cell would be taken for one that is always so.
MIN_SIDE = 65
STRIDE = 32


class Exportable(nn.Module):
    """The part of a detector that is a program: no Python decision on what is in a tensor.

    Args:
        model: the detector. Its soft suppression, a loop over boxes, is left out.
    """

    def __init__(self, model: ImageDetector) -> None:
        super().__init__()
        self.model = model.eval()

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        model, real = self.model, mask > 0.5
        # Not through `Detector.forward`, which looks for NaN to name the sample.
        said = model.detector.detr(model.detector.neck(model.backbone(images), real)).last
        corners = to_corners(said.boxes.float())
        if model.scores == "softmax":
            best, labels = said.logits.float().softmax(-1)[..., :-1].max(-1)
            scores, query = best.sort(-1, descending=True)
            return scores, labels.gather(1, query), corners.gather(1, query[..., None].expand(-1, -1, 4))
        classes = said.logits.shape[-1]
        scores, index = said.logits.float().sigmoid().flatten(1).topk(self.number(said.logits), dim=1)
        query = torch.div(index, classes, rounding_mode="floor")
        return scores, index - query * classes, corners.gather(1, query[..., None].expand(-1, -1, 4))

    def number(self, logits: Tensor) -> int:
        """Answers an image."""
        return min(self.model.top, logits.shape[1] * logits.shape[2])


@dataclass(frozen=True)
class Verified:
    """How far an engine's answers are from torch's.

    Args:
        scores: greatest difference.
        boxes: greatest difference of coordinates, as fractions, over answers whose score is told apart.
        images: how many were compared.
    """

    scores: float
    boxes: float
    images: int


def export_program(model: ImageDetector, *, side: int = 128) -> ExportedProgram:
    """The detector as torch's own exported program.

    Args:
        model: on the CPU.
        side: of the example that it is traced with, pixels.
    """
    images, mask = _example(2, side, side + STRIDE)
    height, width = Dim("height", min=MIN_SIDE, max=8192), Dim("width", min=MIN_SIDE, max=8192)
    batch = Dim("batch", min=1, max=1024)
    shapes = {"images": {0: batch, 2: height, 3: width}, "mask": {0: batch, 1: height, 2: width}}
    with torch.no_grad():
        # Strict, because Python's own len() and torch.Size would turn free sizes into numbers. What cannot be proved of
        # all sizes, such as that a rounded-up half of a map is not empty, is left to be checked at run time.
        return torch.export.export(
            Exportable(model),
            (images, mask),
            dynamic_shapes=shapes,
            strict=True,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def export_onnx(predictor: Predictor, path: str | Path, *, side: int = 128) -> Path:
    """Write a detector as one ONNX file; its metadata name the classes and the size of its images.

    Raises:
        BadInput: onnx or onnxscript is not installed.
        StoreError: the file cannot be written.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise BadInput("export needs onnx and onnxscript; pip install onnx onnxscript") from error
    path = Path(path)
    if path.suffix != ".onnx":
        raise BadInput(f"{path}: ends in {path.suffix or 'nothing'}, expected a name that ends in .onnx")
    program = _without_custom(export_program(predictor.model, side=side))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        made = torch.onnx.export(program, input_names=INPUTS, output_names=OUTPUTS, opset_version=OPSET, verbose=False)
    assert made is not None
    document: Any = made.model_proto
    facts = {
        "labels": json.dumps(list(predictor.labels)),
        "category_ids": json.dumps(list(predictor.category_ids)),
        "input": json.dumps({"short_side": predictor.short_side, "long_side": predictor.long_side}),
    }
    onnx.helper.set_model_props(document, facts)
    custom = sorted({node.domain for node in document.graph.node} - {"", "ai.onnx"})
    if custom:
        raise BadInput(f"the exported program has operations of {', '.join(custom)}, which other engines do not know")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}")
        onnx.save_model(document, beside)
        beside.replace(path)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror or error}") from error
    return path


def verify_onnx(
    predictor: Predictor, path: str | Path, pictures: list[Tensor] | None = None, *, sides: tuple[int, ...] = (96, 160)
) -> Verified:
    """Compare an ONNX file in onnxruntime with torch, on random images of other sizes than it was traced with.

    Args:
        predictor: what was exported.
        path: the file.
        pictures: prepared images (3, h, w) to be compared too, padded together.
        sides: of the random ones, pixels.

    Raises:
        BadInput: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise BadInput("verifying needs onnxruntime; pip install onnxruntime") from error
    from detection.batch import pad_images

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    cases = [_example(batch, side, side + STRIDE, seed=side) for batch, side in enumerate(sides, start=1)]
    if pictures:
        padded, mask = pad_images(pictures)
        cases.append((padded, mask.float()))
    scores = boxes = 0.0
    exportable = Exportable(predictor.model)
    for images, mask in cases:
        found = session.run(None, {"images": images.numpy(), "mask": mask.numpy()})
        with torch.no_grad():
            wanted = [part.numpy() for part in exportable(images, mask)]
        off = difference(found, wanted)
        scores, boxes = max(scores, off[0]), max(boxes, off[1])
    return Verified(scores, boxes, sum(len(images) for images, _ in cases))


def difference(found: list[Any], wanted: list[Any], *, tie: float = 1e-4) -> tuple[float, float]:
    """Greatest difference of scores, and of the boxes of answers whose score no other comes nearer to than `tie`.

    Where scores are as good as equal, two engines may give answers in another order, and both are right.
    """
    scores = float(np.abs(found[0] - wanted[0]).max(initial=0))
    gaps = np.abs(np.diff(wanted[0], axis=1))
    apart = np.ones_like(wanted[0], dtype=bool)
    apart[:, 1:] &= gaps > tie
    apart[:, :-1] &= gaps > tie
    off = np.abs(found[2] - wanted[2]).max(-1) + (found[1] != wanted[1])
    return scores, float(off[apart].max(initial=0))


def _without_custom(program: ExportedProgram) -> ExportedProgram:
    """The same program with our own operations written in those that other engines know."""
    if importlib.util.find_spec("momentdetr.detr.kernels") is None:  # no operations of our own in it
        return program
    made: ExportedProgram = importlib.import_module("momentdetr.detr.kernels.export").for_onnx(program)
    return made


def _example(batch: int, height: int, width: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random images, the first of which is padded to the others."""
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(batch, height, width)
    if batch > 1:
        mask[0, :, width * 3 // 4 :] = 0
        images[0, :, :, width * 3 // 4 :] = 0
    return images, mask
