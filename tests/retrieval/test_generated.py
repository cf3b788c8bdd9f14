import torch

from momentdetr.datasets.records import record_faults
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.generated import generate

SPEC = FeatureSpec(
    video=(Stream("clip", 48, "generated"),), text=Stream("clip_text", 32, "generated"), clip_length_s=2.0, max_clips=30
)


def test_a_seed_makes_one_world():
    first, again, other = generate(5, SPEC, 1), generate(5, SPEC, 1), generate(5, SPEC, 2)
    assert first.records == again.records
    assert all(torch.equal(first.videos[name], again.videos[name]) for name in first.videos)
    assert all(torch.equal(first.texts[name], again.texts[name]) for name in first.texts)
    assert first.records != other.records


def test_records_are_right_and_windows_show_in_the_features():
    world = generate(40, SPEC, 3)
    assert sum(not record.windows_s for record in world.records) == 5
    for record in world.records:
        assert record_faults(record, clip_length_s=2.0) == []
        video = world.videos[record.video]
        assert len(video) * 2.0 == record.duration_s
        if record.windows_s:
            ((start, end),) = record.windows_s
            inside = torch.zeros(len(video), dtype=torch.bool)
            inside[int(start / 2) : int(end / 2)] = True
            assert record.saliency.clips == tuple(inside.nonzero().flatten().tolist())
            if not inside.all():
                assert video[inside].norm(dim=1).mean() > 1.3 * video[~inside].norm(dim=1).mean()
