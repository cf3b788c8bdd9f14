"""Open the page on this machine: folders, port, and who may come in."""

from __future__ import annotations

import atexit
import ipaddress
import os
import shutil
import socket
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from momentdetr.errors import BadInput, OutOfResources
from momentdetr.web.limits import Limits

if TYPE_CHECKING:
    import gradio as gr

    from momentdetr.web.desk import Searcher
    from momentdetr.weights import Progress

PORT = 7860
_PORTS_TRIED = 100


@dataclass(frozen=True)
class Running:
    """A page that is being served.

    Args:
        url: where.
        page: Gradio's object.
        folder: visitors' videos and what was made of them; goes with the page.
    """

    url: str
    page: gr.Blocks
    folder: Path

    def close(self) -> None:
        """Stop serving and delete visitors' videos; Gradio's own copies of uploads go when the process ends."""
        self.page.close(verbose=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def serve(
    model: str | Path | Searcher = "demo",
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    auth: tuple[str, str] | None = None,
    allow_anyone: bool = False,
    device: str = "auto",
    limits: Limits | None = None,
    open_browser: bool = False,
    block: bool = True,
    progress: Progress | None = None,
) -> Running:
    """Open the page and, unless told otherwise, stay until it is stopped.

    Args:
        model: name or folder of a model, or a loaded retriever.
        host: address to listen at. Any other than this machine's own needs `auth` or `allow_anyone`.
        port: the first one tried, then the next free; 0: any free one.
        auth: user and password that a visitor must give.
        allow_anyone: whether the page may be open to the network without a password.
        device: where the model runs, if it is not loaded yet.
        limits: what one visitor may ask.
        open_browser: whether to show the page at once.
        block: False returns as soon as the page answers.
        progress: called while published weights are fetched (see `momentdetr.search.loading.load`).

    Raises:
        BadInput: an address that would open the page to others without protection, or that is not this machine's.
        OutOfResources: no free port.
        WeightsUnavailable, BadCheckpoint: the model cannot be loaded.
    """
    _require_protected(host, auth, allow_anyone)
    limits = limits or Limits()
    port = _free_port(host, port)
    retriever = _load(model, device, progress) if isinstance(model, str | Path) else model
    everything = _process_folder()
    folder = Path(tempfile.mkdtemp(prefix="page-", dir=everything))
    from momentdetr.web.guard import guard
    from momentdetr.web.page import CSS, build, theme

    page = build(retriever, folder, limits=limits)
    _, url, _ = page.launch(
        server_name=host,
        server_port=port,
        auth=auth,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        max_file_size=limits.upload_bytes,
        enable_monitoring=False,
        ssr_mode=False,
        css=CSS,
        theme=theme(),
        app_kwargs={"middleware": guard(everything, limits)},
    )
    running = Running(url, page, folder)
    if block:
        _stay(running)
    return running


@cache
def _process_folder() -> Path:
    """The folder of all pages of this process; deleted when it ends.

    Gradio reads the place of its cache from the environment at every request, so that all pages share one.
    """
    folder = Path(tempfile.mkdtemp(prefix="momentdetr-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ.setdefault("GRADIO_TEMP_DIR", str(folder / "cache"))
    return folder


def _stay(running: Running) -> None:
    try:
        running.page.block_thread()
    finally:
        running.close()


def _load(model: str | Path, device: str, progress: Progress | None) -> Any:
    from momentdetr.search.loading import load

    return load(model, device=device, progress=progress)


def _require_protected(host: str, auth: tuple[str, str] | None, allow_anyone: bool) -> None:
    if host == "localhost" or auth is not None or allow_anyone:
        return
    try:
        private = ipaddress.ip_address(host).is_loopback
    except ValueError:
        private = False
    if not private:
        raise BadInput(
            f"{host} opens the page to everyone who can reach this machine: give a user and a password, or allow "
            "anyone explicitly. Without either it is served at 127.0.0.1 only."
        )


def _free_port(host: str, first: int) -> int:
    """The first free port from `first` on; any if it is 0."""
    if not 0 <= first <= 65535:
        raise BadInput(f"port {first} does not exist; expected 0 to 65535")
    for port in [0] if first == 0 else range(first, min(first + _PORTS_TRIED, 65536)):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as candidate:
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                candidate.bind((host, port))
            except PermissionError as error:
                raise BadInput(f"port {port} is not allowed to this user; take one above 1023") from error
            except socket.gaierror as error:
                raise BadInput(f"{host!r} is not an address of this machine: {error}") from error
            except OSError:
                continue
            return int(candidate.getsockname()[1])
    raise OutOfResources(f"no free port at {host} from {first} on; give another with --port")


__all__ = ["PORT", "Running", "serve"]
