"""The command line: one function a verb, which calls one function of the package.

Data goes to stdout, all else to stderr. Everything heavy is imported inside the functions, so that `--help` is instant.
Exit codes: 0 done, 2 bad input, 4 the machine or the network is in the way, 130 interrupted, 1 a defect of ours.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from momentdetr.cli_data import data_app, score
from momentdetr.cli_extract import extract
from momentdetr.errors import BadInput, MomentDETRError
from momentdetr.terminal import bytes_bar, do_all, print_json, print_scores, progress_bar, say, show, show_demo, warn

if TYPE_CHECKING:
    from momentdetr.weights import ResolvedModel

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Find the moments of a video that a sentence describes.",
)
weights_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Published weights: list, fetch, check, find."
)
app.add_typer(weights_app, name="weights")
app.add_typer(data_app, name="data")
app.command()(score)
app.command()(extract)

Model = Annotated[str, typer.Option(help="'demo', a name of 'weights list', a model folder, or a checkpoint file.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Encoder = Annotated[Path | None, typer.Option(help="The encoder's weights, where they are not found by themselves.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from momentdetr import __version__

        print(__version__)
        raise typer.Exit()


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks. Works behind any verb too.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command()
def search(
    video: Annotated[Path, typer.Argument(metavar="VIDEO", help="Any video file.")],
    queries: Annotated[list[str], typer.Argument(metavar="QUERY...", help="What to find: one or several sentences.")],
    model: Model = "demo",
    top: Annotated[int, typer.Option(min=1, help="Moments per query, at most.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print one row a moment.")] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="Print subtitles.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw frames, saliency and moments into this picture.")] = None,
    clips: Annotated[Path | None, typer.Option(help="Cut every moment into this folder.")] = None,
    device: Device = "auto",
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Neither use nor keep features.")] = False,
    decoder: Annotated[str, typer.Option(help="auto, pyav or decord.")] = "auto",
    salvage: Annotated[bool, typer.Option("--salvage", help="Search the readable part of a damaged file.")] = False,
    encoder: Encoder = None,
) -> None:
    """Find the moments of VIDEO that each QUERY describes."""
    forms = [name for name, chosen in (("json", as_json), ("csv", as_csv), ("srt", as_srt)) if chosen]
    if len(forms) > 1:
        raise BadInput(f"--{' and --'.join(forms)} contradict each other: stdout takes one form, choose one")
    from momentdetr.features.encoder import check_queries
    from momentdetr.search.loading import DEMO, load

    check_queries(queries)
    if plot is not None:
        from momentdetr.search.plots import check_format

        check_format(plot)
    with bytes_bar(model) as fetching:
        retriever = load(model, device, encoder=encoder, cache=not no_cache, progress=fetching)
    if model == DEMO:
        from momentdetr.demo.run import KNOWS

        say(KNOWS)
    with progress_bar("encoding", "clips") as progress:
        encoded = retriever.encode(video, progress=progress, decoder=decoder, salvage=salvage)
    if not encoded.complete:
        say(f"warning: {video} is damaged; what could be read of it was searched")
    with progress_bar("searching", "windows") as progress:
        result = retriever.search(encoded, queries, top, progress=progress)
    show(result, forms[0] if forms else "table")
    # What was found is printed by now, whatever becomes of the files.
    do_all(
        *([lambda: say(f"picture: {result.plot(plot)}")] if plot is not None else []),
        *([lambda: say(f"clips: {len(result.save_clips(clips))} in {clips}")] if clips is not None else []),
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the video and the picture.")] = Path("momentdetr-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Another one gives another video.")] = 0,
    serve_page: Annotated[bool, typer.Option("--serve", help="Open the page instead.")] = False,
    check_only: Annotated[bool, typer.Option("--check", help="Exit with 0 only if all answers are right.")] = False,
    evaluate_model: Annotated[bool, typer.Option("--evaluate", help="Score the model on a fresh world.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the answers or scores as JSON.")] = False,
    port: Annotated[int, typer.Option(help="Of the page: the first port tried; 0: any free one.")] = 7860,
) -> None:
    """Draw a video of moving shapes, ask it five queries, show the answers."""
    modes = {"--serve": serve_page, "--check": check_only, "--evaluate": evaluate_model}
    chosen = [name for name, on in modes.items() if on]
    if len(chosen) > 1 or (as_json and chosen in (["--serve"], ["--check"])):
        raise BadInput(f"{' and '.join([*chosen, *['--json'] * as_json])} contradict each other, choose one")
    if serve_page:
        _serve("demo", port=port)
        return
    from momentdetr.demo import run

    say(run.KNOWS)
    if evaluate_model:
        with progress_bar("evaluating", "videos") as progress:
            scores = run.evaluate(seed, progress=progress)
        (print_json if as_json else print_scores)(scores)
    elif check_only:
        for problem in (problems := run.check()):
            say(f"wrong: {problem}")
        raise typer.Exit(1 if problems else 0)
    else:
        made = run.demo(out, seed)
        print(made.result.to_json(), end="") if as_json else show_demo(made)
        say(f"video: {made.video}\npicture: {made.picture}")


@app.command()
def serve(
    model: Model = "demo",
    host: Annotated[str, typer.Option(help="Address to listen at. Others than this machine's own need --auth.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The first port tried; 0: any free one.")] = 7860,
    auth: Annotated[
        str | None, typer.Option(envvar="MOMENTDETR_AUTH", help="USER:PASSWORD that visitors must give.")
    ] = None,
    allow_anyone: Annotated[bool, typer.Option("--allow-anyone", help="Open to the network without password.")] = False,
    device: Device = "auto",
    open_browser: Annotated[bool, typer.Option("--open", help="Show the page in a browser.")] = False,
) -> None:
    """Open the page: upload a video, ask, see and play the moments."""
    if auth is not None and not all(auth.partition(":")):
        raise BadInput("--auth has no password, expected USER:PASSWORD")
    user, _, password = (auth or "").partition(":")
    _serve(
        model,
        host=host,
        port=port,
        auth=(user, password) if auth else None,
        allow_anyone=allow_anyone,
        device=device,
        open_browser=open_browser,
    )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A file as in configs/retrieval.")],
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the run: metrics, checkpoints, the retriever.")] = Path(
        "runs/run"
    ),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the output folder.")] = False,
) -> None:
    """Train a retriever from a configuration file."""
    from momentdetr.retrieval.train import train as train_retriever

    print(train_retriever(config, settings or (), output, resume))


@app.command()
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="An official or Lighthouse checkpoint file.")],
    out: Annotated[Path, typer.Argument(help="Folder for config.json and model.safetensors.")],
) -> None:
    """Convert a published checkpoint of Moment-DETR or QD-DETR into a model folder."""
    from momentdetr.retrieval.checkpoint import save
    from momentdetr.retrieval.convert import convert as convert_file

    converted = convert_file(checkpoint)
    print(save(out, converted.config, converted.model(), converted.spec, about=converted.about))


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Say what works on this machine: versions, devices, decoders, weights."""
    from momentdetr.doctor import examine

    findings = examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        for finding in findings:
            print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:28}  {finding.text}")
    raise typer.Exit(0 if all(finding.ok for finding in findings) else 4)


