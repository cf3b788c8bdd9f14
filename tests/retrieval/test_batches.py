import json

import pytest
import torch
from safetensors.torch import load_file

from momentdetr.datasets.qvhighlights import read_qvhighlights
from momentdetr.datasets.records import MomentRecord, Saliency
from momentdetr.errors import BadInput
from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.batches import MomentDataset, span_targets
from momentdetr.retrieval.generated import generate

SPEC = FeatureSpec(
    video=(Stream("clip", 6, "generated"),), text=Stream("clip_text", 5, "generated"), clip_length_s=2.0, max_clips=10
)


def dataset(num_queries=8):
    world = generate(num_queries, SPEC, 1)
    return MomentDataset(world.records, world.videos, world.texts, SPEC)


def test_spans_are_centres_and_widths_of_what_is_seen():
    targets = span_targets([[(2.0, 6.0), (10.0, 20.0)], [], [(0.0, 5.0)]], [20.0, 20.0, 10.0])
    assert targets.mask.tolist() == [[True, True], [False, False], [True, False]]
    assert targets.labels.tolist() == [[0, 0], [0, 0], [0, 0]]
    torch.testing.assert_close(targets.boxes[0], torch.tensor([[0.2, 0.2], [0.75, 0.5]]))
    torch.testing.assert_close(targets.boxes[2, 0], torch.tensor([0.25, 0.5]))


def test_a_batch_of_absent_queries_has_an_empty_mask():
    targets = span_targets([[], []], [20.0, 20.0])
    assert targets.boxes.shape == (2, 1, 2)
    assert not targets.mask.any()


def test_batch_equals_its_samples_alone():
    data = dataset()
    together = data.batch([5, 2, 7], seed=3, epoch=1)
    assert together.sample_ids == ["5", "2", "7"]
    assert together.targets.videos == ("video5", "video2", "video7")
    for row, index in enumerate([5, 2, 7]):
        alone = data.batch([index], seed=3, epoch=1)
        length = alone.inputs.video.shape[1]
        assert torch.equal(together.inputs.video[row, :length], alone.inputs.video[0])
        assert together.inputs.video_mask[row].sum() == length
        spans = alone.targets.spans.mask[0].sum()
        assert together.targets.spans.mask[row].sum() == spans
        assert torch.equal(together.targets.spans.boxes[row, :spans], alone.targets.spans.boxes[0, :spans])
        for name in ("positive", "negative"):
            ours, theirs = (getattr(batch.targets.saliency, name) for batch in (together, alone))
            assert torch.equal(ours[row], theirs[0])
        assert torch.equal(together.targets.saliency.scores[row, :length], alone.targets.saliency.scores[0])
        assert not together.targets.saliency.scores[row, length:].any()


def test_epochs_draw_other_pairs_and_the_same_epoch_the_same():
    data = dataset(24)
    pairs = [data.batch(range(24), seed=0, epoch=epoch).targets.saliency.negative for epoch in (0, 0, 1)]
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


def test_absent_queries_have_neither_spans_nor_pairs():
    batch = dataset().batch([6, 7])  # every eighth query of the generated world is absent
    assert batch.targets.spans.mask[1].sum() == 0 < batch.targets.spans.mask[0].sum()
    assert (batch.targets.saliency.positive[1] == -1).all()
    assert (batch.targets.saliency.negative[1] == -1).all()
    assert (batch.targets.saliency.positive[0] >= 0).all()


def test_long_videos_are_cut_and_counted_and_their_windows_with_them():
    record = MomentRecord(0, "q", "v", 40.0, ((4.0, 30.0), (36.0, 40.0)), Saliency((2, 15), ((1,), (4,))))
    data = MomentDataset([record], {"v": torch.randn(20, 6)}, {"0": torch.randn(3, 5)}, SPEC)
    assert data.num_truncated == 1
    batch = data.batch([0])
    assert batch.inputs.video.shape[1] == 10
    assert batch.targets.spans.mask.tolist() == [[True]]
    torch.testing.assert_close(batch.targets.spans.boxes[0, 0], torch.tensor([0.6, 0.8]))  # 4 to 20 of 20 s
    assert batch.targets.saliency.positive[0].tolist() == [2, 2]


