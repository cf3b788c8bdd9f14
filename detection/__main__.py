"""The command line of the image detectors: `python -m detection VERB`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from detection import data_verbs, model_verbs, train_verbs
from momentdetr.errors import MomentDETRError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Detect objects in images with the DETR family.",
)

for verbs in (data_verbs, train_verbs, model_verbs):
    verbs.register(app)


@app.callback()
def _verbs() -> None:
    pass


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT", help="A .pth of an official repository or of detrex, or a folder of transformers."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
    system: Annotated[str | None, typer.Option(help="Name of the system, where the weights do not tell it.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON of official options, where the file holds none.")] = None,
) -> None:
    """Convert CHECKPOINT, strictly, to a model folder OUT."""
    from detection.checkpoint import save
    from detection.convert import convert as convert_file

    converted = convert_file(checkpoint, system=system, options=_options(config))
    save(out, converted.config, converted.state, converted.labels, about=converted.about)
    left_out = converted.about.get("left_out", [])
    named = f"; left out, because they are not of the detector: {', '.join(left_out)}" if left_out else ""
    print(f"{converted.system}, {len(converted.state)} tensors, written to {out}{named}", file=sys.stderr)


def _options(path: Path | None) -> dict[str, object]:
    import json

    from momentdetr.errors import BadInput

    if path is None:
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is not a JSON file of options: {error}") from error
    if not isinstance(options, dict):
        raise BadInput(f"{path} holds a {type(options).__name__}, expected an object of option names and values")
    return options


def main() -> None:
    """Run, and end with the exit code of what went wrong."""
    try:
        app()
    except MomentDETRError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted; a run goes on with --resume", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
