"""An official checkout, imported as it is: its model, criterion and post-processor, on CPU and at toy size.

The official main.py and models are imported under the names that they have in their repository, with stand-ins for what
is not installed or no longer exists (`SHIMS`). Nothing of the official source is changed. Its widths are constants in
places, so a model keeps its official 256 channels; it becomes small by fewer layers and a thin backbone.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torchvision
from parity.systems.tiny import TinyResNet
from torch import Tensor, nn

OWN = ("main", "engine", "models", "util", "datasets", "config", "tools")
"""Top-level names of the official repositories, which other packages have too."""

ABSENT = ("pycocotools", "panopticapi", "MultiScaleDeformableAttention", "yapf", "submitit")
"""What official code imports and recording does not use."""

SHIMS = (
    "torchvision.models.resnetXX -> torchvision's own blocks at stem width `tiny_backbone.width`, "
    "`tiny_backbone.layers` of them a stage, without a download; BackboneBase counts the channels of its maps",
    "torchvision.__version__ reads '0.9.0' while the repository is imported",
    "names that torch has dropped: torch._overrides, torch.nn.modules.linear._LinearWithBias",
    "modules that are not installed are empty: " + ", ".join(ABSENT),
    "MSDeformAttnFunction.apply -> the repository's own ms_deform_attn_core_pytorch",
    ".cuda() stays where it is",
)

SYSTEMS = {
    "models/deformable_detr.py": "deformable_detr",
    "models/conditional_detr.py": "conditional_detr",
    "models/detr.py": "detr",
}
"""By a file of the checkout, where no argument `modelname` tells."""


class BadCheckout(Exception):
    """The folder is no checkout of a known repository, or the arguments do not fit it."""


@dataclass(frozen=True)
class Backbone:
    """How small the ResNet is: channels of its stem, blocks of each stage."""

    width: int = 4
    layers: tuple[int, ...] = (1, 1, 1, 1)


@dataclass(frozen=True)
class Official:
    """What a checkout built.

    Args:
        system: as config.json names it.
        args: all official arguments.
        changed: those that were set here.
        model: images -> dictionary.
        criterion: (outputs, targets) -> dictionary of losses; has `matcher` and `weight_dict`.
        postprocess: (outputs, sizes) -> answers.
        nested: makes the official pair of images and mask.
        about: where it comes from: `repo` and `commit`.
    """

    system: str
    args: argparse.Namespace
    changed: Mapping[str, Any]
    model: nn.Module
    criterion: nn.Module
    postprocess: Callable[[Mapping[str, Any], Tensor], list[dict[str, Tensor]]]
    nested: Callable[[Tensor, Tensor], Any]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return int(self.criterion.num_classes)  # type: ignore[arg-type]

    def evaluate(self, model: nn.Module, samples: Any) -> dict[str, Any]:
        """The model's dictionary, as the official `evaluate` asks for it."""
        if self.system.startswith("dn_"):
            return model(samples, dn_args=self.args.num_patterns)[0]
        return model(samples)

    def train(self, model: nn.Module, samples: Any, targets: list[dict[str, Tensor]]) -> tuple[dict[str, Any], tuple]:
        """The model's dictionary, and what the criterion is given beside outputs and targets."""
        args = self.args
        if self.system.startswith("dn_"):
            noise = (targets, args.scalar, args.label_noise_scale, args.box_noise_scale, args.num_patterns)
            contrastive = getattr(args, "contrastive", False)
            outputs, groups = model(samples, dn_args=(*noise, contrastive) if contrastive is not False else noise)
            return outputs, (groups,)
        if self.system == "dino":
            return model(samples, targets), ()
        return model(samples), ()


@contextlib.contextmanager
def checkout(
    folder: Path,
    options: Mapping[str, Any],
    *,
    config_file: str | None = None,
    backbone: Backbone | None = None,
    seed: int = 0,
) -> Iterator[Official]:
    """Import a checkout and build its model, until the block ends.

    Args:
        options: official arguments by name, beyond those that make the model small.
        config_file: of the checkout, where the repository has such (DINO).
        seed: of the official initialisation.

    Raises:
        BadCheckout: no such repository, or no such argument.
    """
    if not (folder / "main.py").is_file() or not (folder / "models").is_dir():
        raise BadCheckout(f"{folder} has no main.py and models/; expected a clone of an official repository")
    small = backbone or Backbone()
    with contextlib.ExitStack() as stack:
        for shim in (_own_modules(folder), _old_names(), _thin_resnets(small), _no_cuda()):
            stack.enter_context(shim)
        main = importlib.import_module("main")
        _all_backbones_tell_their_channels(small.width)
        _deformable_attention_in_python()
        args, changed = _arguments(main, folder, options, config_file)
        torch.manual_seed(seed)
        build = getattr(main, "build_model_main", None) or importlib.import_module("models").build_model
        model, criterion, postprocessors = build(args)
        misc = importlib.import_module("util.misc")
        about = {"repo": folder.resolve().name, "commit": _commit(folder)}
        post = postprocessors["bbox"]
        system = _system(folder, args)
        yield Official(system, args, changed, model, criterion, post, misc.NestedTensor, about)


def _system(folder: Path, args: argparse.Namespace) -> str:
    if getattr(args, "modelname", None):
        return str(args.modelname).lower()
    found = next((system for file, system in SYSTEMS.items() if (folder / file).is_file()), None)
    if found is None:
        raise BadCheckout(f"{folder} has none of {', '.join(SYSTEMS)} and no argument 'modelname'")
    return found


