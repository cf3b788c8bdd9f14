"""The page itself: what stands where, and which button calls what. What they do is in `desk`."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr

from momentdetr.errors import BadInput, MomentDETRError
from momentdetr.web import timeline
from momentdetr.web.desk import Desk, Searcher
from momentdetr.web.examples import Examples
from momentdetr.web.limits import Limits

CSS = files("momentdetr.web").joinpath("page.css").read_text(encoding="utf-8")
_JS = files("momentdetr.web").joinpath("page.js").read_text(encoding="utf-8")
_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "Consolas", "monospace"]

_PROGRESS = gr.Progress()  # Gradio recognises the argument by its default, and gives every call one of its own

DEMO_KNOWS = "coloured shapes and how they move, and nothing else"
_MARK = (
    '<svg viewBox="0 0 44 44" aria-hidden="true"><rect width="44" height="44" rx="11" fill="#4f46e5"/>'
    '<path d="M7 28c5 0 5-3 8-3s3-11 7-11 4 14 8 14 3-3 7-3" fill="none" stroke="#fff" stroke-width="2.4" '
    'stroke-linecap="round"/><rect x="16.5" y="9" width="11" height="26" rx="3" fill="#fff" fill-opacity=".28"/></svg>'
)
_HINT = (
    '<div class="md-hint"><b>The time line appears here.</b> Upload a video or take an example, write what to find, '
    "and press Search.</div>"
)


def theme() -> gr.themes.Base:
    """Quiet colours and the system's own fonts: nothing is fetched from elsewhere."""
    return gr.themes.Base(primary_hue="indigo", neutral_hue="slate", font=_FONT, font_mono=_MONO, radius_size="lg").set(
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_500",
        button_primary_text_color="white",
        block_border_width="1px",
        block_shadow="none",
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
    )


def build(
    retriever: Searcher, folder: Path, *, limits: Limits | None = None, examples: Examples | None = None
) -> gr.Blocks:
    """Build the page for one model.

    Args:
        retriever: answers.
        folder: for visitors' files and example videos; is made. Empty it afterwards.
        limits: what one visitor may ask.
        examples: videos to pick from; by default three of the moving-shapes world.

    Returns:
        The page, ready for `launch(css=CSS, theme=theme())`; `momentdetr.web.serve` does it all.
    """
    limits = limits or Limits()
    desk = Desk(retriever, folder / "visitors", limits)
    examples = examples or Examples(folder / "examples")
    acts = _Acts(desk, examples)
    with gr.Blocks(title="momentdetr", analytics_enabled=False, delete_cache=(600, limits.keep_s)) as page:
        token = gr.State(None)
        gr.HTML(_header(retriever), elem_id="md-header", padding=False)
        with gr.Row(elem_id="md-main"):
            with gr.Column(scale=7, min_width=360):
                player = gr.Video(
                    sources=["upload"],
                    show_label=False,
                    elem_id="md-player",
                    height=400,
                    include_audio=True,
                    buttons=[],
                )
                line = gr.HTML(_HINT, js_on_load=_JS, elem_id="md-line", padding=False)
            with gr.Column(scale=5, min_width=320):
                queries = gr.Textbox(
                    label="What to find, one query a line",
                    placeholder="a red circle moves to the right\na blue star spins",
                    lines=4,
                    max_lines=limits.queries,
                    elem_id="md-queries",
                )
                with gr.Row(elem_id="md-examples"):
                    picks = [gr.Button(f"Example {i + 1}", size="sm", min_width=80) for i in range(examples.count)]
                go = gr.Button("Search", variant="primary", elem_id="md-go")
                notice = gr.HTML("", elem_id="md-notice", padding=False)
                found = gr.HTML("", js_on_load=_JS, elem_id="md-found", padding=False)
                with gr.Row(visible=False, elem_id="md-take") as take:
                    as_json = gr.DownloadButton("JSON", size="sm", min_width=80, elem_id="md-json")
                    cut = gr.Button("Clips (.zip)", size="sm", min_width=80, elem_id="md-cut")
                    archive = gr.DownloadButton("clips", visible="hidden", elem_id="md-zip")
        results = [line, found, take]
        # Gradio serves private events to this page only, not to clients of its programming interface.
        hidden: dict[str, Any] = {"api_visibility": "private"}
        model: dict[str, Any] = {"concurrency_limit": limits.parallel, "concurrency_id": "model", **hidden}
        player.upload(acts.upload, [player], [player, token, notice, *results], concurrency_limit=2, **hidden)
        player.clear(acts.clear, None, [token, notice, *results], **hidden)
        for i, pick in enumerate(picks):
            pick.click(acts.pick(i), None, [player, token, queries, notice, *results], concurrency_limit=1, **hidden)
        gr.on(
            [go.click, queries.submit],
            acts.search,
            [token, queries],
            [notice, *results, as_json],
            show_progress_on=line,
            **model,
        )
        cut.click(acts.clips, [token], [archive, notice], concurrency_limit=2, **hidden).success(
            None, None, None, js="() => document.querySelector('#md-zip')?.click()", **hidden
        )
        page.unload(acts.leave)
    page.queue(max_size=limits.waiting, default_concurrency_limit=4)
    return page


