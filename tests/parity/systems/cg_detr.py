"""CG-DETR: what its official dictionary holds, and what passes between its modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from parity.systems.family import Member, Said, decoded, projected, system
from torch import Tensor

from momentdetr.detr.types import Memory
from momentdetr.retrieval.encoders.cg_detr import _summarised
from momentdetr.retrieval.saliency import relevant_clips
from momentdetr.retrieval.types import Encoding, MomentOutput, MomentTargets, VideoText


def _evaluated(
    model: Any, inputs: VideoText, output: MomentOutput, targets: MomentTargets, leaves: Mapping[str, Tensor]
) -> Said:
    encoding = output.encoding
    parts = encoding.extras | {"video_mask": inputs.video_mask}
    foreign = _foreign_parts(model, encoding, targets, inputs.video_mask)
    hooks = projected(model, inputs, output) | _pass(model, parts, 0) | _pass(model, foreign, 1)
    count = model.encoder.num_dummies
    words = model.encoder.dummies.expand(len(inputs.text), -1, -1)
    words = torch.cat([words, parts["text"][:, count:]], 1)
    seen = model.encoder.dummy_encoder(Memory(words, parts["text_mask"], parts["text_positions"]))
    hooks["hook.txtproj_encoder"] = seen.tokens.transpose(0, 1)
    return hooks | _dictionary(model, encoding, foreign, targets)


def _dictionary(model: Any, encoding: Encoding, foreign: dict[str, Tensor], targets: MomentTargets) -> Said:
    encoder, parts = model.encoder, encoding.extras
    _, saliency, attention, _ = encoder.fuse(foreign, foreign["video_mask"])
    kind = saliency.dtype
    return {
        "cate_attn_weights": parts["attention"],
        "dummy_tokens": parts["text"][:, : encoder.num_dummies],
        "global_rep_tokens": encoder.prompts.tokens,
        "real_neg_mask": encoder.foreign_rows(targets, parts["text_mask"]),
        "saliency_scores_neg": saliency,
        "src_txt_mask_neg": foreign["text_mask"].to(kind),
        "t2vattnvalues": encoder.attended(parts["attention"], parts["text_mask"]),
        "t2vattnvalues_neg": encoder.attended(attention, foreign["text_mask"]),
        "txt_mask": parts["text_mask"].to(kind),
    }


def _foreign_parts(model: Any, encoding: Encoding, targets: MomentTargets, mask: Tensor) -> dict[str, Tensor]:
    return model.encoder.foreign(encoding, mask, model.encoder.foreign_rows(targets, mask))


def _pass(model: Any, parts: dict[str, Tensor], index: int) -> Said:
    """One pass of the official transformer; its fusion is called twice in each, for clips and for their summary."""
    encoder, mask = model.encoder, parts["video_mask"]
    fused: list[Any] = []
    handles = [encoder.fusion[-1].register_forward_hook(lambda module, args, result: fused.append(result[0]))]
    handles.append(encoder.encoder.register_forward_hook(lambda module, args, result: fused.append((args, result))))
    memory, _, attention, summary = encoder.fuse(parts, mask)
    for handle in handles:
        handle.remove()
    (given,), encoded = fused[1]
    again, twice = ("#1", ("#2", "#3")) if index else ("", ("", "#1"))
    # The official code adds the summary to the clips in place, so that the recorded tensor has it too.
    tokens = torch.cat([encoded.tokens[:, :1], memory.tokens], 1)
    return decoded(model, Encoding(memory, attention), again) | {
        f"hook.transformer{again}.2": memory.tokens,
        f"hook.transformer{again}.3": summary,
        f"hook.transformer{again}.4": attention,
        f"hook.transformer.encoder{again}": tokens.transpose(0, 1),
        f"hook.transformer.t2v_encoder{twice[0]}.0": torch.cat([fused[0], parts["text"]], 1).transpose(0, 1),
        f"hook.transformer.t2v_encoder{twice[0]}.1": attention,
        f"hook.transformer.t2v_encoder{twice[1]}.0": given.tokens[:, :1].transpose(0, 1),
        f"hook.transformer.t2v_encoder{twice[1]}.1": attention.new_zeros(len(mask), 1, 0),
    }


def _trained(model: Any, output: MomentOutput, targets: MomentTargets) -> Said:
    encoding, mask = output.encoding, output.video_mask
    encoder = model.encoder
    sentence, dummy, tokens = encoder.sentences(encoding)
    moment, other, frames, likeness = encoder.moment_summaries(encoding, targets, mask, tokens)
    inside = relevant_clips(targets, mask)
    # The official code compares all clips of the group of the others, too, and reads the result nowhere.
    own = (encoder.moment_encoder, encoder.moment_token, encoder.moment_position)
    _, others = _summarised(*own, encoding.extras["video"], encoding.extras["positions"], ~inside & mask)
    foreign = _foreign_parts(model, encoding, targets, mask)
    said = _dictionary(model, encoding, foreign, targets)
    return said | {
        "memory_moment": moment,
        "nmmemory_moment": other,
        "moment2txt_similarity": likeness,
        "nmoment2txt_similarity": others @ tokens.transpose(1, 2),
        "moment_mask": inside,
        "sentence_dummy": dummy,
        "sentence_txt": sentence,
        "src_vid": frames,
    }


SYSTEM = system("cg_detr", Member(_evaluated, _trained))