def _arguments(
    main: types.ModuleType, folder: Path, options: Mapping[str, Any], config_file: str | None
) -> tuple[argparse.Namespace, dict[str, Any]]:
    """All official arguments, and those that differ from their defaults because they were set here."""
    parser = main.get_args_parser()
    needed = {action.dest: action for action in parser._actions if action.required}
    given = dict(options) | ({} if config_file is None else {"config_file": str(folder / config_file)})
    missing = sorted(needed.keys() - given.keys() - {"coco_path"})
    if missing:
        raise BadCheckout(f"{folder.name} needs {', '.join(missing)}; give them with --set NAME=VALUE or --config-file")
    line = [text for name, action in needed.items() for text in (action.option_strings[0], str(given.get(name, "x")))]
    args = parser.parse_args(line)
    if config_file is not None:
        config = importlib.import_module("util.slconfig").SLConfig.fromfile(str(folder / config_file))
        vars(args).update(config._cfg_dict.to_dict())
    small = {name: value for name, value in SMALL.items() if hasattr(args, name)}
    unknown = sorted(options.keys() - vars(args).keys())
    if unknown:
        near = difflib.get_close_matches(unknown[0], vars(args), n=1)
        raise BadCheckout(f"{folder.name} has no argument {unknown[0]!r}" + (f"; nearest: {near[0]!r}" if near else ""))
    changed = small | dict(options)
    vars(args).update(changed)
    return args, changed


SMALL: dict[str, Any] = {
    "dropout": 0.0,
    "device": "cpu",
    "enc_layers": 2,
    "dec_layers": 3,
    "dim_feedforward": 48,
    "num_queries": 9,
    "num_select": 20,
    "use_dn": True,
    "scalar": 3,
    "dn_number": 10,
    "distributed": False,
    "masks": False,
}


@contextlib.contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """The checkout's modules under their own names; what had those names before comes back."""

    def mine(name: str) -> bool:
        return name.split(".")[0] in (*OWN, *missing)

    missing = [name for name in ABSENT if importlib.util.find_spec(name) is None]
    before = {name: module for name, module in sys.modules.items() if mine(name)}
    for name in before:
        del sys.modules[name]
    finder = _Empty(missing)
    sys.meta_path.append(finder)
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if mine(name)]:
            del sys.modules[name]
        sys.modules.update(before)


class _Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules that are not installed, and makes them empty."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        found = fullname.split(".")[0] in self.names
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: Any) -> types.ModuleType:
        return _EmptyModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


class _EmptyModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def _old_names() -> Iterator[None]:
    """Names that official code expects of its day's torch and torchvision."""
    linear = torch.nn.modules.linear
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torchvision, "__version__", "0.9.0"))
        if not hasattr(linear, "_LinearWithBias"):
            value = linear.NonDynamicallyQuantizableLinear
            stack.enter_context(mock.patch.object(linear, "_LinearWithBias", value, create=True))
        stack.enter_context(mock.patch.dict(sys.modules, {"torch._overrides": torch.overrides}))
        yield


@contextlib.contextmanager
def _thin_resnets(small: Backbone) -> Iterator[None]:
    """Any official ResNet becomes a thin one with random weights."""

    def make(name: str) -> Callable[..., nn.Module]:
        def build(**options: Any) -> nn.Module:
            dilated = bool((options.get("replace_stride_with_dilation") or [False])[-1])
            deep = name not in ("resnet18", "resnet34")
            return TinyResNet(list(small.layers), small.width, bottleneck=deep, dilate_last=dilated)

        return build

    names = ("resnet18", "resnet34", "resnet50", "resnet101")
    with mock.patch.multiple(torchvision.models, **{name: make(name) for name in names}):
        yield


@contextlib.contextmanager
def _no_cuda() -> Iterator[None]:
    stay = {"cuda": lambda self, *args, **options: self}
    with mock.patch.multiple(Tensor, **stay), mock.patch.multiple(nn.Module, **stay):
        yield


def _all_backbones_tell_their_channels(width: int) -> None:
    """Official code writes the channels of a ResNet of width 64 down; count them in ours."""
    for base in _found("BackboneBase"):
        official = base.__init__

        def thin(self: Any, *args: Any, _official: Any = official, **options: Any) -> None:
            _official(self, *args, **options)
            counts = self.num_channels
            scaled = [count * width // 64 for count in (counts if isinstance(counts, list) else [counts])]
            self.num_channels = scaled if isinstance(counts, list) else scaled[0]

        base.__init__ = thin


def _deformable_attention_in_python() -> None:
    """The compiled kernel's place is taken by the reference that each repository has beside it."""
    cores = _found("ms_deform_attn_core_pytorch")
    for function in _found("MSDeformAttnFunction"):
        core = cores[0]
        function.apply = staticmethod(
            lambda value, shapes, starts, places, weights, step, _core=core: _core(value, shapes, places, weights)
        )


def modules() -> list[types.ModuleType]:
    """The imported modules of the checkout."""
    return [module for name, module in list(sys.modules.items()) if name.split(".")[0] in OWN]


def _found(name: str) -> list[Any]:
    """What these modules call so, each once."""
    return list({id(vars(m)[name]): vars(m)[name] for m in modules() if name in vars(m)}.values())


def _commit(folder: Path) -> str | None:
    """The commit that is checked out, if it is one."""
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None
