"""Annotated shapes are checked while the tests run, so that the annotations can be believed."""

import pytest
import torch
from jaxtyping import TypeCheckError

from molere.networks import mean_one


def test_a_tensor_of_another_shape_than_annotated_is_refused() -> None:
    with pytest.raises(TypeCheckError):
        mean_one(torch.ones(2, 2))
