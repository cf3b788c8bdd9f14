"""From a name, a folder or a file to a retriever that answers.

A model never stands in for another: what was asked for is loaded, or an error says what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from momentdetr.errors import BadCheckpoint, BadInput, WeightsUnavailable
from momentdetr.features.encoder import FeatureEncoder, resolve_device
from momentdetr.features.spec import FeatureSpec
from momentdetr.features.store import FeatureStore
from momentdetr.retrieval import checkpoint
from momentdetr.retrieval.convert import convert
from momentdetr.retrieval.model import MomentRetriever
from momentdetr.search.retriever import Retriever
from momentdetr.weights import REGISTRY, Progress, resolve

DEMO = "demo"
"""The model that ships with the package."""

DEMO_FOLDER = Path(__file__).resolve().parent.parent / "demo" / "weights"


@dataclass(frozen=True)
class _Parts:
    """A retriever without its encoder.

    Args:
        where: what error messages call it.
        encoder: the encoder's weights, where they came along.
    """

    name: str
    where: Path
    model: MomentRetriever
    spec: FeatureSpec
    about: dict[str, Any]
    encoder: Path | None = None


def load(
    name_or_path: str | Path = DEMO,
    device: str = "auto",
    *,
    encoder: str | Path | None = None,
    cache: bool = True,
    download: bool = True,
    progress: Progress | None = None,
) -> Retriever:
    """Load a model with the encoder that makes its features.

    Args:
        name_or_path: "demo"; a name of `momentdetr weights list`; a folder with config.json and model.safetensors, as
            training and conversion write it; or a checkpoint file in its author's own format.
        device: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
        encoder: the encoder's weights, a file or a folder, where they are not found by themselves: in a folder "clip"
            in or beside the model's, or among the published ones.
        cache: keep the features of videos, so that the next search of the same file is instant.
        download: fetch published weights that are not here yet.
        progress: called while they are fetched with the file, the bytes done, and the bytes in all or None; without it
            nothing is shown, for as long as 600 MB take.

    Raises:
        BadInput: no such model or device.
        BadCheckpoint: weights that are damaged or do not fit each other.
        WeightsUnavailable: weights that are neither here nor reachable.
    """
    target = resolve_device(device)
    parts = _parts(str(name_or_path), download, progress)
    where = Path(encoder) if encoder is not None else parts.encoder or _weights_near(parts.where)
    towers = _encoder(parts.spec, where, parts.where, str(target), download, progress)
    return Retriever(
        parts.model.eval().to(target),
        towers,
        parts.name,
        spec=parts.spec,
        store=FeatureStore() if cache else None,
        device=target,
        about=parts.about,
    )


def _parts(name: str, download: bool, progress: Progress | None) -> _Parts:
    path = Path(name)
    if name == DEMO:
        return _from_folder(DEMO, DEMO_FOLDER / "retriever")
    if name in REGISTRY:
        if REGISTRY[name].retriever is None:  # said before 600 MB are fetched
            raise BadInput(f"{name} is an encoder alone, which answers no queries. {_choices(retrievers_only=True)}")
        files = resolve(name, progress, download=download)
        assert files.retriever is not None
        return _from_file(name, files.retriever, files.encoder)
    try:
        is_folder, is_file = bool(name) and path.is_dir(), path.is_file()
    except OSError as error:  # a name that no file can have, or a folder that must not be looked into
        raise BadInput(f"no model {name:.200}: {error.strerror}. {_choices()}") from error
    if is_folder:
        return _from_folder(path.resolve().name, path)
    if is_file:
        return _from_file(path.stem, path, None)
    close = get_close_matches(name, [DEMO, *REGISTRY], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"no model {name!r}: neither a known name nor a folder or file.{hint} {_choices()}")


def _from_folder(name: str, folder: Path) -> _Parts:
    model, spec = checkpoint.load(folder)
    return _Parts(name, folder, model, spec, checkpoint.read_config(folder).get("about", {}))


def _from_file(name: str, path: Path, encoder: Path | None) -> _Parts:
    """A checkpoint in its author's own format, converted while it is loaded."""
    converted = convert(path)
    return _Parts(name, path, converted.model(), converted.spec, converted.about, encoder)


def _choices(retrievers_only: bool = False) -> str:
    names = [name for name, card in REGISTRY.items() if card.retriever is not None or not retrievers_only]
    return f"Known: {', '.join([DEMO, *names])}; or a model folder."


def _weights_near(where: Path) -> Path | None:
    """A folder "clip" in or beside the model."""
    return next((near for near in (where / "clip", where.resolve().parent / "clip") if near.is_dir()), None)


def _encoder(
    spec: FeatureSpec, where: Path | None, model: Path, device: str, download: bool, progress: Progress | None
) -> FeatureEncoder:
    """The encoder that a specification names, with the weights at `where` or else the published ones."""
    if len(spec.video) != 1 or spec.video[0].preprocessing is None:
        streams = " + ".join(stream.name for stream in spec.video)
        raise BadInput(
            f"{model}: the model was trained on features ({streams}) that came as files, and no encoder here makes "
            "them from a video. Use a model trained on CLIP features alone."
        )
    if where is not None and not where.exists():
        raise BadInput(f"{where}: no such encoder weights, expected a file or a folder")
    kind, _, name = spec.video[0].model.partition(":")
    options: dict[str, Any] = {
        "clip_length_s": spec.clip_length_s,
        "device": device,
        "max_clips": spec.max_clips,
        "max_words": spec.max_words,
    }
    if kind == "open_clip":
        from momentdetr.features.clip import OpenClipEncoder

        where = where or _published(name, download, progress)
        if where is not None and where.is_file() and name.startswith("folder-"):
            raise BadInput(
                f"{where}: {model} needs an encoder of its own, expected the folder with its open_clip_config.json"
            )
        if where is not None:
            folder = where.is_dir()
            return OpenClipEncoder.create(where if folder else name, None if folder else where, **options)
    elif kind == "transformers":
        from momentdetr.features.hf import HuggingFaceEncoder

        if where is not None:
            return HuggingFaceEncoder.create(where, **options)
    else:
        raise BadCheckpoint(f"{model}: its features are of {spec.video[0].model!r}, which no encoder here makes")
    raise WeightsUnavailable(
        f"{model}: the model needs the encoder {spec.video[0].model}, whose weights are not in a folder 'clip' in or "
        "beside it. Put them there, or say where they are (--encoder, or load(encoder=...))."
    )


def _published(name: str, download: bool, progress: Progress | None) -> Path | None:
    """The published weights of an architecture of open_clip; None if the registry has none."""
    for card in REGISTRY.values():
        if card.retriever is None and card.open_clip_model == name:
            return resolve(card.name, progress, download=download).encoder
    return None


__all__ = ["DEMO", "DEMO_FOLDER", "load"]
