"""The claims about Weight Normalization: what their bands refuse, and that they compare what they say."""

import torch
from torch import nn

from normtutor.lab import digits
from normtutor.lab.claims import claims
from normtutor.lab.claims.weight_norm import network, pre_activation_deviations, without_normalization
from normtutor.layers import WeightNormLinear

ALL = claims()


def test_the_band_of_the_initialization() -> None:
    def deviations(seen: float, unseen: float) -> dict:
        return {"initialized_from": [[1.0, seen]], "test_images": [[1.0, unseen]]}

    holds = ALL["weight_norm.data_dependent_init"].holds
    assert holds(deviations(1.0005, 1.1))
    assert not holds(deviations(0.99, 1.0))
    assert not holds(deviations(1.0, 1.3))
    assert not holds(deviations(1.0, 0.7))


def test_the_band_of_the_learning_rates() -> None:
    def accuracies(*values: float) -> dict:
        return {"accuracy": dict(zip(("0.001", "0.01", "0.1", "1.0"), ([v] for v in values), strict=True))}

    holds = ALL["weight_norm.high_learning_rates"].holds
    assert holds(accuracies(0.1, 0.81, 0.9, 0.81))
    assert holds(accuracies(0.9, 0.9, 0.9, 0.1))  # the range counts, not where it lies
    assert not holds(accuracies(0.1, 0.95, 0.95, 0.7))
    assert not holds(accuracies(0.1, 0.1, 0.1, 0.1))


def test_the_band_of_the_convergence() -> None:
    def steps(normalized: int, same: int, plain: int = 301) -> dict:
        kinds = {"normalized": normalized, "same start": same, "plain": plain}
        return {"steps": 300, "steps_to_90_percent": {kind: {"0.1": [n]} for kind, n in kinds.items()}}

    holds = ALL["weight_norm.convergence"].holds
    assert holds(steps(60, 80))
    assert not holds(steps(70, 80))  # faster, but not by a quarter
    assert not holds(steps(301, 301))  # neither ever arrives


def test_the_plain_network_starts_as_the_same_function() -> None:
    images = digits().test_images
    normalized = network("weight", seed=1)
    plain = without_normalization(normalized)
    assert not [module for module in plain if isinstance(module, WeightNormLinear)]
    assert sum(type(module) is nn.Linear for module in plain) == 9
    x = images.flatten(1)
    torch.testing.assert_close(plain(x), normalized(x), atol=1e-4, rtol=1e-4)
    before = [p.clone() for p in normalized.parameters()]
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, normalized.parameters(), strict=True))


def test_deviations_are_taken_before_the_activation() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 10))
    with torch.no_grad():
        model[1].weight.copy_(-torch.eye(64))  # after a ReLU nothing would be left of it
    images = digits().test_images
    (found,) = pre_activation_deviations(model, images)
    torch.testing.assert_close(found, images.flatten(1).std(0, correction=0).mean().item())
