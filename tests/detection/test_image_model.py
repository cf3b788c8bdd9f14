from __future__ import annotations

import pytest
import torch
from made_checkpoints import make, make_images

from momentdetr.detr.types import Targets


@pytest.mark.parametrize("system", ["detr", "deformable_detr"])
def test_answers_are_the_best_classes_in_pixels(system: str) -> None:
    model, _ = make(system, top=8)
    images, mask = make_images()
    sizes = torch.tensor([[480, 640], [100, 50]])
    said = model(images, mask).last
    for sample, found in enumerate(model.predict(images, mask, sizes)):
        height, width = sizes[sample].tolist()
        pairs = []
        for query in range(said.logits.shape[1]):
            logits = said.logits[sample, query]
            if system == "detr":  # one class a query, "no object" is none
                scores = logits.softmax(-1)[:-1].tolist()
                pairs.append((max(scores), scores.index(max(scores)), query))
            else:
                pairs += [(score, label, query) for label, score in enumerate(logits.sigmoid().tolist())]
        if system != "detr":
            pairs = sorted(pairs, key=lambda pair: -pair[0])[:8]
        assert found.scores.tolist() == pytest.approx([score for score, _, _ in pairs], abs=1e-6)
        assert found.labels.tolist() == [label for _, label, _ in pairs]
        for corners, (_, _, query) in zip(found.boxes.tolist(), pairs, strict=True):
            x, y, w, h = said.boxes[sample, query].tolist()
            expected = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            assert corners == pytest.approx(expected, abs=1e-3)


def test_more_answers_than_there_are_pairs_are_all_pairs() -> None:
    model, _ = make("deformable_detr", top=1000)
    images, mask = make_images()
    assert len(model.predict(images, mask, torch.ones(2, 2))[0].scores) == 5 * 6


def test_training_reaches_the_backbone() -> None:
    model, _ = make("dino", denoising={"contrastive": True, "indicator": False, "groups": 2})
    images, mask = make_images()
    boxes = torch.tensor([[[0.4, 0.4, 0.2, 0.3]], [[0.3, 0.3, 0.2, 0.2]]])
    targets = Targets(torch.tensor([[1], [4]]), boxes, torch.tensor([[True], [False]]))
    model.train().loss(images, mask, targets).total.backward()
    reached = {
        name.split(".")[1] for name, p in model.backbone.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert reached == {"conv1", "layer1", "layer2", "layer3", "layer4"}
