"""Run by the tests in a process of its own, since Triton chooses its interpreter when a kernel is defined:

TRITON_INTERPRET=1 python triton_interpreted.py few|all|rest
"""

from __future__ import annotations

import itertools
import sys

import torch
from gpu_cases import Case, compare, expected, problem, tolerance, verify

from momentdetr.detr.kernels import reference, triton_backend

HALF, BRAIN, SINGLE, DOUBLE = torch.float16, torch.bfloat16, torch.float32, torch.float64
SMALL = {"num_queries": 3, "num_heads": 1, "batch": 1}
FEW = [
    Case(2, "points", shapes=((5, 7), (1, 2)), num_points=2, channels=8, **SMALL),
    Case(1, "boxes", BRAIN, BRAIN, places=DOUBLE, num_points=1, channels=6, **SMALL),
]
ALL = [
    *(
        Case(d, mode, value)
        for d, mode, value in itertools.product((1, 2), ("plain", "points", "boxes"), (SINGLE, BRAIN))
    ),
    Case(2, "points", HALF, HALF, num_queries=40),  # more than one tile
    Case(1, "plain", places=DOUBLE),
]


def strange() -> None:
    """What is not finite, or far away, reads nothing and has no gradient."""
    given = problem(Case(2, "points", num_points=2, channels=8, num_queries=8))
    for i, number in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31)):
        given.offsets[:, i, 0, :, i % 2, i // 2 % 2] = number
    assert given.references is not None
    given.references[:, 7, 1] = torch.nan
    output = triton_backend.forward(*given.arguments())
    grads = triton_backend.backward(given.grad_output, *given.arguments())
    wanted = reference.forward(*given.arguments())
    slopes = reference.backward(given.grad_output, *given.arguments())
    compare("output", output, wanted.double(), tolerance(SINGLE))
    for name, i in (("value", 0), ("offsets", 2), ("logits", 3)):
        compare(name, grads[i], slopes[i].double(), tolerance(SINGLE))
    given.logits[0, 3, 1, 2, 0] = torch.nan
    given.offsets[0, 3, 1] = 1e30
    output = triton_backend.forward(*given.arguments())
    assert torch.equal(output.isnan(), reference.forward(*given.arguments()).isnan())


def long() -> None:
    """A sequence of 75,000 clips is sampled where its references say."""
    case = Case(1, "points", channels=4, num_heads=1, num_queries=50, batch=1, shapes=((75_000,),))
    given = problem(case)
    given.offsets.copy_(torch.rand(given.offsets.shape, generator=torch.Generator().manual_seed(1)) * 8 - 4)
    compare("output", triton_backend.forward(*given.arguments()), expected(given)[0], 2e-6)


def fixed() -> None:
    """Sums in fixed point are those in float, and the same in any order."""
    given = problem(Case(1, "points", num_points=2, channels=8, num_queries=8, shapes=((3,), (1,))))
    value, shapes, references, offsets, logits = given.arguments()
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.use_deterministic_algorithms(True)
    first = triton_backend.backward(given.grad_output, value, shapes, references, offsets, logits)[0]
    shuffled = references[:, order], offsets[:, order], logits[:, order]
    second = triton_backend.backward(given.grad_output[:, order], value, shapes, *shuffled)[0]
    compare("gradient of value", first, expected(given)[1][0], 2e-7)
    assert torch.equal(first, second)


def main(what: str) -> None:
    if what == "rest":
        strange()
        long()
        fixed()
        return
    for case in FEW if what == "few" else ALL:
        print(case, flush=True)
        verify(triton_backend, case, "cpu")


if __name__ == "__main__":
    main(sys.argv[1])
