"""Which models have published weights, where each file lies, and what is known about it.

Nothing here is downloaded or opened. A digest is given only where somebody published it; `digest_source` says who.
Where it is None, the digest of the first download is recorded and every later use is compared with that.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from momentdetr.errors import BadInput


@dataclass(frozen=True)
class HubSource:
    """A file of a repository on the Hugging Face hub, at one commit.

    Args:
        repo: "owner/name".
        revision: the commit, 40 hexadecimal digits: the same bytes for ever.
    """

    repo: str
    revision: str


@dataclass(frozen=True)
class UrlSource:
    """A file at a plain address.

    Args:
        url: http or https.
        folder: where it is kept below the cache, so that two files named alike stay apart.
    """

    url: str
    folder: str


@dataclass(frozen=True)
class RemoteFile:
    """One published file.

    Args:
        filename: its name on disk.
        source: where it comes from.
        licence: of the weights; "not verified" where only the code's licence is known.
        sha256: 64 hexadecimal digits, or None where nobody published it.
        size: bytes, or None where it is not known exactly.
        about_bytes: estimate for showing (four bytes a parameter, twelve with Adam's state).
        digest_source: who published `sha256`.
    """

    filename: str
    source: HubSource | UrlSource
    licence: str
    sha256: str | None = None
    size: int | None = None
    about_bytes: int | None = None
    digest_source: str | None = None


@dataclass(frozen=True)
class ModelCard:
    """What a person must know before using a model, and what the program needs to run it.

    Args:
        name: what the user types.
        what: one sentence.
        encoder: weights of the image and text towers.
        retriever: the moment-retrieval checkpoint in its author's own format; None for an encoder alone.
        open_clip_model: architecture that `encoder` fills. The QuickGELU variant: OpenAI trained with it, and the plain
            name would load the same weights with another activation and no complaint.
        clip_length_s: seconds of video per feature vector that the retriever was trained on.
        streams: video features in the retriever's order.
        published: the figures its authors report, with the split.
    """

    name: str
    what: str
    encoder: RemoteFile
    retriever: RemoteFile | None
    open_clip_model: str = "ViT-B-32-quickgelu"
    clip_length_s: float = 2.0
    streams: tuple[str, ...] = ("clip",)
    published: str = ""

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """Every file that the model needs."""
        return (self.encoder,) if self.retriever is None else (self.encoder, self.retriever)


CLIP_VIT_B_32 = RemoteFile(
    filename="open_clip_model.safetensors",
    source=HubSource("timm/vit_base_patch32_clip_224.openai", "a6f597a30f7b82c51704746581f9a4e41421e878"),
    licence="MIT (OpenAI CLIP)",
    sha256="e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
    size=605_143_284,
    about_bytes=605_143_284,
    digest_source="agrees in several independent public projects that pin this commit",
)


def _lighthouse(filename: str, about_bytes: int, sha256: str | None = None) -> RemoteFile:
    return RemoteFile(
        filename=filename,
        source=UrlSource(f"https://zenodo.org/records/13960580/files/{filename}", "lighthouse-13960580"),
        licence="Apache-2.0 (Lighthouse; licence of the weights themselves not verified)",
        sha256=sha256,
        about_bytes=about_bytes,
        digest_source="a public project that pins this file" if sha256 else None,
    )


def _github(repo: str, path: str, folder: str, about_bytes: int) -> RemoteFile:
    # "raw/HEAD" follows the default branch and large-file storage; neither repository has a release with this file.
    return RemoteFile(
        filename=path.rsplit("/", 1)[-1],
        source=UrlSource(f"https://github.com/{repo}/raw/HEAD/{path}", folder),
        licence="MIT (code; licence of the weights themselves not verified)",
        about_bytes=about_bytes,
    )


_CARDS = (
    ModelCard(
        name="lighthouse-qd-detr-clip",
        what="QD-DETR on CLIP features, trained by the Lighthouse project on QVHighlights.",
        encoder=CLIP_VIT_B_32,
        retriever=_lighthouse(
            "clip_qd_detr_qvhighlight.ckpt",
            28_000_000,
            "42798d352dde089a835cb4995eb9c8084a2e97337166abbbb09c12856aec2c55",
        ),
        published="QVHighlights val R1@0.5 59.7, R1@0.7 42.3; test R1@0.5 60.8, R1@0.7 41.8",
    ),
    ModelCard(
        name="lighthouse-moment-detr-clip",
        what="Moment-DETR on CLIP features, trained by the Lighthouse project on QVHighlights.",
        encoder=CLIP_VIT_B_32,
        retriever=_lighthouse("clip_moment_detr_qvhighlight.ckpt", 17_000_000),
        published="QVHighlights val R1@0.5 53.5, R1@0.7 34.1; test R1@0.5 55.8, R1@0.7 33.8",
    ),
    ModelCard(
        name="qd-detr-clip",
        what="The authors' own QD-DETR on CLIP features alone, trained on QVHighlights.",
        encoder=CLIP_VIT_B_32,
        retriever=_github("wjun0830/QD-DETR", "run_on_video/qd_detr_ckpt/model_best.ckpt", "qd-detr", 84_000_000),
        published="QVHighlights val R1@0.5 60.58, R1@0.7 43.35, mAP 38.66",
    ),
    ModelCard(
        name="moment-detr-clip",
        what="The authors' own Moment-DETR on CLIP features alone, trained on QVHighlights.",
        encoder=CLIP_VIT_B_32,
        retriever=_github(
            "jayleicn/moment_detr", "run_on_video/moment_detr_ckpt/model_best.ckpt", "moment-detr", 17_000_000
        ),
        published="QVHighlights val R1@0.5 53.23, R1@0.7 34.00, mAP 30.58",
    ),
    ModelCard(
        name="clip-vit-b-32",
        what="OpenAI's CLIP ViT-B/32 alone: makes the features that retrievers are trained on.",
        encoder=CLIP_VIT_B_32,
        retriever=None,
    ),
)

REGISTRY: dict[str, ModelCard] = {card.name: card for card in _CARDS}


def card(name: str, registry: dict[str, ModelCard] | None = None) -> ModelCard:
    """The model of that name.

    Args:
        name: a key of the registry.
        registry: another table than `REGISTRY`.

    Raises:
        BadInput: there is none; names the closest and all others.
    """
    known = REGISTRY if registry is None else registry
    if name in known:
        return known[name]
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise BadInput(f"no model is called {name!r}.{hint} Known: {', '.join(sorted(known))}.")


__all__ = ["CLIP_VIT_B_32", "REGISTRY", "HubSource", "ModelCard", "RemoteFile", "UrlSource", "card"]
