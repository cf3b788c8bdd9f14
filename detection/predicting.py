"""Detect in many images or in a video, and write what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from detection.data.pictures import SUFFIXES
from detection.drawing import draw
from detection.predictor import ImageDetections, Predictor, pixels_of
from momentdetr.errors import BadInput, StoreError

Progress = Callable[[int, int], None]

# Frames a second that are looked at, where nothing else is asked for.
FPS = 2.0


@dataclass(frozen=True)
class Answer:
    """What was found in one image or frame.

    Args:
        name: of the file; of a video with its time in seconds.
        found: in it.
        time_s: of the frame; None: an image.
    """

    name: str
    found: ImageDetections
    time_s: float | None = None


def predict_all(
    predictor: Predictor,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    threshold: float = 0.3,
    fps: float = FPS,
    progress: Progress | None = None,
) -> tuple[list[Answer], list[str]]:
    """Detect in images, folders of images and videos.

    Args:
        predictor: the detector.
        sources: files and folders.
        out: folder that gets the images with boxes drawn in, a video for a video, and detections.json in COCO's
            result format beside images.json, which names the images.
        threshold: what is less sure is neither drawn nor written.
        fps: frames a second of a video that are looked at.
        progress: called with (images done, of how many).

    Returns:
        The answers in order, and what could not be read.

    Raises:
        BadInput: there is no image at all, or none could be read.
        StoreError: the folder cannot be written.
    """
    files = _files(sources)
    out, answers, problems = Path(out), list[Answer](), list[str]()
    try:
        out.mkdir(parents=True, exist_ok=True)
        names = _names(files)
        for number, file in enumerate(files):
            if progress is not None:
                progress(number, len(files))
            try:
                if file.suffix.lower() in SUFFIXES:
                    answers.append(_image(predictor, file, out / names[number], threshold))
                else:
                    answers += _video(predictor, file, out / names[number], threshold, fps)
            except (BadInput, ValueError) as error:
                problems.append(str(error))
        _write(predictor, answers, out)
    except OSError as error:
        raise StoreError(f"cannot write to {out}: {error.strerror or error}") from error
    if not answers:
        raise BadInput("nothing could be read: " + "; ".join(problems))
    return answers, problems


def _files(sources: Sequence[str | Path]) -> list[Path]:
    files: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = sorted(path for path in source.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
            if not inside:
                raise BadInput(f"{source}: holds no image ({', '.join(sorted(SUFFIXES))})")
            files += inside
        elif source.is_file():
            files.append(source)
        else:
            raise BadInput(f"{source}: there is no such file or folder")
    return files


def _names(files: Sequence[Path]) -> list[str]:
    """Names of what is written: as the sources', numbered where two are the same."""
    names, seen = [], dict[str, int]()
    for file in files:
        suffix = ".jpg" if file.suffix.lower() in SUFFIXES else ".mp4"
        count = seen[file.stem] = seen.get(file.stem, 0) + 1
        names.append(f"{file.stem}{f'-{count}' if count > 1 else ''}{suffix}")
    return names


def _image(predictor: Predictor, file: Path, out: Path, threshold: float) -> Answer:
    pixels = pixels_of(file)
    found = predictor.predict_pixels(pixels).above(threshold)
    Image.fromarray(draw(pixels, found)).save(out, quality=92)
    return Answer(str(file), found)


def _video(predictor: Predictor, file: Path, out: Path, threshold: float, fps: float) -> list[Answer]:
    from momentdetr.features.video import read_clips
    from momentdetr.features.video_write import write_video

    if fps <= 0:
        raise BadInput(f"fps is {fps}, expected frames a second above 0")
    answers: list[Answer] = []

    def frames() -> Iterator[NDArray[np.uint8]]:
        for batch in read_clips(file, clip_length_s=1 / fps):
            for pixels in batch.frames:
                time_s = len(answers) / fps
                found = predictor.predict_pixels(pixels).above(threshold)
                answers.append(Answer(f"{file}@{time_s:.3f}", found, time_s))
                yield draw(pixels, found)

    write_video(out, frames(), fps)
    return answers


def _write(predictor: Predictor, answers: Sequence[Answer], out: Path) -> None:
    rows: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, answer in enumerate(answers, start=1):
        width, height = answer.found.size
        images.append({"id": number, "file_name": answer.name, "width": width, "height": height})
        rows += predictor.rows(number, answer.found)
    (out / "detections.json").write_text(json.dumps(rows), encoding="utf-8")
    (out / "images.json").write_text(json.dumps(images, ensure_ascii=False, indent=1), encoding="utf-8")
