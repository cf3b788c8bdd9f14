from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from kernel_cases import make_case

from momentdetr.detr.kernels import choose, cpu, deformable_attention, describe, dispatch, findings, reference
from momentdetr.detr.kernels import sample_points as sample


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MOMENTDETR_KERNEL", raising=False)


@pytest.mark.parametrize("name", ["reference", "torch", "cpu"])
def test_the_environment_chooses(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "cpu" and cpu.available():
        pytest.skip(f"not run: {cpu.available()}")
    monkeypatch.setenv("MOMENTDETR_KERNEL", name)
    assert choose("cpu", torch.float32) == name
    case, called = make_case([(4, 3)]), []
    module = dispatch.kernel(name)
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *a: called.append(name) or forward(*a))
    found = deformable_attention(*case.arguments)  # type: ignore[arg-type]
    assert called == [name]
    torch.testing.assert_close(found, reference.forward(*case.arguments))


def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_KERNEL", "fast")
    with pytest.raises(ValueError, match="'fast' is no kernel; choose one of auto, cpu"):
        choose("cpu", torch.float32)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_kernel_that_cannot_run_here_is_an_error(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOMENTDETR_KERNEL", name)
    with pytest.raises(ValueError, match=f"MOMENTDETR_KERNEL={name} cannot be used here"):
        choose("cpu", torch.float32)


def test_more_than_two_dimensions_are_the_reference_s(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose("cpu", torch.float32, num_dims=3) == "reference"
    case = make_case([(2, 3, 4)])
    torch.testing.assert_close(deformable_attention(*case.arguments), reference.forward(*case.arguments))  # type: ignore[arg-type]


def test_a_broken_kernel_gives_way_with_one_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> object:
        return "no C compiler" if name == "cpu" else found[name]

    found = {name: dispatch.load(name) for name in dispatch.KERNELS}
    monkeypatch.setattr(dispatch, "load", load)
    dispatch.notify_slow.cache_clear()
    with pytest.warns(UserWarning, match="no C compiler"):
        assert choose("cpu", torch.float32) == "torch"
    assert choose("cpu", torch.float32) == "torch"
    dispatch.notify_slow.cache_clear()


def test_findings_name_every_kernel_and_doctor_says_which_runs() -> None:
    assert set(findings()) == {"reference", "torch", "cpu", "cuda", "triton"}
    assert findings()["torch"] == findings()["reference"] == ""
    assert findings()["cuda"]
    assert findings()["triton"]
    from momentdetr.doctor import _kernels

    (finding,) = _kernels()
    chosen = choose("cpu", torch.float32)
    assert finding.ok
    assert finding.text.startswith(describe(chosen))
    assert "cuda: " in finding.text


GOOD = make_case([(4, 3), (2, 2)], kind="boxes")
WRONG = {
    "value is .* expected \\(B, S, H, C\\)": {"value": GOOD.value[0]},
    "have 16 cells, value .* has 15": {"value": GOOD.value[:, 1:].contiguous()},
    "there are no levels": {"shapes": []},
    "at least one cell": {"shapes": [(4, 3), (4, 0)]},
    "differ in their number of axes": {"shapes": [(4, 3), (4,)]},
    "offsets is .* expected \\(B, Q, H, L, P, D\\)": {"offsets": GOOD.offsets[:, :, :1]},
    "of 1 coordinates; the levels have 2": {"offsets": GOOD.offsets[..., :1]},
    "no points": {"offsets": GOOD.offsets[:, :, :, :, :0], "logits": GOOD.logits[..., :0]},
    "logits is .* one for each point": {"logits": GOOD.logits[..., :1]},
    "references is .* expected \\(B, Q, L, D or 2D\\)": {"references": torch.zeros(2, 5, 4)},
    "expected 2 \\(points\\) or 4 \\(boxes\\)": {"references": torch.zeros(2, 5, 2, 3)},
    "offsets is of type torch.int64": {"offsets": GOOD.offsets.long()},
    "logits is on meta, value on cpu": {"logits": GOOD.logits.to("meta")},
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_told_apart(message: str) -> None:
    given = vars(GOOD) | WRONG[message]
    with pytest.raises(ValueError, match=message):
        deformable_attention(given["value"], given["shapes"], given["references"], given["offsets"], given["logits"])


def test_plain_sampling_names_its_own_arguments() -> None:
    case = SimpleNamespace(**vars(make_case([(4, 3)], kind="plain")))
    with pytest.raises(ValueError, match="weights is"):
        sample(case.value, case.shapes, case.offsets, case.logits[..., :1])
    with pytest.raises(ValueError, match="locations is"):
        sample(case.value, case.shapes, case.offsets[0], case.logits)


def test_no_queries_give_no_output_and_gradients_of_zero() -> None:
    case = make_case([(4, 3)], sizes=(2, 0, 2, 3, 8))
    value = case.value.requires_grad_()
    output = deformable_attention(*case.arguments)  # type: ignore[arg-type]
    assert output.shape == (2, 0, 2, 8)
    output.sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() == 0


def test_tensors_need_not_be_contiguous() -> None:
    case = make_case([(4, 3)])
    turned = case.value.transpose(1, 3).contiguous().transpose(1, 3)
    offsets = case.offsets.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert case.references is not None
    found = deformable_attention(turned, case.shapes, case.references, offsets, case.logits)
    torch.testing.assert_close(found, reference.forward(*case.arguments))
