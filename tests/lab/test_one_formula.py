"""The claims of the chapter One Formula: what their bands must refuse, and what their networks do."""

import pytest
import torch
from torch import nn

from normtutor.lab.claims import claims
from normtutor.lab.claims.one_formula import (
    Noisy,
    PreActivationBlock,
    hidden_and_rest,
    scaled_run,
    stream_variance,
)
from normtutor.networks import MLP

ALL = claims()


def test_equal_trajectories_need_a_run_that_learns() -> None:
    holds = ALL["one_formula.scale_invariance"].holds

    def run(difference: float, last: float) -> dict:
        return {"first_loss": [2.3], "last_loss": [last], "relative_difference": [difference]}

    assert holds(run(1e-9, 0.3))
    assert not holds(run(1e-5, 0.3))
    assert not holds(run(0.0, 2.2))  # two runs that stand still are equal too


def test_the_quarter_is_told_from_a_third_and_from_none() -> None:
    holds = ALL["one_formula.weight_norm_equilibrium"].holds
    assert holds({"slope": 0.25})
    assert not holds({"slope": 1 / 3})
    assert not holds({"slope": 0.0})


def test_linear_growth_is_told_from_exponential_and_from_none() -> None:
    holds = ALL["one_formula.signal_propagation"].holds

    def stream(normalized: list, last: float = 100.0) -> dict:
        return {"normalized": [normalized], "plain": [[[last]]]}

    saw_tooth = [[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]]
    assert holds(stream(saw_tooth))
    assert not holds(stream(saw_tooth, last=30.0))  # without normalization it did not explode
    assert not holds(stream([[1.0, 2.0, 4.0, 8.0]] * 2))
    assert not holds(stream([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]))  # no reset
    assert not holds(stream([[2.0, 2.0, 3.0, 4.0]] * 2))  # a step without growth


def test_the_noise_must_show_and_the_plain_network_must_fail() -> None:
    holds = ALL["one_formula.noise"].holds

    def runs(plain: float, normalized: float, noisy: float, shift: float = 0.2) -> dict:
        kinds = {"plain": (plain, 0.01), "normalized": (normalized, 0.02), "noisy": (noisy, shift)}
        return {"0.1": {kind: [{"accuracy": a, "shift": s}] for kind, (a, s) in kinds.items()}}

    assert holds(runs(0.1, 0.97, 0.95))
    assert not holds(runs(0.1, 0.97, 0.90))
    assert not holds(runs(0.9, 0.97, 0.95))
    assert not holds(runs(0.1, 0.97, 0.95, shift=0.03))  # a noise that moves nothing proves nothing


def test_only_hidden_layers_are_scaled() -> None:
    model = MLP([4, 3, 3, 2], "batch")
    hidden, rest = hidden_and_rest(model)
    assert [tuple(p.shape) for p in hidden] == [(3, 4), (3,), (3, 3), (3,)]
    assert {id(p) for p in hidden} | {id(p) for p in rest} == {id(p) for p in model.parameters()}
    assert len(hidden) + len(rest) == len(list(model.parameters()))
    assert any(p is model[-1].weight for p in rest)


def test_a_factor_of_two_is_exact_and_a_wrong_learning_rate_is_not() -> None:
    once = scaled_run("batch", 1, seed=0, steps=5)
    assert scaled_run("batch", 2, seed=0, steps=5) == pytest.approx(once, rel=1e-12)
    assert scaled_run("batch", 2, seed=0, steps=5, lr=0.2) != pytest.approx(once, rel=1e-3)


def test_a_transition_replaces_the_stream_and_an_ordinary_block_keeps_it() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4, 8, 8)
    ordinary = PreActivationBlock("batch", 4, 4, 8, transition=False)
    transition = PreActivationBlock("batch", 4, 8, 8, transition=True)
    assert transition(x).shape == (8, 8, 4, 4)
    with torch.no_grad():
        added = ordinary(x) - x
        torch.testing.assert_close(ordinary(100 * x) - 100 * x, added, atol=1e-2, rtol=0)  # rounding of 100 x
        torch.testing.assert_close(transition(100 * x), transition(x), atol=1e-3, rtol=0)


def test_the_stream_has_three_stages_and_a_seed() -> None:
    stages = stream_variance("batch", seed=0, blocks=2, width=4)
    assert [len(stage) for stage in stages] == [2, 2, 2]
    assert stages == stream_variance("batch", seed=0, blocks=2, width=4)
    assert stages != stream_variance("batch", seed=1, blocks=2, width=4)


def test_noise_is_new_at_every_step_and_silent_in_evaluation() -> None:
    torch.manual_seed(0)
    layer, x = Noisy(nn.Identity()), torch.randn(2000, 50)
    first, second = layer(x), layer(x)
    means = first.mean(0) - x.mean(0)
    assert 0.2 < means.abs().mean() < 0.3  # uniform in ±0.5
    assert (first.mean(0) - second.mean(0)).abs().mean() > 0.2
    gains = first.std(0) / x.std(0)
    assert 1.05 < gains.mean() < 1.2
    assert torch.equal(layer.eval()(x), x)
