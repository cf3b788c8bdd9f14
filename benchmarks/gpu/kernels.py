"""Times the GPU kernels beside their peers and the bytes floor.

    PYTHONPATH=. python benchmarks/gpu/kernels.py [--sizes dino_encoder ...] [--types float32 bfloat16] [--out FOLDER]

Writes gpu-DATE.json and gpu-DATE.md, by default into benchmarks/results. All times are of softmax, locations and
sampling together, as a layer needs them. `transformers` is that library's own function; `official` the extension
built from Deformable DETR's sources, or mmcv's, where one is installed; `per_channel` a kernel of this benchmark,
written in the official one's manner; `torch` our fallback without a compiler. The floor is the time that a copy on the
device needs for the fewest bytes. A peer's backward is its train step less its forward. Ends with 1 if one of our
kernels differs from the reference (transformers' does in bfloat16, where it rounds locations).
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from peers import Peer, peers, serves
from sizes import SIZES, Inputs, Size, fewest_bytes, make
from timing import Timing, copy_rate, measure, num_sets
from torch import Tensor

from momentdetr.detr.kernels import cuda, reference, triton_backend

OURS: dict[str, ModuleType] = {"triton": triton_backend, "cuda": cuda}
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
PASSES = ("forward", "backward", "train")
COLUMNS = ("size", "type", "pass", "kernel", "ms", "spread", "how", "ratio_to_peer", "ratio_to_per_channel",
           "ratio_to_floor", "peak_mb")  # fmt: skip


def differentiable(module: ModuleType) -> Peer:
    """A kernel's two passes as one function that torch can differentiate."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Inputs, *tensors: Tensor) -> Tensor:
            ctx.inputs = inputs
            return module.forward(*inputs.arguments())

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
            found = module.backward(grads[0].contiguous(), *ctx.inputs.arguments(), with_references=False)
            return None, found[0], found[2], found[3]

    return lambda inputs: Function.apply(inputs, *inputs.tensors)


def train(peer: Peer) -> Callable[[Inputs], object]:
    return lambda inputs: torch.autograd.grad(peer(inputs), inputs.tensors, inputs.grad_output)


def backward_of(module: ModuleType) -> Callable[[Inputs], object]:
    return lambda inputs: module.backward(inputs.grad_output, *inputs.arguments(), with_references=False)


def agree(name: str, peer: Peer, inputs: Inputs) -> str:
    """Compare output and gradients with the reference's; empty: they agree.

    The gradients of offsets are compared by their norm, since they jump at cell centres.
    """
    output = peer(inputs.trained())
    wanted = reference.forward(*inputs.arguments())
    grads = train(peer)(inputs.trained())
    slopes = reference.backward(inputs.grad_output, *inputs.arguments())
    pairs = {"output": (output, wanted)}
    for key, grad, slope in zip(("value", "offsets", "logits"), grads, (slopes[0], *slopes[2:]), strict=True):  # type: ignore[call-overload]
        pairs[f"gradient of {key}"] = (grad, slope)
    for key, (found, want) in pairs.items():
        error = ((found.double() - want.double()).norm() / want.double().norm()).item()
        if not error <= ALLOWED[inputs.value.dtype]:
            return f"{name}: {key} differs from the reference by {error:.1e} of its norm"
    return ""


def times_of(name: str, peer: Peer, sets: list[Inputs]) -> dict[str, Timing]:
    trained = [inputs.trained() for inputs in sets]
    found = {"train": measure(train(peer), trained)}
    with torch.no_grad():
        found["forward"] = measure(peer, sets)
        if name in OURS:
            found["backward"] = measure(backward_of(OURS[name]), sets)
            return found
    step, forward = found["train"], found["forward"]
    found["backward"] = Timing(step.ms - forward.ms, step.spread, step.how, step.peak_mb)
    return found


