"""At which packets decoding can begin, and at which earlier damage ends.

A container's "key frame" flag promises less than it seems: in an open group of pictures, or with periodic intra
refresh, pictures after a flagged packet still lean on pictures before it. A reader that starts there returns wrong
pictures under right timestamps (decord does so on such H.264, and on what x265 writes by default).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

# Codecs whose key frames need nothing before them.
_KEY_IS_CLEAN = frozenset(
    {"av1", "vp8", "vp9", "theora", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2"}
    | {"flv1", "h263", "mjpeg", "prores", "dnxhd", "ffv1", "rawvideo"}
)
_H264_SLICES, _H264_IDR = range(1, 6), 5
_HEVC_SLICES, _HEVC_IRAP = range(32), range(16, 22)

Test = Callable[[Any], bool]


def starts_clean(stream: Any) -> Test:
    """Return the test whether decoding can begin at a packet that is flagged as key.

    True means: all pictures shown at or after this packet's time come out right from here on. Pictures that are decoded
    after it and shown before it (leading pictures) need not.

    Args:
        stream: av.VideoStream.
    """
    codec = stream.codec_context.codec.canonical_name
    if codec == "h264":
        length = _length_size(stream, 4)
        return lambda packet: next(_slices(bytes(packet), length, 0x1F, 0, _H264_SLICES), (0, 0))[0] == _H264_IDR
    if codec == "hevc":
        return _is_irap(_length_size(stream, 21))
    return lambda packet: codec in _KEY_IS_CLEAN


def heals(stream: Any) -> Test:
    """Return the test whether a packet that is flagged as key ends earlier damage, all packets being decoded in order.

    As `starts_clean`, and for H.264 also pictures of intra slices only (recovery points of open groups): with all that
    came before in the decoder, what follows is right. Periodic intra refresh has none.
    """
    if stream.codec_context.codec.canonical_name != "h264":
        return starts_clean(stream)
    length = _length_size(stream, 4)

    def is_intra(packet: Any) -> bool:
        data = bytes(packet)
        slices = list(_slices(data, length, 0x1F, 0, _H264_SLICES))
        return bool(slices) and all(kind == _H264_IDR or _is_intra_slice(data[at : at + 16]) for kind, at in slices)

    return is_intra


def is_shown(stream: Any) -> Test:
    """Return the test whether a packet's picture is shown: not cut off by an edit list, not an alt-ref of VP8."""
    if stream.codec_context.codec.canonical_name == "vp8":
        return lambda packet: not packet.is_discard and bool(bytes(packet)[0] & 0x10)
    return lambda packet: not packet.is_discard


def _is_irap(length: int) -> Test:
    # Random access pictures of HEVC, open (CRA) or closed (IDR).
    return lambda packet: next(_slices(bytes(packet), length, 0x3F, 1, _HEVC_SLICES), (-1, 0))[0] in _HEVC_IRAP


def _length_size(stream: Any, place: int) -> int:
    """Return the bytes of the length before each NAL unit; 0: units are separated by start codes (Annex B)."""
    configuration = stream.codec_context.extradata or b""
    return (configuration[place] & 3) + 1 if len(configuration) > place and configuration[0] == 1 else 0


def _slices(data: bytes, length: int, mask: int, shift: int, kinds: range) -> Iterator[tuple[int, int]]:
    """Yield type and position (of the header) of each NAL unit that holds a slice."""
    position = 0
    while position < len(data):
        if length:
            unit = position + length
            position = unit + int.from_bytes(data[position:unit], "big")
        else:
            found = data.find(b"\0\0\1", position)
            if found < 0:
                return
            unit = position = found + 3
        if unit < len(data) and (kind := data[unit] >> shift & mask) in kinds:
            yield kind, unit


def _is_intra_slice(unit: bytes) -> bool:
    bits = "".join(f"{byte:08b}" for byte in unit[1:])
    _, bits = _golomb(bits)  # first macroblock
    kind, _ = _golomb(bits)
    return kind % 5 in (2, 4)


def _golomb(bits: str) -> tuple[int, str]:
    zeros = len(bits) - len(bits.lstrip("0"))
    end = 2 * zeros + 1
    return int(bits[zeros:end] or "1", 2) - 1, bits[end:]
