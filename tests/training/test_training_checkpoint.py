import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from momentdetr.errors import BadCheckpoint, StoreError
from momentdetr.training.checkpoint import Checkpoint, CheckpointFolder, tensor_digest


def checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    model = {"a.weight": torch.randn(3, 4, generator=generator), "a.count": torch.tensor(step)}
    tied = torch.randn(2, generator=generator)
    optimizer = {"exp_avg/x": tied, "exp_avg/y": tied, "half": tied.bfloat16(), "none": torch.zeros(0, 3)}
    return Checkpoint(step, {"model": model, "optimizer": optimizer}, {"position": {"step": step}, "rate": 0.1 + 0.2})


def require_equal(ours, expected):
    assert ours.state == expected.state
    assert ours.tensors.keys() == expected.tensors.keys()
    for part, tensors in expected.tensors.items():
        assert ours.tensors[part].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert ours.tensors[part][name].dtype == tensor.dtype
            assert torch.equal(ours.tensors[part][name], tensor)


def test_what_is_saved_is_loaded(tmp_path):
    folder = CheckpointFolder(tmp_path / "checkpoints")
    assert folder.newest() == (None, [])
    folder.save(checkpoint(5))
    require_equal(folder.load(5), checkpoint(5))
    newest, problems = folder.newest()
    require_equal(newest, checkpoint(5))
    assert problems == []


def test_last_previous_and_best_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    for step in range(1, 8):
        folder.save(checkpoint(step), best_step=3 if step >= 3 else None)
    assert folder.steps() == [3, 6, 7]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000006", "step-00000007"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def swap_a_tensor(path):
    tensors = load_file(path)
    tensors["a.weight"] = tensors["a.weight"] + 1e-6
    save_file(tensors, path)


def drop_a_tensor(path):
    tensors = load_file(path)
    del tensors["a.count"]
    save_file(tensors, path)


DAMAGES = {
    "one bit of the weights": ("model.safetensors", flip, "tensor 'a.weight' differs"),
    "another tensor": ("model.safetensors", swap_a_tensor, "tensor 'a.weight' differs"),
    "a tensor less": ("model.safetensors", drop_a_tensor, "tensor 'a.count' is in the file or in the manifest only"),
    "cut off": ("optimizer.safetensors", lambda p: os.truncate(p, 40), "cannot be read"),
    "missing": ("optimizer.safetensors", os.remove, "cannot be read"),
    "no manifest": ("manifest.json", os.remove, "cannot be read"),
    "manifest cut off": ("manifest.json", lambda p: os.truncate(p, 20), "is not JSON"),
    "manifest of something else": ("manifest.json", lambda p: p.write_text('{"format": "x"}'), "format is 'x'"),
    "manifest without digests": (
        "manifest.json",
        lambda p: p.write_text('{"format": "momentdetr-training/1"}'),
        "KeyError",
    ),
    "another state": ("state.json", lambda p: p.write_text(json.dumps({"position": {"step": 4}})), "differs from its"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_reported_and_the_previous_one_taken(tmp_path, damage):
    file, hurt, message = DAMAGES[damage]
    folder = CheckpointFolder(tmp_path)
    for step in (1, 2):
        folder.save(checkpoint(step))
    hurt(folder.path(2) / file)
    newest, problems = folder.newest()
    require_equal(newest, checkpoint(1))
    assert len(problems) == 1
    assert "step-00000002" in problems[0]
    assert message in problems[0]
    folder.save(checkpoint(2))  # the run goes on over the damaged place
    require_equal(folder.newest()[0], checkpoint(2))
    assert (tmp_path / "damaged-step-00000002").is_dir()


def test_all_damaged_is_an_error(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    flip(folder.path(1) / "model.safetensors")
    with pytest.raises(BadCheckpoint, match="no checkpoint is whole"):
        folder.newest()


def test_half_written_folders_are_swept(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    shutil.copytree(folder.path(1), tmp_path / ".writing-step-00000009")
    newest, _ = folder.newest()
    assert newest.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("nth", range(1, 9))
def test_a_disk_that_refuses_leaves_the_earlier_checkpoint(tmp_path, monkeypatch, nth):
    folder = CheckpointFolder(tmp_path)
    folder.save(checkpoint(1))
    calls = 0

    def failing(function):
        def wrapped(*args):
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing(os.fsync))
        patch.setattr(os, "rename", failing(os.rename))
        if nth <= 7:  # four files, their folder, the renaming, the folder of the renaming
            with pytest.raises(StoreError, match="No space left on device"):
                folder.save(checkpoint(2))
        else:
            folder.save(checkpoint(2))
    newest, problems = folder.newest()
    require_equal(newest, checkpoint(2 if nth >= 7 else 1))
    assert problems == []
    folder.save(checkpoint(3))
    require_equal(folder.newest()[0], checkpoint(3))


def test_digest_knows_type_and_shape():
    zeros = torch.zeros(2, 3)
    others = [torch.zeros(3, 2), torch.zeros(6), torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, 3) - 0.0 * -1]
    digests = {tensor_digest(tensor) for tensor in (zeros, *others[:3])}
    assert len(digests) == 4
    assert tensor_digest(zeros) == tensor_digest(torch.zeros(3, 2).T)
    assert tensor_digest(torch.tensor([0.0])) != tensor_digest(torch.tensor([-0.0]))
