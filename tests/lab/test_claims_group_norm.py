"""The bands of the chapter's claims: outcomes near the edge that they must refuse."""

from normtutor.lab import claims

ALL = claims.claims()


def test_the_level_line() -> None:
    def measured(large: float, small: float, batch: float) -> dict:
        return {"error": {"32": [large], "2": [small]}, "batch": {"32": [0.03], "2": [batch]}}

    holds = ALL["group_norm.statistics_batch"].holds
    assert holds(measured(0.05, 0.06, 0.3))
    assert not holds(measured(0.02, 0.06, 0.3))  # rises with fewer samples
    assert not holds(measured(0.06, 0.02, 0.3))  # depends on n the other way
    assert not holds(measured(0.4, 0.4, 0.9))  # level, but untrained
    assert not holds(measured(0.05, 0.05, 0.1))  # then nothing would be gained


def test_the_rise_in_convolutions() -> None:
    def measured(large: float, small: float) -> dict:
        return {"error": {"32": [large], "2": [small]}}

    holds = ALL["group_norm.convolutions"].holds
    assert holds(measured(0.1, 0.3))
    assert not holds(measured(0.1, 0.15))
    assert not holds(measured(0.6, 0.9))  # an untrained network


def test_the_lift_is_between_the_best_learning_rates() -> None:
    def measured(raw: list, standardized: list) -> dict:
        arms = {"raw": raw, "standardized": standardized}
        return {"error": {arm: {"0.1": [a], "0.2": [b]} for arm, (a, b) in arms.items()}}

    holds = ALL["group_norm.weight_standardization"].holds
    assert holds(measured([0.06, 0.5], [0.04, 0.04]))
    assert not holds(measured([0.9, 0.04], [0.04, 0.03]))  # each at the rate that suits it
    assert not holds(measured([0.9, 0.9], [0.5, 0.5]))  # better, but untrained
