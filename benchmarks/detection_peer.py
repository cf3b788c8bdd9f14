"""transformers' Deformable DETR as the benchmark trains it: its layers and its loss, our backbone and images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from detection.backbone import timm_backbone
from detection.data.dataset import ImageBatch
from detection.model import Detections
from momentdetr.detr.types import Targets


class Peer(nn.Module):
    """DeformableDetrForObjectDetection with box refinement and losses of every layer, weights random.

    Args:
        num_classes: without "no object".
        backbone: arguments of `timm_backbone`. The library freezes batch norms, which are of no use when nothing is
            pretrained, so the backbone is put in place of its own.
        sizes: of `assembly.Sizes`, in our words.
    """

    def __init__(self, num_classes: int, backbone: Mapping[str, Any], sizes: Mapping[str, Any]) -> None:
        super().__init__()
        from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

        config = DeformableDetrConfig(
            num_labels=num_classes,
            backbone_config={
                "model_type": "timm_backbone",
                "backbone": backbone["name"],
                "out_indices": [2, 3, 4],
                "use_pretrained_backbone": False,
            },
            num_queries=sizes["num_queries"],
            d_model=sizes["width"],
            encoder_layers=sizes["encoder_layers"],
            decoder_layers=sizes["decoder_layers"],
            encoder_ffn_dim=sizes["feed_forward"],
            decoder_ffn_dim=sizes["feed_forward"],
            encoder_attention_heads=sizes["num_heads"],
            decoder_attention_heads=sizes["num_heads"],
            dropout=sizes.get("dropout", 0.0),
            with_box_refine=True,
            auxiliary_loss=True,
        )
        self.network = DeformableDetrForObjectDetection(config)
        self.network.model.backbone.model = timm_backbone(**backbone).body

    def loss(self, batch: ImageBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Its own loss, and its terms."""
        said = self.network(pixel_values=batch.images, pixel_mask=batch.mask.long(), labels=_labels(batch.targets))
        return said.loss, {name: value.detach() for name, value in said.loss_dict.items()}

    @torch.no_grad()
    def predict(self, images: Tensor, mask: Tensor, sizes: Tensor) -> list[Detections]:
        """As `ImageDetector.predict`, by the library's own post-processing: the best hundred pairs."""
        said = self.network(pixel_values=images, pixel_mask=mask.long())
        probabilities = said.logits.sigmoid().flatten(1)
        scores, index = probabilities.topk(min(100, probabilities.shape[1]), dim=1)
        classes = said.logits.shape[-1]
        boxes = said.pred_boxes.gather(1, (index // classes)[..., None].expand(-1, -1, 4))
        centre, size = boxes.chunk(2, -1)
        scale = sizes.flip(-1).repeat(1, 2)[:, None].to(boxes.dtype)
        corners = torch.cat([centre - size / 2, centre + size / 2], -1) * scale
        return [Detections(*rows) for rows in zip(scores, index % classes, corners, strict=True)]


def _labels(targets: Targets) -> list[dict[str, Tensor]]:
    rows = zip(targets.labels, targets.boxes, targets.mask, strict=True)
    return [{"class_labels": labels[real], "boxes": boxes[real]} for labels, boxes, real in rows]
