"""What a visitor may send is decided on the server."""

from __future__ import annotations

import pytest

from momentdetr.errors import BadInput
from momentdetr.web.limits import Limits, queries_of

LIMITS = Limits(queries=3, characters=20)


def test_lines_are_queries_without_blanks_and_repeats() -> None:
    text = "  a red   circle \n\n\ta star\r\na red circle\n"
    assert queries_of(text, LIMITS) == ["a red circle", "a star"]


def test_text_of_any_script_is_fine() -> None:
    assert queries_of("красный круг\n赤い丸\nقلب", LIMITS) == ["красный круг", "赤い丸", "قلب"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no query yet"),
        (" \n\t\n", "no query yet"),
        ("a\nb\nc\nd", "4 queries at once are too many; at most 3"),
        ("x" * 21, "21 characters is too long; at most 20"),
        ("x" * 10_000, "10,000 characters are too many"),
        ("a\x00b", "cannot be shown"),
        ("a\ud800b", "cannot be shown"),
        ("right \u202eto left", "cannot be shown"),
        (None, "not a text"),
        (7, "not a text"),
        ({"path": "/etc/passwd"}, "not a text"),
        (["a"], "not a text"),
    ],
)
def test_what_is_not_a_query_is_refused(text: object, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        queries_of(text, LIMITS)


def test_the_longest_allowed_text_passes() -> None:
    text = "\n".join(letter * LIMITS.characters for letter in "abc")
    assert queries_of(text, LIMITS) == text.split("\n")