@weights_app.command("list")
def weights_list() -> None:
    """Name every published model, its licence and size, and whether it is here."""
    from momentdetr.weights import list_models

    for status in list_models():
        size = sum(file.file.size or file.file.about_bytes or 0 for file in status.files) / 1e6
        print(f"{status.card.name}  ({size:.0f} MB, {'here' if status.ready else 'not here'})")
        licences = "; ".join(dict.fromkeys(file.file.licence for file in status.files))
        published = [f"published: {status.card.published}"] if status.card.published else []
        print(*(f"    {line}" for line in (status.card.what, *published, f"licence: {licences}")), sep="\n")
        for file in status.files:
            known = file.file.digest_source if file.digest_origin == "published" else None
            print(f"    digest of {file.file.filename}: {file.digest_origin}{f' ({known})' if known else ''}")


@weights_app.command("pull")
def weights_pull(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Fetch the files of a model, resuming what was cut, and check them."""
    from momentdetr.weights import pull

    with bytes_bar(name) as progress:
        found = pull(name, progress)
    _print_files(found)


@weights_app.command("verify")
def weights_verify(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Hash the files of a model again and compare."""
    from momentdetr.weights import verify

    with bytes_bar(name) as progress:
        status = verify(name, progress)
    for file in status.files:
        print(f"{file.path}  sha256 {file.sha256}  ({file.digest_origin}): unchanged")


@weights_app.command("path")
def weights_path(name: Annotated[str, typer.Argument(help="A name of 'weights list'.")]) -> None:
    """Print where the files of a model are, one a line; never fetches."""
    from momentdetr.weights import path

    _print_files(path(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; every error ends here, as one message and an exit code.

    Args:
        arguments: None: those of the process.

    Returns:
        The exit code.
    """
    arguments, debug = _without_debug(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # file names and queries may hold what a terminal cannot show
    if threading.current_thread() is threading.main_thread():  # nobody else may
        signal.signal(signal.SIGTERM, _terminated)
    warnings.showwarning = warn
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except MomentDETRError as error:
        return _failed(f"error: {error}", error.exit_code, debug)
    except KeyboardInterrupt:
        return _failed("interrupted", 130, debug)
    except BrokenPipeError:
        # Nobody reads any more (`| head`). Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        hint = "" if debug else " This is a defect of momentdetr; --debug shows the traceback."
        return _failed(f"internal error: {type(error).__name__}: {error}.{hint}", 1, debug)


def _run(arguments: list[str]) -> int:
    try:
        app(arguments, prog_name="momentdetr")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    return 0


def _without_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take --debug from wherever it stands before "--", so that it works behind any verb."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return [*kept, *arguments[end:]], len(kept) < end


def _terminated(*_: Any) -> None:
    raise SystemExit(143)  # so that temporary files and decoding processes go, too


def _failed(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(message)
    return code


def _serve(model: str, **options: Any) -> None:
    """Serve the page until somebody ends it."""
    from momentdetr.web import serve as start

    with bytes_bar(model) as progress:
        running = start(model, block=False, progress=progress, **options)
    try:
        say(f"serving {running.url} (Ctrl+C ends it)")
        if model == "demo":
            from momentdetr.demo.run import KNOWS

            say(KNOWS)
        running.page.block_thread()
    finally:
        running.close()


def _print_files(found: ResolvedModel) -> None:
    for path in (found.encoder, found.retriever):
        if path is not None:
            print(path)
