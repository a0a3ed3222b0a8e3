import numpy as np
import pytest

from keras_plasticity import diagnostics


def test_the_share_of_eigenvalues_above_epsilon():
    values = [5.0, -0.02, 0.01, -0.01, 0.0, 0.0, 0.0, 0.0]
    assert diagnostics.hessian_rank(values) == 2 / 8
    assert diagnostics.hessian_rank(values, epsilon=0.0) == 4 / 8
    assert diagnostics.hessian_rank(values, epsilon=0.009) == 4 / 8
    assert diagnostics.hessian_rank(values, epsilon=5.0) == 0.0
    assert diagnostics.hessian_rank([0.0]) == 0.0
    assert diagnostics.hessian_rank([1.0]) == 1.0


def test_an_eigenvalue_may_stand_for_many():
    values, weights = [5.0, -0.02, 0.0], [0.1, 0.2, 0.7]
    rank = diagnostics.hessian_rank(values, weights)
    assert rank == pytest.approx(0.3)
    for scale in (1e-320, 1e-200, 1e300):
        scaled = [scale * weight for weight in weights]
        rank = diagnostics.hessian_rank(values, scaled)
        assert rank == pytest.approx(0.3, rel=1e-2)
    assert diagnostics.hessian_rank(values, [0.0, 0.0, 1.0]) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eigenvalues": []}, r"`eigenvalues` must be .* eigenvalues=\[\]"),
        ({"eigenvalues": [1.0, np.nan]}, "`eigenvalues` must be a list of fi"),
        ({"eigenvalues": np.eye(2)}, "`eigenvalues` must be a list"),
        ({"weights": [1.0]}, "2 eigenvalues, weights=.1.."),
        ({"weights": [1.0, -1.0]}, "not negative"),
        ({"weights": [0.0, 0.0]}, "not all of them 0"),
        ({"weights": [np.inf, 0.0]}, "`weights` must be a list of finite"),
        ({"epsilon": -1.0}, "epsilon=-1.0"),
        ({"epsilon": np.nan}, "epsilon=nan"),
    ],
)
def test_bad_eigenvalues(arguments, message):
    with pytest.raises(ValueError, match=message):
        diagnostics.hessian_rank(**{"eigenvalues": [1.0, 2.0], **arguments})
