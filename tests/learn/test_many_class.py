"""ManyClassRegression: scikit-learn's checks, heads and samplers, weights, batches, added and frozen classes, files."""

import pytest
from sklearn.utils.estimator_checks import estimator_checks_generator

from csoftmax.linear_model import ManyClassRegression

SETTINGS = {
    "sampled": {},
    "full": {"head": "full"},
    "few": {"n_sampled": 2, "max_epochs": 20},
    "in_batch": {"sampler": "in_batch", "max_epochs": 20},
    "early_stopping": {"early_stopping": True},
}
PARTIAL_FIT = (
    "check_partial_fit_invalid_target",
    "check_estimators_partial_fit_n_features",
    "check_fit_score_takes_y",
    "check_n_features_in_after_fitting",
)
REFUSES = "partial_fit refuses early_stopping"
HELD_OUT = "a row is held out or not, whatever its weight"
DRAWN = "the labels of the minibatch are the sample, in which a row of weight 2 is one label"
EQUIVALENCE = (
    "check_sample_weight_equivalence",  # of scikit-learn 1.6
    "check_sample_weight_equivalence_on_dense_data",
    "check_sample_weight_equivalence_on_sparse_data",
)
EXPECTED_TO_FAIL = {
    "early_stopping": dict.fromkeys(PARTIAL_FIT, REFUSES) | dict.fromkeys(EQUIVALENCE, HELD_OUT),
    "in_batch": dict.fromkeys(EQUIVALENCE, DRAWN),
}


def make_sklearn_checks():
    for setting, options in SETTINGS.items():
        reasons = EXPECTED_TO_FAIL.get(setting, {})
        for estimator, check in estimator_checks_generator(ManyClassRegression(random_state=0, **options)):
            name = getattr(check, "func", check).__name__
            marks = [pytest.mark.xfail(reason=reasons[name], strict=True)] if name in reasons else []
            yield pytest.param(estimator, check, id=f"{setting}-{name}", marks=marks)


@pytest.mark.parametrize(("estimator", "check"), list(make_sklearn_checks()))
def test_sklearn(estimator, check):
    check(estimator)
