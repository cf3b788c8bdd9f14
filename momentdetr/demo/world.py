"""The moving-shapes world: a data set that anyone can draw again from a seed.

`make_video(seed, index)` writes down one video and its queries, `draw(scene)` draws its frames, and `write_dataset`
writes MP4 files with their truth. Coloured shapes appear, stay, move, spin, grow, shrink and blink before plain and
textured walls; a shape may do several things in a row, and up to two are there at once.

Every video has three to eight events and six queries. Three are in the video: of these one has only windows shorter
than a tenth of the video, two have only longer ones, and at least one has a distractor, an event that shares exactly
two of colour, shape and motion with it. Three are not in the video, two of them being one attribute away from one that
is. The splits draw from different random streams, so no seed of "test" can meet a training video; "train" and
"validation" know no combination of `HELD_OUT`, "test" asks for them in a third of its queries.
"""

from momentdetr.demo.dataset import write_dataset
from momentdetr.demo.drawing import SIZE, draw
from momentdetr.demo.planning import QUERIES_PER_VIDEO, SPLITS, make_video
from momentdetr.demo.scene import CLIP_LENGTH_S, FPS, Scene
from momentdetr.demo.vocabulary import HELD_OUT

__all__ = [
    "CLIP_LENGTH_S",
    "FPS",
    "HELD_OUT",
    "QUERIES_PER_VIDEO",
    "SIZE",
    "SPLITS",
    "Scene",
    "draw",
    "make_video",
    "write_dataset",
]
