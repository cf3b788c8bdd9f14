"""Trains the tiny CLIP from a configuration file."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from pydantic import Field

from momentdetr.demo.clip_training import IMAGE_SIZE, Options, export, train
from momentdetr.demo.footage import gather, shoot_all
from momentdetr.training.config import Section, load_config


class WorldConfig(Section):
    """Which videos to learn from: `videos` of split "train" of world `seed`, drawn by so many processes."""

    seed: int = Field(default=0, ge=0)
    videos: int = Field(default=1500, ge=1)
    processes: int = Field(default=1, ge=1)


class ClipConfig(Section):
    """One training run; see `WorldConfig` and `clip_training.Options`."""

    world: WorldConfig = WorldConfig()
    training: Options = Options()


def train_from_config(
    config_path: Path, overrides: Sequence[str], output: Path, *, report: Callable[[str], None]
) -> Path:
    """Draw the videos, train, and write the model.

    Args:
        config_path: as configs/retrieval/demo_clip.yaml.
        overrides: "section.key=value".
        output: gets clip/ (an open_clip folder) and losses.jsonl.
        report: called with a line now and then.

    Returns:
        The folder of the model.
    """
    config = load_config(ClipConfig, config_path, overrides)
    world = config.world
    report(f"drawing {world.videos} videos")
    footage = gather(shoot_all(world.seed, range(world.videos), "train", IMAGE_SIZE, world.processes))
    output.mkdir(parents=True, exist_ok=True)
    with (output / "losses.jsonl").open("w", encoding="utf-8") as log:

        def note(step: int, losses: dict[str, float]) -> None:
            log.write(json.dumps({"step": step, **losses}) + "\n")
            if step % 50 == 0:
                report(f"step {step}: {losses}")

        model = train(footage, config.training, note)
    export(model, output / "clip")
    (output / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2) + "\n")
    return output / "clip"
