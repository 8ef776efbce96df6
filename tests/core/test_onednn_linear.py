"""Linear maps in every way that they are computed: the same values, whatever the CPU."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vpltool.core import blocks
from vpltool.core.blocks import Linear, linear


@pytest.fixture(params=[False, True])
def convolved(request: pytest.FixtureRequest) -> bool:
    """As on another CPU, and as on AMD's; there the convolution must be what is called."""
    with mock.patch.object(blocks, "convolves_faster", return_value=request.param):
        yield request.param


@pytest.mark.parametrize("shape", [(5, 24), (2, 7, 24), (1, 1, 24), (2, 3, 4, 24), (0, 24)])
@pytest.mark.parametrize("biased", [True, False])
def test_it_is_torchs(shape: tuple[int, ...], biased: bool, convolved: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(16, 24)
    bias = torch.randn(16) if biased else None
    with torch.no_grad(), mock.patch.object(F, "conv2d", wraps=F.conv2d) as convolution:
        found = linear(x, weight, bias)
    assert convolution.called == (convolved and x.numel() > 0)
    wanted = F.linear(x, weight, bias)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_rows_that_lie_apart(convolved: bool) -> None:
    """Parts of other tensors: tokens without the class token, and some rows of a weight."""
    torch.manual_seed(0)
    x, weight = torch.randn(2, 9, 24)[:, 1:], torch.randn(32, 48)[16:, ::2]
    with torch.no_grad():
        found = linear(x, weight)
    torch.testing.assert_close(found, F.linear(x, weight), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_formats_are_left_to_torch(dtype: torch.dtype, convolved: bool) -> None:
    x, weight = torch.randn(5, 24).to(dtype), torch.randn(16, 24).to(dtype)
    with torch.no_grad(), mock.patch.object(F, "conv2d", wraps=F.conv2d) as convolution:
        assert torch.equal(linear(x, weight), F.linear(x, weight))
    assert not convolution.called


def test_gradients_are_torchs(convolved: bool) -> None:
    torch.manual_seed(0)
    own = Linear(24, 16)
    like = nn.Linear(24, 16)
    like.load_state_dict(own.state_dict())
    x = torch.randn(3, 5, 24)
    with mock.patch.object(F, "conv2d", wraps=F.conv2d) as convolution:
        for layer in (own, like):
            (layer(x) ** 2).sum().backward()
    assert not convolution.called
    assert torch.equal(own.weight.grad, like.weight.grad)
    assert torch.equal(own.bias.grad, like.bias.grad)


def test_a_graph_has_linear_maps(convolved: bool) -> None:
    """What is exported runs on other machines."""
    with torch.no_grad():
        program = torch.export.export(Linear(24, 16).eval(), (torch.randn(3, 5, 24),))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert called == {"aten.linear.default"}