class _Acts:
    """One function for each thing a visitor does: calls the desk, returns what the page shows then."""

    def __init__(self, desk: Desk, examples: Examples) -> None:
        self._desk, self._examples = desk, examples

    def upload(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        try:
            if path is None:
                raise BadInput("no video arrived; upload it again")
            opened = self._desk.open(_visitor(request), Path(path))
        except MomentDETRError as error:
            return None, None, _notice("error", str(error)), *_no_results()
        player = str(opened.player) if opened.is_copy else gr.skip()
        copy = " Shown as a copy that browsers can play." if opened.is_copy else ""
        return player, opened.token, _notice("good", opened.summary + "." + copy), *_no_results()

    def pick(self, number: int) -> Callable[[gr.Request], tuple[Any, ...]]:
        def pick(request: gr.Request) -> tuple[Any, ...]:
            try:
                example = self._examples.get(number)
                opened = self._desk.open(_visitor(request), example.path)
            except MomentDETRError as error:
                return gr.skip(), gr.skip(), gr.skip(), _notice("error", str(error)), *_no_results()
            text = _notice("good", f"{opened.summary}. The last query is about something that is not in it.")
            return str(opened.player), opened.token, "\n".join(example.queries), text, *_no_results()

        return pick

    def clear(self) -> tuple[Any, ...]:
        return None, "", *_no_results()

    def search(
        self, token: str | None, queries: str, request: gr.Request, progress: gr.Progress = _PROGRESS
    ) -> tuple[Any, ...]:
        def report(done: int, total: int) -> None:
            progress((done, total), desc="Looking at the video", unit="clips")

        visitor = _visitor(request)
        try:
            found = self._desk.search(visitor, token, queries, report)
            as_json = self._desk.save_json(visitor, token)
        except MomentDETRError as error:
            return _notice("error", str(error)), gr.skip(), gr.skip(), gr.skip(), gr.skip()
        result = found.result
        count = sum(len(answer.moments) for answer in result)
        text = _notice("good", f"{count} moments. Click one to play it.")
        if not result.complete:
            text = _notice("error", f"{count} moments in the part of the video that could be read.")
        return (
            text,
            timeline.timeline(result, found.start_s),
            timeline.moment_list(result),
            gr.Row(visible=True),
            gr.DownloadButton(value=str(as_json)),
        )

    def clips(self, token: str | None, request: gr.Request) -> tuple[Any, ...]:
        try:
            return str(self._desk.save_clips(_visitor(request), token)), gr.skip()
        except MomentDETRError as error:
            return None, _notice("error", str(error))

    def leave(self, request: gr.Request) -> None:
        self._desk.close(_visitor(request))


def _visitor(request: gr.Request) -> str:
    if not request.session_hash:
        raise BadInput("this call belongs to no visitor; open the page in a browser")
    return request.session_hash


def _no_results() -> tuple[Any, Any, Any]:
    return _HINT, "", gr.Row(visible=False)


def _notice(kind: str, text: str) -> str:
    return f'<p class="md-notice md-{kind}" role="status">{escape(text)}</p>' if text else ""


def _header(retriever: Searcher) -> str:
    name = retriever.name or "a model without a name"
    knows = DEMO_KNOWS if name == "demo" else retriever.about.get("knows", "")
    warning = f'<span class="md-knows">It knows {escape(knows)}.</span>' if knows else ""
    return (
        f'<header class="md-header"><div class="md-brand">{_MARK}<div><h1>momentdetr</h1>'
        "<p>Find the moments of a video that a sentence describes.</p></div></div>"
        f'<div class="md-model"><span>Answers: <b>{escape(name)}</b></span>{warning}'
        "<span>Nothing leaves this machine.</span></div></header>"
    )


__all__ = ["CSS", "build", "theme"]
