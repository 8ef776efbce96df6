"""Colours of classes: well apart for everyone, and a class keeps its own."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from vpltool.formats import voc_palette
from vpltool.pictures.colours import _distances, _views, class_palette


def apart(palette: list[int], count: int) -> float:
    """Least distance of the first colours in OKLab, by the eyes that tell them apart least."""
    colours = np.array(palette, float).reshape(256, 3)[1:count + 1]
    distances: npt.NDArray[np.float64] = _distances(_views(colours), _views(colours))
    return float(distances[~np.eye(count, dtype=bool)].min())


@pytest.mark.parametrize(("count", "least"), [(7, 0.07), (10, 0.07), (20, 0.07), (80, 0.03)])
def test_classes_are_told_apart_by_everyone(count: int, least: float) -> None:
    """0.02 is about what can just be seen; VOC's own first ten are 0.006 apart."""
    assert apart(class_palette(), count) > least > apart(voc_palette(), count)


def test_every_class_has_a_colour_that_is_no_grey() -> None:
    colours = np.array(class_palette()).reshape(256, 3)
    assert len({tuple(colour) for colour in colours[1:255].tolist()}) == 254
    assert (np.ptp(colours[1:255], axis=1) > 40).all()
    assert not colours[[0, 255]].any()


def test_the_first_colours_are_fixed() -> None:
    """A class keeps its colour from run to run: pictures of today and of last year compare."""
    assert class_palette()[3:24] == [213, 94, 0, 0, 114, 178, 240, 228, 66, 204, 121, 167,
                                     0, 158, 115, 230, 159, 0, 86, 180, 233]
    assert class_palette()[24:33] == [0, 255, 232, 162, 23, 0, 0, 0, 255]
