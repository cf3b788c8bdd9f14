"""EaTR: what its official dictionary holds, and what passes between its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from parity.check import Case
from parity.systems.family import Member, Said, projected, system
from parity.systems.moments import _pairs
from torch import Tensor

from momentdetr.retrieval.encoders.events import pseudo_events
from momentdetr.retrieval.types import MomentOutput, MomentTargets, VideoText


def _evaluated(
    model: Any, inputs: VideoText, output: MomentOutput, targets: MomentTargets, leaves: Mapping[str, Tensor]
) -> Said:
    encoding = output.encoding
    assert encoding.queries is not None
    hidden = torch.cat([encoding.extras["events"][None], output.output.hidden])
    references, tokens = torch.stack(output.output.references), encoding.memory.tokens
    positions = encoding.memory.positions
    assert positions is not None
    hooks = {
        "hook.transformer.0": hidden,
        "hook.transformer.1": tokens,
        "hook.transformer.2": references,
        "hook.transformer.decoder.0": hidden,
        "hook.transformer.decoder.1": references,
        "hook.transformer.decoder.slot_atten": encoding.queries.content,
        "hook.transformer.encoder": tokens.transpose(0, 1),
    }
    hooks |= projected(model, inputs, output)
    hooks["hook.position_embed"] = positions[:, : inputs.video.shape[1]]  # words have none
    return hooks | _trained(model, output, targets)


def _trained(model: Any, output: MomentOutput, targets: MomentTargets) -> Said:
    faults = model.encoder.official_batch_faults
    events = pseudo_events(output.encoding.extras["clips"], output.video_mask, official_batch_faults=faults)
    said = {f"pseudo_event_spans.{index}": spans for index, spans in enumerate(events)}
    return said | {"pred_event_spans": output.encoding.extras["event_spans"]}


def _case(case: Case, model: Any, output: MomentOutput, leaves: Mapping[str, Tensor]) -> Case:
    _, _, assignment = model.encoder.match_events(output.encoding, output.video_mask)
    called = [_pairs(assignment, len(output.video_mask))]
    return replace(case, indices={**case.indices, "event_matcher": called})


SYSTEM = system("eatr", Member(_evaluated, _trained, _case))
