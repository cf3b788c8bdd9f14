"""The public surface of the package is exactly `__all__`."""

from __future__ import annotations

import types

import momentdetr

PUBLIC = ["EncodedVideo", "MomentDETRError", "Retriever", "SearchResult", "__version__", "load"]


def test_the_surface_is_what_is_promised() -> None:
    assert sorted(momentdetr.__all__) == sorted(PUBLIC)
    assert dir(momentdetr) == sorted(momentdetr.__all__)


def test_every_promised_name_is_there_and_ours() -> None:
    for name in momentdetr.__all__:
        member = getattr(momentdetr, name)
        assert name == "__version__" or member.__module__.startswith("momentdetr.")


def test_nothing_else_is_there() -> None:
    others = {
        name
        for name, member in vars(momentdetr).items()
        if not name.startswith("_") and not isinstance(member, types.ModuleType)
    }
    assert others - {"annotations"} <= set(momentdetr.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(momentdetr, "nothing_of_that_name")
