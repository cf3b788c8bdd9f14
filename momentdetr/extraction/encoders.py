"""Which encoder makes the features: presets by name, folders, and weights that are at hand or fetched."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from momentdetr.errors import BadInput, WeightsUnavailable
from momentdetr.features.encoder import TowerEncoder
from momentdetr.weights import REGISTRY, Progress, resolve

DEMO_WEIGHTS = Path(__file__).resolve().parent.parent / "demo" / "weights"


@dataclass(frozen=True)
class Preset:
    """An encoder by name.

    Args:
        model: open_clip's name of the architecture, or a folder with model and weights.
        clip_length_s: seconds of video per vector, as in the published features.
        card: name of the published weights; None: they are in the folder, or must be given.
        tag: open_clip's name of the weights, where preprocessing depends on it.
        max_clips, max_words: what the published models see at once; written into the specification.
    """

    model: str | Path
    clip_length_s: float = 2.0
    card: str | None = None
    tag: str | None = None
    max_clips: int = 75
    max_words: int = 32


PRESETS: dict[str, Preset] = {
    "demo": Preset(DEMO_WEIGHTS / "clip", clip_length_s=0.5, max_clips=64),
    "clip-b32": Preset("ViT-B-32-quickgelu", card="clip-vit-b-32", tag="openai"),
    "clip-b16": Preset("ViT-B-16-quickgelu", tag="openai"),
    "clip-l14": Preset("ViT-L-14-quickgelu", tag="openai"),
}


@dataclass(frozen=True)
class EncoderChoice:
    """All that a process needs to build the encoder; plain values that travel to other processes.

    Args:
        preset: what it is made of.
        weights: a file; None: they are in the preset's folder.
        device: "auto", "cpu", "cuda", ...
        batch_size: pictures at once.
        threads: of torch; None: as many as it takes by itself. Part of the choice, because sums are rounded otherwise
            with another number.
    """

    preset: Preset
    weights: Path | None
    device: str = "auto"
    batch_size: int = 64
    threads: int | None = None

    def build(self) -> TowerEncoder:
        """Build the encoder; the network is not used.

        Raises:
            BadInput, BadCheckpoint, WeightsUnavailable: it cannot be built.
        """
        import torch

        from momentdetr.features.clip import OpenClipEncoder
        from momentdetr.features.encoder import resolve_device
        from momentdetr.features.hf import HuggingFaceEncoder

        if self.threads is not None:
            torch.set_num_threads(self.threads)
        preset, device = self.preset, str(resolve_device(self.device))
        if isinstance(preset.model, Path) and not (preset.model / "open_clip_config.json").is_file():
            return HuggingFaceEncoder.create(
                preset.model,
                clip_length_s=preset.clip_length_s,
                device=device,
                batch_size=self.batch_size,
                max_clips=preset.max_clips,
                max_words=preset.max_words,
            )
        return OpenClipEncoder.create(
            preset.model,
            self.weights,
            clip_length_s=preset.clip_length_s,
            device=device,
            batch_size=self.batch_size,
            max_clips=preset.max_clips,
            max_words=preset.max_words,
            tag=preset.tag,
        )


def find_preset(name: str) -> Preset:
    """The preset of a name, or one made of a folder.

    Args:
        name: a key of `PRESETS`, or a folder with open_clip_config.json or config.json and the weights (2 s a clip).

    Raises:
        BadInput: neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    folder = Path(name)
    if folder.is_dir():
        if not any((folder / file).is_file() for file in ("open_clip_config.json", "config.json")):
            raise BadInput(f"{folder}: holds no encoder, expected open_clip_config.json or config.json with weights")
        return Preset(folder.resolve())
    close = get_close_matches(name, PRESETS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"no preset {name!r}.{hint} Known: {', '.join(PRESETS)}; or a folder with a model and its weights.")


def find_weights(name: str, preset: Preset, given: Path | None, progress: Progress | None = None) -> Path | None:
    """The weights of a preset: those that are given, else the published ones, which are fetched once.

    Returns:
        A file; None where they are in the preset's folder.

    Raises:
        BadInput: the given file is not there.
        WeightsUnavailable: none are given, and none are published or reachable.
    """
    if given is not None:
        if not given.is_file():
            raise BadInput(f"{given}: no such file, expected weights of {preset.model}")
        return given
    if isinstance(preset.model, Path):
        return None
    if preset.card is None:
        raise WeightsUnavailable(
            f"{name}: the registry has no address for the weights of {preset.model}; say where they are (--weights)"
        )
    assert preset.card in REGISTRY
    return resolve(preset.card, progress, download=True).encoder


__all__ = ["PRESETS", "EncoderChoice", "Preset", "find_preset", "find_weights"]
