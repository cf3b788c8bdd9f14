"""The official pair of padded images and their mask, True where padded."""

from typing import Any


class NestedTensor:
    def __init__(self, tensors: Any, mask: Any) -> None:
        self.tensors, self.mask = tensors, mask
