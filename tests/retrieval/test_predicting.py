import pytest
import torch

from momentdetr.features.spec import FeatureSpec, Stream
from momentdetr.retrieval.batches import MomentDataset
from momentdetr.retrieval.generated import generate
from momentdetr.retrieval.model import MomentPredictions
from momentdetr.retrieval.predicting import predict_dataset

SPEC = FeatureSpec(
    video=(Stream("clip", 6, "generated"),), text=Stream("clip_text", 5, "generated"), clip_length_s=0.5, max_clips=12
)


class Oracle:
    """Says of each query what can be read off its inputs, so that a mix-up of samples shows."""

    def predict(self, inputs):
        count = len(inputs.video)
        spans = torch.tensor([[0.25, 0.5], [-0.1, 0.2], [0.9, 1.3]]).expand(count, 3, 2)
        first_word = inputs.text[:, 0, 0]
        scores = torch.stack([torch.full_like(first_word, 0.5), first_word.sigmoid(), torch.zeros(count)], 1)
        return MomentPredictions(scores, spans, inputs.video[..., 0], inputs.video_mask, first_word)


@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_answers_are_in_the_records_order_and_on_the_videos_clock(batch_size):
    world = generate(10, SPEC, 1)
    data = MomentDataset(world.records, world.videos, world.texts, SPEC)
    predictions, absent = predict_dataset(Oracle(), data, batch_size=batch_size)
    for index, (record, prediction) in enumerate(zip(world.records, predictions, strict=True)):
        inputs = data.batch([index]).inputs
        assert (prediction.qid, prediction.video, prediction.query) == (record.qid, record.video, record.query)
        assert absent[index] == pytest.approx(float(inputs.text[0, 0, 0]), abs=1e-6)
        assert prediction.saliency == pytest.approx(inputs.video[0, :, 0].tolist(), abs=1e-6)
        assert len(prediction.saliency) == record.duration_s / 0.5
        length = record.duration_s
        expected = {
            (0.25 * length, 0.5 * length, 0.5),
            (0.0, 0.2 * length, float(inputs.text[0, 0, 0].sigmoid())),
            (0.9 * length, length, 0.0),
        }
        assert sorted(prediction.windows) == [pytest.approx(window, abs=1e-5) for window in sorted(expected)]
        scores = [score for _, _, score in prediction.windows]
        assert scores == sorted(scores, reverse=True)
