"""The tests run with every annotation of `basin` checked at each call (tests/conftest.py). These tests can fail if it is not."""

import pytest
import torch
from jaxtyping import TypeCheckError
from small import BALL, classifier, two_of_five

from basin.data.splits import Split
from basin.threat.target import cross_entropy_each


def test_an_image_without_its_batch_axis_is_refused():
    with pytest.raises(TypeCheckError, match=r"Actual value: f32\[1,8,8\]"):
        classifier().features(torch.zeros(1, 8, 8))


def test_labels_that_are_not_integers_are_refused():
    with pytest.raises(TypeCheckError, match=r"parameter 'labels'"):
        cross_entropy_each(torch.zeros(2, 3), torch.zeros(2))


def test_axes_of_one_name_must_agree():
    with pytest.raises(TypeCheckError, match=r"n=2"):
        BALL.distance(torch.zeros(2, 1, 4, 4), torch.zeros(3, 1, 4, 4))


def test_a_result_of_the_wrong_shape_is_refused():
    model = classifier()
    model.head = torch.nn.Identity()
    model.backbone = torch.nn.Identity()
    with pytest.raises(TypeCheckError, match="return value of basin.models.classifier.Classifier"):
        model(torch.zeros(2, 1, 8, 8))


def test_images_that_are_neither_bytes_nor_floats_are_refused():
    with pytest.raises(TypeCheckError):
        Split(torch.zeros(2, 1, 8, 8, dtype=torch.int16), torch.zeros(2, dtype=torch.int64))


def test_what_fits_is_let_through():
    assert two_of_five()(torch.zeros(2, 1, 4, 4)).shape == (2, 5)
    assert BALL.distance(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)).tolist() == [1, 1]
