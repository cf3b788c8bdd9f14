"""Read the weights of CLIP models from files of any origin, without running anything that is in them.

safetensors, PyTorch state dictionaries (`weights_only`), training checkpoints of open_clip, and the TorchScript
archives that OpenAI published, whose tensors are taken out without loading the program around them.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from momentdetr.errors import BadCheckpoint
from momentdetr.features.encoder import first_line

# Marks that OpenAI's own archives carry and no other CLIP weights do.
_OPENAI_BUFFERS = frozenset({"input_resolution", "context_length", "vocab_size"})
# Scale and bias of the contrastive loss, and causal masks, which the model builds itself: no feature depends on what a
# file says of them, and not all layouts have them.
_IDLE = ("logit_scale", "logit_bias", "attn_mask")


@dataclass(frozen=True)
class ClipState:
    """Named weights.

    Args:
        tensors: by the names of open_clip (which are OpenAI's).
        openai: whether the file itself shows that OpenAI made it, so that its activation is QuickGELU.
    """

    tensors: dict[str, Tensor]
    openai: bool


def read_clip_state(path: Path) -> ClipState:
    """Read named weights from a .safetensors, .pt, .bin or .pth file.

    Raises:
        BadCheckpoint: missing, damaged, of another format, holding other objects than tensors, or non-finite.
    """
    raw = _read(path)
    raw = raw.get("state_dict", raw)
    if not isinstance(raw, Mapping) or not raw:
        raise BadCheckpoint(f"{path}: expected named tensors (a state dictionary), found {type(raw).__name__}")
    openai = set(raw) >= _OPENAI_BUFFERS
    tensors = {}
    for name, value in raw.items():
        if name in _OPENAI_BUFFERS:
            continue
        if not isinstance(value, Tensor):
            raise BadCheckpoint(f"{path}: {name} is {type(value).__name__}; expected named tensors only")
        tensors[str(name).removeprefix("module.")] = value
    return ClipState(tensors, openai)


def load_clip_state(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Load weights into a model of open_clip; every tensor must have its place.

    Args:
        path: only for messages.

    Raises:
        BadCheckpoint: names that are missing or left over, shapes that differ, values that are not finite.
    """
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = dict(convert_state_dict(model, dict(tensors)))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    state = {name: value for name, value in state.items() if not name.endswith(_IDLE)}
    wanted = {name: value for name, value in model.state_dict().items() if not name.endswith(_IDLE)}
    fault = _misfit(state, wanted)
    if fault:
        raise BadCheckpoint(
            f"{path}: does not fit the model: the file {fault}. Give the model that these weights were trained as, or "
            "other weights."
        )
    model.load_state_dict(state, strict=False)


def _misfit(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str | None:
    """Say the first thing that is wrong with the weights, or None."""
    both = [name for name in wanted if name in state]
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in both
        if state[name].shape != wanted[name].shape
    ]
    for fault, names in (
        ("lacks", sorted(set(wanted) - set(state))),
        ("has and the model has not", sorted(set(state) - set(wanted))),
        ("has other shapes:", shapes),
    ):
        if names:
            return f"{fault} {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    # Only after the shapes: a file of a kilobyte can name a tensor of terabytes.
    broken = next((name for name in both if not _finite(state[name])), None)
    return f"holds NaN or infinity in {broken}" if broken else None


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadCheckpoint(f"{path}: no such file; expected weights of a CLIP model (.safetensors or .pt)")
    with open(path, "rb") as file:
        start = file.read(512)
    _refuse_stand_ins(path, start)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if start.startswith(b"PK") and _is_torchscript(path):
            return read_torchscript_tensors(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make zipfile, pickle and torch raise almost anything
        kind = "safetensors" if path.suffix == ".safetensors" else "named tensors"
        raise BadCheckpoint(
            f"{path}: cannot be read as {kind}: {first_line(error)}. The file is damaged, or holds more than "
            "tensors; fetch it again or convert it to safetensors."
        ) from error
    return found if isinstance(found, dict) else {"state_dict": found}


def _refuse_stand_ins(path: Path, start: bytes) -> None:
    """Name what people get instead of weights when a download goes wrong."""
    found = None
    if not start:
        found = "an empty file"
    elif start.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer, not the weights themselves (run: git lfs pull)"
    elif start.lstrip()[:1] == b"<":
        found = "a web page, not weights"
    if found:
        raise BadCheckpoint(f"{path}: is {found}; fetch the file again")


def _is_torchscript(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript_tensors(path: Path) -> dict[str, Tensor]:
    """Take parameters and buffers out of a TorchScript archive without loading its program.

    The archive's pickle is read by an unpickler that knows four things: module objects (as plain name-value records),
    tensors, ordered dictionaries and lists. Anything else is refused.

    Raises:
        pickle.UnpicklingError: the archive holds other things, or lies about its sizes.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        with archive.open(f"{root}data.pkl") as file:
            module = _ArchiveUnpickler(file, archive, root).load()
    if not isinstance(module, _Module):
        raise pickle.UnpicklingError(f"expected a module, found {type(module).__name__}")
    return dict(module.tensors(""))


class _Module:
    """A scripted module: names and values, no behaviour."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        self.values = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str) -> list[tuple[str, Tensor]]:
        found: list[tuple[str, Tensor]] = []
        for name, value in self.values.items():
            if isinstance(value, Tensor):
                found.append((prefix + name, value))
            elif isinstance(value, _Module):
                found.extend(value.tensors(f"{prefix}{name}."))
        return found


_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file)
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return list
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"refused {module}.{name}")

    def persistent_load(self, identity: Any) -> Tensor:
        kind, dtype, key, _, count = identity
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"refused {kind!r}")
        if key not in self._storages:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            if entry.file_size != entry.compress_size or entry.file_size < count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} is not of the size that it claims")
            data = bytearray(self._archive.read(entry))
            self._storages[key] = (
                torch.frombuffer(data, dtype=dtype, count=count) if count else torch.empty(0, dtype=dtype)
            )
        return self._storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
