"""What an official model, criterion and post-processor compute, as a folder of goldens."""

from __future__ import annotations

import argparse
import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from parity import checkout
from parity.check import Case, Pairs, Run
from parity.checkout import Backbone, Official
from parity.material import DTYPES, LOSS_KEY, SUFFIX
from parity.writing import recorded, write_inputs
from safetensors.torch import save_file
from torch import Tensor, nn

SIZES = ((88, 112), (96, 72))
ORIGINAL = [[480, 640], [333, 250]]
COUNTS = {"A": (3, 2), "B": (4, 0)}
"""Targets of each image in each training case."""

HOOKS = (
    r"backbone",
    r"input_proj(\.\d+)?",
    r"transformer(\.(encoder|decoder))?",
    r"transformer\.(encoder|decoder)\.layers\.\d+",
    r"transformer\.encoder\.layers\.\d+\.self_attn",
    r"transformer\.decoder\.layers\.\d+\.cross_attn",
    r"transformer\.(enc_output_norm|pos_trans_norm|enc_out_bbox_embed)",
)
"""Modules whose results are recorded, where the model has them."""

DRAWS = ("rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "randperm")
NOISERS = ("prepare_for_dn", "prepare_for_cdn")
"""Official makers of denoising queries."""
NOISED = ("input_query_label", "input_query_bbox", "attn_mask")
"""What they return first."""

Target = dict[str, Tensor]


def record(
    folder: Path,
    out: Path,
    options: Mapping[str, Any] | None = None,
    *,
    config_file: str | None = None,
    backbone: Backbone | None = None,
    seed: int = 0,
) -> Path:
    """Run an official checkout and write what it computed; see `checkout.checkout` for the arguments."""
    small = backbone or Backbone()
    with checkout.checkout(folder, options or {}, config_file=config_file, backbone=small, seed=seed) as official:
        disturb(official.model, seed)
        inputs = make_inputs(official.num_classes, seed)
        config = {
            "system": official.system,
            "name": out.name,
            "seed": seed,
            "image_sizes": [list(size) for size in SIZES],
            "target_sizes": ORIGINAL,
            "tiny_backbone": {"width": small.width, "layers": list(small.layers)},
            "args": dict(official.changed),
            "full_args": _plain(vars(official.args)),
            "tied_parameters": tied(official.model),
            **official.about,
            "shims": list(checkout.SHIMS),
            "torch": torch.__version__,
        }
        write_inputs(out, config, official.model.state_dict(), inputs)
        runs, draws = {}, {}  # type: ignore[var-annotated]
        for dtype in DTYPES:
            runs[dtype] = run(official, inputs, dtype, draws)
    write(out, runs, dict(official.criterion.weight_dict))  # type: ignore[arg-type]
    return out


def disturb(model: nn.Module, seed: int) -> None:
    """Move every number away from its start, so that each matters: official heads start at zero, statistics at one."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
            elif buffer.is_floating_point():
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))


def tied(model: nn.Module) -> list[list[str]]:
    """Names of the state dict that are one parameter, group by group."""
    names: dict[int, list[str]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        names.setdefault(id(value), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def make_inputs(num_classes: int, seed: int) -> dict[str, Tensor]:
    """Two images of different sizes, their padding (True), and the targets of two cases."""
    generator = torch.Generator().manual_seed(seed + 2)
    height, width = (max(sides) for sides in zip(*SIZES, strict=True))
    images, mask = torch.zeros(len(SIZES), 3, height, width), torch.ones(len(SIZES), height, width, dtype=torch.bool)
    for index, (h, w) in enumerate(SIZES):
        images[index, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[index, :h, :w] = False
    inputs = {"images": images, "mask": mask}
    for case, counts in COUNTS.items():
        for index, count in enumerate(counts):
            centers, sizes = torch.rand(2, count, 2, generator=generator)
            inputs[f"targets_{case}.{index}.labels"] = torch.randint(1, num_classes, (count,), generator=generator)
            inputs[f"targets_{case}.{index}.boxes"] = torch.cat([0.25 + centers / 2, 0.1 + 0.3 * sizes], 1)
    return inputs


def run(official: Official, inputs: Mapping[str, Tensor], dtype: str, draws: dict[str, list[Any]]) -> Run:
    """Evaluate, and train each case, in one precision.

    Args:
        draws: random numbers by case; those of the first precision are kept there and used again in the second.
    """
    model = copy.deepcopy(official.model).to(DTYPES[dtype])
    criterion = copy.deepcopy(official.criterion).to(DTYPES[dtype])
    samples = official.nested(inputs["images"].to(DTYPES[dtype]), inputs["mask"])
    outputs: dict[str, Tensor] = {}
    with torch.no_grad(), hooked(model) as seen:
        said = official.evaluate(model.eval(), samples)
    outputs |= flat("eval", said)
    outputs |= {f"eval.hook.{name}": value for name, value in seen.items()}
    answers = official.postprocess(said, torch.tensor(ORIGINAL))
    outputs |= flat("eval.post", answers)
    cases = {}
    for case in COUNTS:
        targets = targets_of(inputs, case, DTYPES[dtype])
        found, cases[case] = _train(official, model.train(), criterion, (samples, targets), draws.setdefault(case, []))
        outputs |= {f"train_{case}.{name}": value for name, value in found.items()}
    return Run(outputs, cases)


def targets_of(inputs: Mapping[str, Tensor], case: str, dtype: torch.dtype) -> list[Target]:
    """What the official criterion takes."""
    return [
        {
            "labels": inputs[f"targets_{case}.{index}.labels"],
            "boxes": inputs[f"targets_{case}.{index}.boxes"].to(dtype),
        }
        for index in range(len(COUNTS[case]))
    ]


def _train(
    official: Official, model: nn.Module, criterion: nn.Module, given: tuple[Any, list[Target]], draws: list[Any]
) -> tuple[dict[str, Tensor], Case]:
    samples, targets = given
    model.zero_grad(set_to_none=True)
    found: dict[str, Tensor] = {}
    with ExitStack() as stack:
        drawn = stack.enter_context(drawing(draws))
        stack.enter_context(noising(found))
        calls = stack.enter_context(matching(criterion))
        said, further = official.train(model, samples, targets)
        losses = criterion(said, targets, *further)
    weights = criterion.weight_dict
    total = sum(losses[name] * weights[name] for name in losses if name in weights)  # type: ignore[operator, union-attr]
    total.backward()  # type: ignore[union-attr]
    found |= flat("", said)
    for groups in further:
        found |= flat("dn", groups)
    found |= {f"rng.{index:02}.{name}": value for index, (name, value) in enumerate(drawn)}
    gradients = {
        name: None if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    terms = {name: value.detach() if isinstance(value, Tensor) else value for name, value in losses.items()}
    return found, Case(terms, total.detach(), {"matcher": calls}, gradients)  # type: ignore[union-attr]


@contextmanager
def hooked(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Results of the modules in HOOKS while the block runs."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda module, args, result, name=name: seen.update(flat(name, result)))
        for name, module in model.named_modules()
        if any(re.fullmatch(pattern, name) for pattern in HOOKS)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def matching(criterion: nn.Module) -> Iterator[list[list[Pairs]]]:
    """Every call of the criterion's matcher: pairs of each sample."""
    calls: list[list[Pairs]] = []

    def keep(module: nn.Module, args: Any, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        calls.append([[query.tolist(), target.tolist()] for query, target in pairs])

    handle = criterion.matcher.register_forward_hook(keep)  # type: ignore[union-attr]
    try:
        yield calls
    finally:
        handle.remove()


@contextmanager
def drawing(kept: list[Any]) -> Iterator[list[tuple[str, Tensor]]]:
    """Every random draw, in order; where some are kept, these are drawn again, in the precision that is asked for."""
    replay, drawn = list(kept), []  # type: ignore[var-annotated]

    def watch(name: str) -> Callable[..., Tensor]:
        official = getattr(torch, name)

        def draw(*args: Any, **options: Any) -> Tensor:
            fresh = official(*args, **options)
            if replay:
                called, value = replay.pop(0)
                if called != name or value.shape != fresh.shape:
                    raise RuntimeError(f"drew {name} {tuple(fresh.shape)}, before it was {called} {tuple(value.shape)}")
                fresh = value.to(fresh.dtype)
            drawn.append((name, fresh.clone()))
            return fresh

        return draw

    with mock.patch.multiple(torch, **{name: watch(name) for name in DRAWS}):
        yield drawn
    if not kept:
        kept.extend(drawn)


@contextmanager
def noising(found: dict[str, Tensor]) -> Iterator[None]:
    """Denoising queries and their mask, as the official makers return them."""
    with ExitStack() as stack:
        for module in checkout.modules():
            for name in vars(module).keys() & set(NOISERS):
                stack.enter_context(mock.patch.object(module, name, _watched(getattr(module, name), found)))
        yield


def _watched(official: Callable[..., Any], found: dict[str, Tensor]) -> Callable[..., Any]:
    def make(*args: Any, **options: Any) -> Any:
        result = official(*args, **options)
        found.update(flat("dnq", dict(zip(NOISED, result, strict=False))))
        return result

    return make


def flat(name: str, value: Any) -> dict[str, Tensor]:
    """Tensors and numbers of nested dictionaries and sequences, by dotted names; what is neither is left out."""
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    if isinstance(value, bool | int):
        return {name: torch.tensor(value)}
    if hasattr(value, "tensors") and hasattr(value, "mask"):  # the official pair of images and mask
        value = {"tensors": value.tensors, "mask": value.mask}
    if isinstance(value, Mapping):
        parts = list(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        parts = list(enumerate(value))  # type: ignore[arg-type]
    else:
        return {}
    prefix = f"{name}." if name else ""
    return {key: tensor for part, inner in parts for key, tensor in flat(f"{prefix}{part}", inner).items()}


def write(out: Path, runs: Mapping[str, Run], weight_dict: Mapping[str, float]) -> None:
    """Outputs of each precision, losses, how far the precisions are apart, and a page about it."""
    losses: dict[str, Any] = {}
    for dtype, found in runs.items():
        tensors = {name: value.contiguous() for name, value in found.outputs.items()}
        save_file(tensors, out / f"outputs{SUFFIX[dtype]}.safetensors")
        losses[LOSS_KEY[dtype]] = {name: recorded(case) for name, case in found.cases.items()}
        losses[LOSS_KEY[dtype]]["weight_dict"] = {name: float(value) for name, value in weight_dict.items()}
    (out / "losses.json").write_text(json.dumps(losses))
    spreads = _spreads(runs["float32"].outputs, runs["float64"].outputs)
    (out / "tolerances.json").write_text(json.dumps({"what": "largest |float32 - float64|", "diff": spreads}))
    (out / "README.md").write_text(PAGE.format(name=out.name, tensors=len(runs["float32"].outputs)))


PAGE = """# {name}

Written by `tests/parity/record.py` from official code, as it is: {tensors} tensors in each precision. `config.json` has
the repository, its commit, all arguments and what stood in for what is not installed (`shims`).
`tests/parity/README.md` tells how it is compared.
"""


def _spreads(single: Mapping[str, Tensor], double: Mapping[str, Tensor]) -> dict[str, float]:
    gaps = {name: (single[name].double() - value).abs() for name, value in double.items() if value.is_floating_point()}
    finite = {name: gap[gap.isfinite()] for name, gap in gaps.items()}
    return {name: gap.max().item() if gap.numel() else 0.0 for name, gap in finite.items()}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON can hold."""
    return json.loads(json.dumps(dict(values), default=str))


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a folder of goldens from an official checkout.")
    parser.add_argument("checkout", type=Path, help="clone of an official repository")
    parser.add_argument("out", type=Path, help="folder to write; must not exist")
    parser.add_argument("--config-file", help="of the checkout, relative to it (DINO)")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="official arguments; values as JSON")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    options = {name: _value(text) for name, _, text in (pair.partition("=") for pair in chosen.set)}
    try:
        out = record(chosen.checkout, chosen.out, options, config_file=chosen.config_file, seed=chosen.seed)
    except (checkout.BadCheckout, FileExistsError) as error:
        parser.error(str(error))
    print(out)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
