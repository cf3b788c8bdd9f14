import numpy as np
import pytest

from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.datasets.sampling import NO_PAIRS, clip_scores, draw_pairs, draw_windows, generator_of, windows_seen

SALIENCY = Saliency((2, 3, 4), ((1, 1, 1), (4, 4, 4), (0, 1, 0)))


def record(windows=((4.0, 10.0),), saliency=SALIENCY):
    return MomentRecord(0, "q", "v", 20.0, windows, saliency)


def test_the_same_key_draws_the_same():
    assert generator_of(1, 2, 3).random(5).tolist() == generator_of(1, 2, 3).random(5).tolist()
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({generator_of(*key).random() for key in keys}) == 4


def test_hard_pair_is_best_against_worst_and_easy_pair_inside_against_outside():
    seen = set()
    for index in range(200):
        pairs = draw_pairs(record(), 10, 2.0, generator_of(0, 0, index))
        assert (pairs.positive[0], pairs.negative[0]) == (3, 4)
        assert pairs.positive[1] in {2, 3, 4}
        assert pairs.negative[1] in {0, 1, 5, 6, 7, 8, 9}
        seen.add((pairs.positive[1], pairs.negative[1]))
    assert len(seen) == 21  # every combination comes up


def test_hard_pair_again_where_every_clip_is_relevant():
    pairs = draw_pairs(record(), 5, 2.0, np.random.default_rng(0))
    assert pairs.negative[1] in {0, 1}
    whole = record(saliency=Saliency((0, 1), ((1,), (2,))))
    assert draw_pairs(whole, 2, 2.0, np.random.default_rng(0)).positive == (1, 1)
    assert draw_pairs(whole, 2, 2.0, np.random.default_rng(0)).negative == (0, 0)


def test_absent_queries_have_no_pairs_and_no_scores():
    for saliency in (Saliency((), ()), None):
        absent = record(windows=(), saliency=saliency)
        assert draw_pairs(absent, 10, 2.0, np.random.default_rng(0)) == NO_PAIRS
        assert not clip_scores(absent, 10, 2.0).any()


def test_clips_beyond_what_is_seen_are_not_drawn():
    assert draw_pairs(record(), 2, 2.0, np.random.default_rng(0)) == NO_PAIRS
    pairs = draw_pairs(record(), 4, 2.0, np.random.default_rng(0))
    assert (pairs.positive[0], pairs.negative[0]) == (3, 2)


def test_scores_are_the_annotators_sum():
    assert clip_scores(record(), 10, 2.0).tolist() == [0, 0, 3, 12, 1, 0, 0, 0, 0, 0]
    assert clip_scores(record(), 3, 2.0).tolist() == [0, 0, 3]


def test_without_saliency_windows_say_which_clips_are_inside():
    plain = record(windows=((4.0, 10.0), (17.0, 17.5)), saliency=None)
    assert clip_scores(plain, 10, 2.0).tolist() == [0, 0, 1, 1, 1, 0, 0, 0, 1, 0]
    for index in range(50):
        pairs = draw_pairs(plain, 10, 2.0, generator_of(0, 0, index))
        assert set(pairs.positive) <= {2, 3, 4, 8}
        assert set(pairs.negative) <= {0, 1, 5, 6, 7, 9}
        assert len(set(pairs.positive)) == len(set(pairs.negative)) == 2
    assert draw_pairs(record(windows=((0.0, 20.0),), saliency=None), 10, 2.0, np.random.default_rng(0)) == NO_PAIRS


def test_at_most_five_windows_are_drawn_without_repetition():
    windows = [(float(i), float(i + 1)) for i in range(9)]
    drawn = [tuple(draw_windows(windows, generator_of(0, 0, i))) for i in range(50)]
    assert all(len(set(some)) == 5 and set(some) <= set(windows) for some in drawn)
    assert {window for some in drawn for window in some} == set(windows)
    assert draw_windows(windows[:5], np.random.default_rng(0)) == windows[:5]


@pytest.mark.parametrize(("truncated", "expected"), [(True, [(2, 6), (7, 8)]), (False, [(2, 6), (7, 9)])])
def test_windows_are_cut_only_where_the_video_is(truncated, expected):
    assert windows_seen([(2, 6), (7, 9), (8, 9), (12, 14)], 4, 2.0, truncated=truncated) == expected
