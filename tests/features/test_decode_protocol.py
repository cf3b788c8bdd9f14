"""Messages survive the pipe; what is not a message is refused without believing its sizes."""

from __future__ import annotations

import io
import json
import struct

import numpy as np
import pytest

from momentdetr.features.decode_protocol import Channel, ProtocolError, receive


def test_round_trip() -> None:
    pipe = io.BytesIO()
    pictures = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)
    times = [0.1, 1 / 3, 12345.678901234567]
    channel = Channel(pipe)
    channel.send("frames", pictures, times_s=times)
    channel.send("done")
    pipe.seek(0)
    header, payload = receive(pipe, 1000) or ({}, None)
    assert header["kind"] == "frames"
    assert header["times_s"] == times
    assert payload is not None
    assert np.array_equal(payload.reshape(pictures.shape), pictures)
    assert (receive(pipe, 1000) or ({}, None))[0]["kind"] == "done"
    assert receive(pipe, 1000) is None


def test_signs_of_life_are_rare() -> None:
    pipe = io.BytesIO()
    channel = Channel(pipe)
    for _ in range(1000):
        channel.progress()
    assert pipe.getvalue().count(b"alive") <= 2


def header(**values: object) -> bytes:
    data = json.dumps(values).encode()
    return struct.pack(">I", len(data)) + data


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff{}",
        struct.pack(">I", 4) + b"oops",
        struct.pack(">I", 2) + b"[]",
        header(kind="frames"),
        header(kind="frames", bytes=-1),
        header(kind="frames", bytes=10**15),
        header(kind="frames", bytes="many"),
        header(kind="frames", bytes=None),
    ],
)
def test_nonsense_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        receive(io.BytesIO(data), 1000)


@pytest.mark.parametrize("length", [0, 2, 4, 10, 30])
def test_a_message_that_breaks_off_is_an_end(length: int) -> None:
    data = header(kind="frames", bytes=100) + bytes(50)
    assert receive(io.BytesIO(data[:length]), 1000) is None
    assert receive(io.BytesIO(data), 1000) is None