def test_features_that_do_not_fit_are_all_named():
    records = [MomentRecord(i, "q", f"v{i}", 20.0, (), None) for i in range(4)]
    bad = torch.randn(4, 6)
    bad[2, 1] = float("nan")
    videos = {"v0": torch.randn(4, 6), "v1": torch.randn(4, 7), "v3": bad}
    texts = {str(i): torch.randn(2, 5) for i in range(3)}
    with pytest.raises(BadInput) as caught:
        MomentDataset(records, videos, texts, SPEC)
    for expected in ("4 features", "'v1': shape (4, 7)", "'v2': there are no", "'v3': holds values that", "query '3'"):
        assert expected in str(caught.value)


def test_moving_keeps_the_values():
    batch = dataset().batch([0, 1])
    moved = batch.to("cpu")
    assert moved.records == batch.records
    assert torch.equal(moved.inputs.video, batch.inputs.video)
    assert torch.equal(moved.targets.saliency.negative, batch.targets.saliency.negative)
    assert moved.targets.videos == batch.targets.videos


@pytest.mark.parametrize("system", ["moment_detr", "qd_detr", "cg_detr"])
def test_feeds_the_model_what_the_official_loader_feeds_it(goldens, tmp_path, system):
    """Inputs, spans and annotated scores are equal; the random pairs are drawn otherwise, from the same pools."""
    folder = goldens / "mr_dataset"
    tensors = load_file(folder / f"{system}.safetensors")
    described = json.loads((folder / f"{system}.json").read_text())
    annotations = tmp_path / "annotations.jsonl"
    annotations.write_text("".join(json.dumps(line) + "\n" for line in described["annotations"]))
    records = read_qvhighlights(annotations)
    dims = [tensors["raw.0.v1"].shape[1], tensors["raw.0.v2"].shape[1]]
    spec = FeatureSpec(
        video=(Stream("slowfast", dims[0], "official"), Stream("clip", dims[1], "official")),
        text=Stream("clip_text", tensors["raw.0.txt"].shape[1], "official"),
        clip_length_s=2.0,
    )
    videos, texts = {}, {}
    for i, record in enumerate(records):
        streams = [tensors[f"raw.{i}.{name}"].float() for name in ("v1", "v2")]
        shortest = min(map(len, streams))
        videos[record.video] = torch.cat([stream[:shortest] for stream in streams], 1)
        texts[str(record.qid)] = tensors[f"raw.{i}.txt"].float()
    batch = MomentDataset(records, videos, texts, spec).batch(range(len(records)))
    torch.testing.assert_close(batch.inputs.video, tensors["model_inputs.src_vid"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(batch.inputs.text, tensors["model_inputs.src_txt"], rtol=1e-6, atol=1e-6)
    assert torch.equal(batch.inputs.video_mask.float(), tensors["model_inputs.src_vid_mask"])
    assert torch.equal(batch.inputs.text_mask.float(), tensors["model_inputs.src_txt_mask"])
    for i, record in enumerate(records):
        official = tensors[f"targets.span_labels.{i}.spans"]
        ours = batch.targets.spans.boxes[i][batch.targets.spans.mask[i]]
        assert ours.shape == official.shape
        if len(record.windows_s) <= 5:  # else a random choice
            torch.testing.assert_close(ours, official, rtol=1e-6, atol=1e-7)
        if "targets.saliency_all_labels" in tensors:
            length = int(batch.inputs.video_mask[i].sum())
            scores = tensors["targets.saliency_all_labels"][i, :length].float()
            torch.testing.assert_close(batch.targets.saliency.scores[i, :length], scores)
