"""Drawing: against shares computed by hand, at the borders, and what it refuses. See also test_generate."""

import numpy as np
import pytest
import torch

from charlm.config.fields import SampleConfig
from charlm.errors import CharlmError
from charlm.sampling.choose import BLOCK, Drawing

SHARES = np.array([0.1, 0.4, 0.2, 0.3])


def at(uniform: float, shares=SHARES, **options) -> int:
    """The symbol at one uniform number."""
    draw = Drawing(SampleConfig(**({"temperature": 1.0} | options)), 1, len(shares))
    draw._uniform, draw._next = np.array([[uniform]]), 0
    return int(draw(np.log(np.float32([shares])))[0])


@pytest.mark.parametrize(
    ("options", "order", "shares"),
    [
        ({}, [0, 1, 2, 3], [0.1, 0.4, 0.2, 0.3]),
        ({"temperature": 0.5}, [0, 1, 2, 3], np.array([1, 16, 4, 9]) / 30),
        ({"top_k": 3}, [1, 3, 2], np.array([4, 3, 2]) / 9),
        ({"top_p": 0.6}, [1, 3], np.array([4, 3]) / 7),
        ({"top_k": 3, "top_p": 0.44}, [1], [1]),  # of the three the likeliest has 4/9 = 0.444
        ({"top_k": 3, "top_p": 0.45}, [1, 3], np.array([4, 3]) / 7),
        ({"top_p": 1e-12}, [1], [1]),
        ({"temperature": 0.0}, [1], [1]),
    ],
)
def test_a_symbol_has_the_uniform_numbers_of_its_share(options, order, shares):
    borders = np.cumsum(shares)
    for symbol, low, high in zip(order, [0, *borders], borders, strict=False):
        for uniform in (low + 1e-6, (low + high) / 2, high - 1e-6):
            assert at(uniform, **options) == symbol


def test_the_ends_of_the_uniform_numbers():
    assert at(0.0, shares=np.array([1e-30, 0.5, 0.5, 1e-30])) in (0, 1)
    assert at(np.nextafter(1.0, 0)) == 3


def test_of_equally_likely_symbols_the_first_are_kept():
    equal = np.full(4, 0.25)
    assert {at(u, shares=equal, top_k=2) for u in np.linspace(0, 0.999, 50)} == {0, 1}
    assert at(0.7, shares=equal, temperature=0.0) == 0


@pytest.mark.parametrize("options", [{}, {"top_k": 2}, {"temperature": 0}])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused(bad, options):
    draw = Drawing(SampleConfig(**options), 2, 4)
    logits = np.zeros((2, 4), np.float32)
    draw(logits)
    logits[1, 2] = bad
    with pytest.raises(CharlmError, match="not finite"):
        draw(logits)


def test_numbers_go_on_from_block_to_block_and_are_torchs_of_the_seeds():
    draw = Drawing(SampleConfig(seed=-7, temperature=1.0), 3, 8)
    logits = np.zeros((3, 8), np.float32)
    ids = np.stack([draw(logits).copy() for _ in range(BLOCK + 5)], 1)  # [3, draws]
    for i, seed in enumerate((-7, -6, -5)):
        generator = torch.Generator().manual_seed(seed)
        numbers = [torch.rand(BLOCK, generator=generator, dtype=torch.float64) for _ in range(2)]
        assert ids[i].tolist() == (torch.cat(numbers)[: BLOCK + 5] * 8).long().tolist()
