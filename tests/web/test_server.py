"""Who may come in, where, and what the answers carry."""

from __future__ import annotations

import ast
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_retriever import FakeRetriever

from momentdetr.errors import BadInput
from momentdetr.web import Limits, Running, serve


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_an_open_door_needs_a_key(host: str) -> None:
    with pytest.raises(BadInput, match="allow anyone explicitly"):
        serve(FakeRetriever(), host=host, port=0, block=False)


@pytest.mark.parametrize("port", [-1, 70_000])
def test_ports_that_do_not_exist_are_refused(port: int) -> None:
    with pytest.raises(BadInput, match=f"port {port} does not exist"):
        serve(FakeRetriever(), port=port, block=False)


def test_the_package_says_no_to_reports_before_gradio_is_there() -> None:
    code = (
        "import os, sys, momentdetr.web; assert 'gradio' not in sys.modules and 'torch' not in sys.modules; "
        "print(os.environ['GRADIO_ANALYTICS_ENABLED'], os.environ['GRADIO_RUN_HISTORY'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    page = serve(FakeRetriever(), port=0, block=False, limits=Limits(upload_bytes=200_000, disk_bytes=1_000_000))
    yield page
    page.close()
    assert not page.folder.exists()


def _get(url: str) -> tuple[int, dict[str, str], bytes]:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def _upload(url: str, content: bytes) -> int:
    edge = "edge"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{edge}--\r\n".encode()
    request = urllib.request.Request(
        f"{url}gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={edge}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_the_page_answers_here_and_keeps_the_browser_here(running: Running) -> None:
    assert running.url.startswith("http://127.0.0.1:")
    status, headers, body = _get(running.url)
    assert status == 200
    assert b"coloured shapes and how they move, and nothing else" in body
    assert "connect-src 'self'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"


def test_nothing_is_reported_or_remembered_elsewhere(running: Running) -> None:
    config = json.loads(_get(f"{running.url}config")[2])
    assert config["analytics_enabled"] is False
    assert config["run_history"] is False


def test_the_server_speaks_to_nobody(tmp_path: Path) -> None:
    """Every name that is looked up and every address that is called, from the first import to the end."""
    script = tmp_path / "serve.py"
    script.write_text(
        "import socket, sys, time, urllib.request\n"
        "seen = []\n"
        "look_up, connect = socket.getaddrinfo, socket.socket.connect\n"
        "socket.getaddrinfo = lambda host, *a, **k: (seen.append(str(host)), look_up(host, *a, **k))[1]\n"
        "def watched(self, address):\n"
        "    seen.append(str(address[0] if isinstance(address, tuple) else 'a local socket'))\n"
        "    return connect(self, address)\n"
        "socket.socket.connect = watched\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from momentdetr.web import serve\n"
        "from fake_retriever import FakeRetriever\n"
        "page = serve(FakeRetriever(), port=0, block=False)\n"
        "urllib.request.urlopen(page.url).read()\n"
        "time.sleep(1.5)\n"
        "page.close()\n"
        "print(sorted(set(seen)))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=400, check=True)
    seen = set(ast.literal_eval(done.stdout.strip().splitlines()[-1]))
    assert "127.0.0.1" in seen  # the watch works
    assert seen <= {"127.0.0.1", "localhost", "::1", "a local socket", "None", "b'127.0.0.1'"}


def test_no_function_is_offered_to_programs(running: Running) -> None:
    api = json.loads(_get(f"{running.url}gradio_api/info")[2])
    assert api == {"named_endpoints": {}, "unnamed_endpoints": {}}


@pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../../etc/passwd", "momentdetr/web/page.py"])
def test_files_of_the_machine_are_not_served(running: Running, path: str) -> None:
    full = path if path.startswith(("/", "..")) else str(Path.cwd() / path)
    assert _get(f"{running.url}gradio_api/file={full}")[0] in {403, 404}


def test_uploads_end_at_their_limit_and_at_the_disk_s(running: Running) -> None:
    assert _upload(running.url, os.urandom(100_000)) == 200
    assert _upload(running.url, os.urandom(300_000)) == 413
    for _ in range(12):
        status = _upload(running.url, os.urandom(190_000))
        if status != 200:
            break
    assert status == 507


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        page = serve(FakeRetriever(), port=port, block=False)
        try:
            assert page.url != f"http://127.0.0.1:{port}/"
            assert _get(page.url)[0] == 200
        finally:
            page.close()


def test_with_a_password_the_page_is_closed_without_it() -> None:
    page = serve(FakeRetriever(), port=0, block=False, auth=("anna", "secret"))
    try:
        assert _get(f"{page.url}config")[0] == 401
        assert _upload(page.url, b"x") == 401
    finally:
        page.close()
