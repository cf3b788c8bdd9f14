"""What works on this machine: for people whose first question is why something does not."""

from __future__ import annotations

import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from momentdetr import __version__

PACKAGES = ("torch", "torchvision", "open_clip_torch", "transformers", "av", "decord", "numpy", "gradio", "typer")


@dataclass(frozen=True)
class Finding:
    """One fact about this machine.

    Args:
        name: what was looked at.
        text: what was found.
        ok: False where a search cannot work because of it.
    """

    name: str
    text: str
    ok: bool = True


def examine() -> list[Finding]:
    """Look at versions, devices, decoders and weights. Decoders are tried on a small video that is written for it."""
    return [*_versions(), *_devices(), *_kernels(), *_decoders(), *_weights()]


def _versions() -> Iterator[Finding]:
    yield Finding("momentdetr", __version__)
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}", sys.version_info >= (3, 11))
    for package in PACKAGES:
        try:
            yield Finding(package, version(package))
        except PackageNotFoundError:
            yield Finding(package, "not installed", package == "decord")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("cpu", f"{torch.get_num_threads()} threads for torch")
    if not torch.cuda.is_available():
        yield Finding("cuda", "none: everything runs on the CPU")
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        yield Finding(f"cuda:{index}", f"{device.name}, {device.total_memory / 2**30:.0f} GiB")


def _kernels() -> Iterator[Finding]:
    """Which kernel of deformable attention runs on each device, and why not another."""
    import torch

    from momentdetr.detr.kernels import choose, describe, findings

    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        name = f"deformable attention on {device}"
        try:
            chosen = choose(device, torch.float32)
        except ValueError as error:
            yield Finding(name, str(error), ok=False)
            continue
        reasons = [f"{other}: {why}" for other, why in findings(device).items() if why]
        yield Finding(name, f"{describe(chosen)}; not {'; not '.join(reasons)}" if reasons else describe(chosen))


def _decoders() -> Iterator[Finding]:
    """Write six frames of rising brightness and read them with each decoder."""
    import numpy as np

    from momentdetr.features.video import read_clips
    from momentdetr.features.video_write import write_video

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grey.mp4"
        shades = [40 * i for i in range(6)]
        wrote = _attempt(lambda: write_video(path, (np.full((64, 64, 3), s, np.uint8) for s in shades), 1.0))
        yield Finding("write H.264", wrote or "works, without the ffmpeg program", wrote is None)
        for decoder in ("pyav", "decord"):

            def read(decoder: str = decoder) -> None:
                batches = read_clips(path, clip_length_s=1.0, decoder=decoder)
                seen = [float(frame.mean()) for batch in batches for frame in batch.frames]
                if len(seen) != len(shades) or any(abs(a - b) > 8 for a, b in zip(seen, shades, strict=True)):
                    raise RuntimeError(f"wrong frames: brightness {seen}, expected {shades}")

            problem = None if wrote else _attempt(read)
            yield Finding(f"read with {decoder}", problem or "works", problem is None or decoder == "decord")


def _weights() -> Iterator[Finding]:
    from momentdetr.search.loading import DEMO_FOLDER
    from momentdetr.weights import list_models

    demo = (DEMO_FOLDER / "retriever" / "model.safetensors").is_file()
    yield Finding("demo model", "ships with the package" if demo else f"missing in {DEMO_FOLDER}: install again", demo)
    for status in list_models():
        missing = [file.file.filename for file in status.files if not file.present]
        text = "cached" if status.ready else f"not here (momentdetr weights pull {status.card.name})"
        yield Finding(
            status.card.name, text if status.ready or len(missing) == len(status.files) else f"{text}, partly"
        )


def _attempt(action: Callable[[], object]) -> str | None:
    """Why an action fails, one line; None if it works."""
    try:
        action()
    except Exception as error:  # whatever is broken on this machine is what is asked for
        return f"fails: {type(error).__name__}: {error}".splitlines()[0]
    return None


__all__ = ["Finding", "examine"]