def rows(size: Size, dtype: torch.dtype, rate: float, rivals: dict[str, Peer]) -> Iterator[dict[str, Any]]:
    """One size in one type: a row for each kernel and pass."""
    first = make(size, "cuda", dtype, seed=0)
    sets = [first, *(make(size, "cuda", dtype, seed) for seed in range(1, num_sets(fewest_bytes(first, False))))]
    times: dict[str, dict[str, Timing]] = {}
    for name, peer in rivals.items():
        if serves_all(name, first):
            try:
                times[name] = times_of(name, peer, sets)
            except torch.cuda.OutOfMemoryError as error:
                print(f"{size.name}: {name} not measured: {error}", file=sys.stderr)
                torch.cuda.empty_cache()
    for name, timings in times.items():
        for which in PASSES:
            floor = fewest_bytes(first, which != "forward") + (fewest_bytes(first, False) if which == "train" else 0)
            ms = timings[which].ms
            beside = {rival: times[rival][which].ms / ms for rival in ("transformers", "per_channel") if rival in times}
            yield {
                "size": size.name,
                "type": str(dtype).removeprefix("torch."),
                "pass": which,
                "kernel": name,
                "ms": ms,
                "spread": timings[which].spread,
                "how": timings[which].how,
                "ratio_to_peer": beside.get("transformers"),
                "ratio_to_per_channel": beside.get("per_channel"),
                "ratio_to_floor": ms / (floor / rate * 1e3),
                "peak_mb": timings[which].peak_mb,
            }


def serves_all(name: str, inputs: Inputs) -> bool:
    return name in OURS or name == "torch" or serves(name, inputs)


def fallback() -> dict[str, Peer]:
    """Our own kernel in plain torch, where it has been written."""
    try:
        module = importlib.import_module("momentdetr.detr.kernels.torch_fallback")
    except ImportError:
        return {}
    return {"torch": lambda inputs: _Fallback.apply(module, inputs, *inputs.tensors)}


class _Fallback(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, module: ModuleType, inputs: Inputs, *tensors: Tensor) -> Tensor:
        ctx.module, ctx.inputs = module, inputs
        return module.forward(*inputs.arguments())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        found = ctx.module.backward(grads[0].contiguous(), *ctx.inputs.arguments())
        return None, None, found[0], found[2], found[3]


def table(found: list[dict[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in found:
        cells = [f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key] or "-") for key in COLUMNS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def machine(rate: float, missing: dict[str, str]) -> dict[str, Any]:
    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "compute_capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "transformers": importlib.import_module("transformers").__version__,
        "copy_gb_per_s": rate / 1e9,
        "not_measured": missing,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="*", default=[size.name for size in SIZES])
    parser.add_argument("--types", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU was found (torch.cuda.is_available() is false): nothing was measured", file=sys.stderr)
        return 3
    rate, (others, missing) = copy_rate(), peers()
    rivals = {name: differentiable(module) for name, module in OURS.items() if not module.available()}
    missing |= {name: why for name, module in OURS.items() if (why := module.available())}
    rivals |= others | fallback()
    found, wrong = [], []
    chosen = [size for size in SIZES if size.name in options.sizes]
    for dtype in (getattr(torch, name) for name in options.types):
        for size in (chosen[0], chosen[-1]):
            inputs = make(size, "cuda", dtype, seed=99)
            checks = [agree(name, rivals[name], inputs) for name in rivals if serves_all(name, inputs)]
            wrong += [f"{size.name}: {text}" for text in checks if text]
        for size in chosen:
            new = list(rows(size, dtype, rate, rivals))
            print(table(new), flush=True)
            found += new
            torch.cuda.empty_cache()
    about = machine(rate, missing) | {"differs_from_reference": wrong}
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / f"gpu-{about['date']}"
    target.with_suffix(".json").write_text(json.dumps({"machine": about, "rows": found}, indent=1) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in about.items())
    target.with_suffix(".md").write_text(f"# Deformable attention on a GPU\n\n{facts}\n\n{table(found)}\n")
    print(f"\n{facts}\nwritten: {target}.json, {target}.md")
    return 1 if any(f": {name}: " in text for text in wrong for name in (*OURS, "per_channel")) else 0


if __name__ == "__main__":
    sys.exit(main())
