"""`python -m momentdetr.demo`: draw the moving-shapes world, and make the models that ship with the package."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from momentdetr.demo.world import SPLITS, write_dataset
from momentdetr.errors import MomentDETRError


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except MomentDETRError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m momentdetr.demo", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    dataset = verbs.add_parser("dataset", help="draw videos with QVHighlights and COCO annotations")
    dataset.add_argument("folder", type=Path)
    dataset.add_argument("--seed", type=int, default=0)
    dataset.add_argument("--videos", type=int, default=20)
    dataset.add_argument("--split", choices=SPLITS, default="test")
    dataset.set_defaults(run=_dataset)

    clip = verbs.add_parser("clip", help="train the tiny CLIP")
    clip.add_argument("config", type=Path)
    clip.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE")
    clip.add_argument("--output", type=Path, required=True)
    clip.set_defaults(run=_clip)

    features = verbs.add_parser("features", help="write what the retriever is trained on")
    features.add_argument("--clip", type=Path, required=True, help="folder of the tiny CLIP")
    features.add_argument("--output", type=Path, required=True)
    features.add_argument("--seed", type=int, default=0)
    features.add_argument("--train", type=int, default=4000, help="videos to learn from")
    features.add_argument("--validation", type=int, default=200, help="videos to choose the best epoch by")
    features.add_argument("--first", type=int, default=0, help="number of the first video to learn from")
    features.add_argument("--processes", type=int, default=1)
    features.set_defaults(run=_features)

    motion = verbs.add_parser("motion", help="teach the retriever's first layers to see motion")
    motion.add_argument("--features", type=Path, required=True, help="what the features verb wrote")
    motion.add_argument("--output", type=Path, required=True, help="a .safetensors file: `initial` of demo.yaml")
    motion.add_argument("--width", type=int, default=128)
    motion.add_argument("--context", type=int, default=2, help="clips seen on each side")
    motion.add_argument("--steps", type=int, default=4000)
    motion.set_defaults(run=_motion)

    ship = verbs.add_parser("ship", help="write the weights that the package holds")
    ship.add_argument("--clip", type=Path, required=True)
    ship.add_argument("--retriever", type=Path, required=True)
    ship.add_argument("--features", type=Path, required=True, help="what the features verb wrote, for the baseline")
    ship.set_defaults(run=_ship)
    return parser


def _dataset(options: argparse.Namespace) -> None:
    scenes = write_dataset(options.folder, options.seed, options.videos, options.split)
    print(f"{len(scenes)} videos in {options.folder}")


def _clip(options: argparse.Namespace) -> None:
    from momentdetr.demo.clip_config import train_from_config

    print(train_from_config(options.config, options.overrides, options.output, report=_print))


def _features(options: argparse.Namespace) -> None:
    from momentdetr.demo.features import write_features

    write_features(
        options.clip,
        options.output,
        seed=options.seed,
        num_train=options.train,
        num_validation=options.validation,
        first=options.first,
        processes=options.processes,
        report=_print,
    )


def _motion(options: argparse.Namespace) -> None:
    from momentdetr.demo.motion import save, teach

    projection = teach(
        options.features, width=options.width, context=options.context, steps=options.steps, report=_print
    )
    save(projection, options.output)


def _ship(options: argparse.Namespace) -> None:
    from momentdetr.demo.shipping import ship

    for path, size in ship(options.clip, options.retriever, options.features):
        print(f"{size:>10,} {path}")


def _print(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
