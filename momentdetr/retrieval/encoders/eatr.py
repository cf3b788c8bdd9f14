"""EaTR (Jang et al., 2023): slots find the events of a video, and moments are sought among them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from momentdetr.detr.assignment import HungarianMatcher, giou_cost, l1_cost
from momentdetr.detr.encoder import Encoder
from momentdetr.detr.losses import giou_loss, l1
from momentdetr.detr.mlp import MLP
from momentdetr.detr.positions import grid_positions
from momentdetr.detr.types import Assignment, Memory, Predictions, Targets
from momentdetr.retrieval.encoders.eatr_decoder import EventQueries
from momentdetr.retrieval.encoders.events import event_targets, pseudo_events, signed_giou_cost, signed_giou_loss
from momentdetr.retrieval.encoders.slots import SlotAttention
from momentdetr.retrieval.projection import LearnedTextPositions, Projection
from momentdetr.retrieval.saliency import margin_loss
from momentdetr.retrieval.types import Encoding, MomentTargets, VideoText


class EatrEncoder(nn.Module):
    """Clips and words side by side, as in Moment-DETR; queries are events, taught by where the video changes.

    Args:
        video_projection: (B, T, Cv) -> (B, T, C).
        text_projection: (B, W, Ct) -> (B, W, C).
        encoder: self-attention over T + W tokens.
        slots: turns learned vectors into events.
        event_matcher: which query answers for which pseudo event.
        width: C.
        num_queries: Q.
        text_positions: optional positions of words; without them words have none, as published.
        saliency_margin: of the hinge loss.
        official_batch_faults: reproduce faults of the official code; only its checkpoints want them. Slots share padded
            clips equally, padded words take part in the maximum that sums up the text, and see `pseudo_events`. Without
            them a sample's answer does not depend on its batch.
    """

    def __init__(
        self,
        *,
        video_projection: Projection,
        text_projection: Projection,
        encoder: Encoder,
        slots: SlotAttention,
        event_matcher: HungarianMatcher,
        width: int,
        num_queries: int,
        text_positions: LearnedTextPositions | None = None,
        saliency_margin: float = 0.2,
        official_batch_faults: bool = False,
    ) -> None:
        super().__init__()
        self.video_projection, self.text_projection = video_projection, text_projection
        self.text_positions, self.encoder, self.slots = text_positions, encoder, slots
        self.first_slots = nn.Parameter(torch.empty(num_queries, width))
        nn.init.xavier_normal_(self.first_slots)
        self.event_spans, self.event_norm = MLP(width, width, width, 2), nn.LayerNorm(width)
        self.saliency = nn.Linear(width, 1)
        self.event_matcher = event_matcher
        self.width, self.saliency_margin = width, saliency_margin
        self.official_batch_faults = official_batch_faults

    def forward(self, inputs: VideoText) -> Encoding:
        video = self.video_projection(inputs.video, inputs.video_mask)
        text = self.text_projection(inputs.text)
        words = torch.zeros_like(text) if self.text_positions is None else self.text_positions(text)
        positions = grid_positions(inputs.video_mask, self.width).to(video.dtype)
        num_clips = video.shape[1]
        memory = self.encoder(
            Memory(
                torch.cat([video, text], 1),  # (B, T + W, C)
                torch.cat([inputs.video_mask, inputs.text_mask], 1),
                torch.cat([positions, words], 1),
                level_shapes=((num_clips,),),
            )
        )
        queries = self._events(video + positions, text, inputs)
        extras = {"events": self.event_norm(queries.content), "clips": inputs.video}
        extras["event_spans"] = self.event_spans(extras["events"]).sigmoid()
        return Encoding(
            memory=memory,
            saliency=self.saliency(memory.tokens[:, :num_clips]).squeeze(-1),  # (B, T)
            extras=extras,
            queries=queries,
            text=memory.tokens[:, num_clips:],
            text_mask=inputs.text_mask,
        )

    def _events(self, placed: Tensor, text: Tensor, inputs: VideoText) -> EventQueries:
        slots = self.slots(placed, inputs.video_mask, self.first_slots.expand(len(placed), -1, -1))
        if not self.official_batch_faults:
            text = text.masked_fill(~inputs.text_mask[..., None], -torch.inf)
        return EventQueries(
            content=slots,
            references=self.event_spans(slots).sigmoid(),
            sentence=text.max(1, keepdim=True).values,
        )

    def match_events(self, encoding: Encoding, mask: Tensor) -> tuple[Predictions, Targets, Assignment]:
        """What was said of events, what is held true of them, and who answers for which."""
        spans = encoding.extras["event_spans"]
        events = pseudo_events(encoding.extras["clips"], mask, official_batch_faults=self.official_batch_faults)
        said = Predictions(spans.new_zeros(*spans.shape[:2], 1), spans)
        true = event_targets(events, spans)
        return said, true, self.event_matcher(said, true)

    def losses(self, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
        """Moment-DETR's hinge, and the spans of events.

        Args:
            mask: (B, T), True where a clip is real.
        """
        events = self.match_events(encoding, mask)
        one = encoding.saliency.new_ones(())
        terms = {
            "event_span": l1(*events, one, normalize="mean"),
            "event_giou": (signed_giou_loss if self.official_batch_faults else giou_loss)(
                *events, one, normalize="mean"
            ),
        }
        if targets.saliency is None:
            return terms
        return {"saliency": margin_loss(encoding.saliency, targets.saliency, self.saliency_margin), **terms}


def event_matcher(cost_l1: float, cost_giou: float, *, signed: bool = False) -> HungarianMatcher:
    """Which query answers for which event: a matter of spans only; `signed`: see `signed_giou`."""
    overlap = signed_giou_cost if signed else giou_cost
    return HungarianMatcher({"l1": l1_cost, "giou": overlap}, {"l1": cost_l1, "giou": cost_giou})
