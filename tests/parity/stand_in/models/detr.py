"""DETR, its matcher, its losses and its answers."""

from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from .backbone import build_backbone
from .transformer import Transformer


class Head(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, 4)])

    def forward(self, hidden: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](hidden).relu()).relu()).sigmoid()


class DETR(nn.Module):
    def __init__(self, args: Any, num_classes: int) -> None:
        super().__init__()
        self.transformer = Transformer(args)
        self.class_embed = nn.Linear(args.hidden_dim, num_classes + 1)
        self.bbox_embed = Head(args.hidden_dim)
        self.query_embed = nn.Embedding(args.num_queries, args.hidden_dim)
        self.backbone = build_backbone(args)
        self.input_proj = nn.Conv2d(self.backbone.num_channels, args.hidden_dim, kernel_size=1)

    def forward(self, samples: Any) -> dict[str, Any]:
        maps, places = self.backbone(samples)
        source = self.input_proj(maps[-1].tensors)
        hidden = self.transformer(source, maps[-1].mask, self.query_embed.weight, places[-1])[0]
        said = [{"pred_logits": self.class_embed(h), "pred_boxes": self.bbox_embed(h)} for h in hidden]
        return {**said[-1], "aux_outputs": said[:-1]}


class Matcher(nn.Module):
    def __init__(self, args: Any) -> None:
        super().__init__()
        self.weights = (args.set_cost_class, args.set_cost_bbox, args.set_cost_giou)

    @torch.no_grad()
    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> list[tuple[Tensor, Tensor]]:
        pairs = []
        for logits, boxes, true in zip(outputs["pred_logits"], outputs["pred_boxes"], targets, strict=True):
            overlap = generalized_box_iou(*(box_convert(b, "cxcywh", "xyxy") for b in (boxes, true["boxes"])))
            costs = (-logits.softmax(-1)[:, true["labels"]], torch.cdist(boxes, true["boxes"], p=1), -overlap)
            cost = sum(weight * part for weight, part in zip(self.weights, costs, strict=True))
            rows, columns = linear_sum_assignment(cost)
            pairs.append((torch.as_tensor(rows), torch.as_tensor(columns)))
        return pairs


class SetCriterion(nn.Module):
    def __init__(self, args: Any, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.matcher = num_classes, Matcher(args)
        once = {"loss_ce": 1, "loss_bbox": args.bbox_loss_coef, "loss_giou": args.giou_loss_coef}
        layers = ["", *(f"_{index}" for index in range(args.dec_layers - 1))]
        self.weight_dict = {f"{name}{layer}": weight for layer in layers for name, weight in once.items()}
        self.register_buffer("empty_weight", torch.tensor([1.0] * num_classes + [args.eos_coef]))

    def forward(self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        losses = self.judge(outputs, targets, "")
        for index, layer in enumerate(outputs["aux_outputs"]):
            earlier = self.judge(layer, targets, f"_{index}")
            losses |= {name: value for name, value in earlier.items() if "class_error" not in name}
        return losses

    def judge(self, said: dict[str, Tensor], targets: list[dict[str, Tensor]], layer: str) -> dict[str, Tensor]:
        pairs = self.matcher(said, targets)
        logits, boxes, count = said["pred_logits"], said["pred_boxes"], max(1, sum(len(t["labels"]) for t in targets))
        classes = torch.full(logits.shape[:2], self.num_classes)
        for sample, (query, target) in enumerate(pairs):
            classes[sample, query] = targets[sample]["labels"][target]
        found = torch.cat([boxes[sample, query] for sample, (query, _) in enumerate(pairs)])
        true = torch.cat([targets[sample]["boxes"][target] for sample, (_, target) in enumerate(pairs)])
        right = (logits.argmax(-1) == classes)[classes < self.num_classes]
        corners = [box_convert(b, "cxcywh", "xyxy") for b in (found, true)]
        objects = (logits.argmax(-1) != self.num_classes).sum(1)
        numbers = torch.tensor([len(t["labels"]) for t in targets])
        losses = {
            "loss_ce": F.cross_entropy(logits.transpose(1, 2), classes, self.empty_weight),
            "class_error": 100 - 100 * right.float().mean(),
            "loss_bbox": (found - true).abs().sum() / count,
            "loss_giou": (1 - generalized_box_iou(*corners).diagonal()).sum() / count,
            "cardinality_error": (objects - numbers).abs().float().mean(),
        }
        return {f"{name}{layer}": value for name, value in losses.items()}


class PostProcess(nn.Module):
    def forward(self, outputs: dict[str, Tensor], sizes: Tensor) -> list[dict[str, Tensor]]:
        scores, labels = outputs["pred_logits"].softmax(-1)[..., :-1].max(-1)
        scale = sizes.flip(1).repeat(1, 2)[:, None]
        boxes = box_convert(outputs["pred_boxes"], "cxcywh", "xyxy") * scale
        return [{"scores": s, "labels": c, "boxes": b} for s, c, b in zip(scores, labels, boxes, strict=True)]


def build(args: Any) -> tuple[nn.Module, nn.Module, dict[str, nn.Module]]:
    num_classes = 91
    return DETR(args, num_classes), SetCriterion(args, num_classes), {"bbox": PostProcess()}
