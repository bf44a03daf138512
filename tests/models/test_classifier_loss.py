"""Label smoothing and class weights: computed step by step, fastai's and torch's, and on one rank and two."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import TINY, succeed
from fastai.losses import LabelSmoothingCrossEntropy
from safetensors.torch import load_file

from ulmfit_dist.checkpointing.compatibility import differences
from ulmfit_dist.config.loading import load_config, to_dict
from ulmfit_dist.config.schema import ClassifierConfig, Config
from ulmfit_dist.errors import UserError
from ulmfit_dist.models.classifier_loss import ClassifierLoss, balanced_weights, build_loss

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.1, 0.2, 0.3], [-1.0, 3.0, 0.0], [0.0, 0.0, 4.0]])
Y = torch.tensor([0, 2, 1, 2])


def test_class_weights_are_moved_to_the_logits_once_and_no_part_of_a_model():
    loss = ClassifierLoss(0.1, [1.0, 2.0, 0.5])
    logits_BC, y_B = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    before = pickle.loads(pickle.dumps(loss))
    expected = loss(logits_BC, y_B)
    moved = loss.weights_C
    assert moved is not None
    assert torch.equal(loss(logits_BC, y_B), expected)
    assert loss.weights_C is moved
    assert loss(logits_BC.double(), y_B).dtype == loss.weights_C.dtype == torch.float64
    assert dict(loss.state_dict()) == {}
    for copied in (before, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert torch.equal(copied(logits_BC, y_B), expected)


def test_smoothed_labels_are_fastais():
    expected = LabelSmoothingCrossEntropy(eps=0.1)(LOGITS, Y)
    torch.testing.assert_close(ClassifierLoss(label_smoothing=0.1)(LOGITS, Y), expected)


def test_a_weighted_mean_divides_by_the_weights():
    weights = [1.0, 2.0, 5.0]
    losses, weight_of_each = -LOGITS.log_softmax(1)[range(4), Y], torch.tensor(weights)[Y]
    expected = (losses * weight_of_each).sum() / weight_of_each.sum()
    torch.testing.assert_close(ClassifierLoss(class_weights=weights)(LOGITS, Y), expected)


def test_balanced_weights_make_classes_count_alike():
    labels = np.array([0] * 8 + [1] * 2)
    weights = build_loss(ClassifierConfig(class_weights="balanced"), labels, ["a", "b"]).class_weights
    assert weights == pytest.approx([10 / (2 * 8), 10 / (2 * 2)])
    assert balanced_weights(np.array([3, 0, 3])) == [1, 1, 1]


def test_weights_that_do_not_fit_the_classes_are_refused():
    with pytest.raises(
        UserError, match=r"has 2 entries, but there are 3 classes: give one weight per class \(x, y, z, in this order\)"
    ):
        build_loss(ClassifierConfig(class_weights=[1, 2]), np.arange(3), ["x", "y", "z"])


@pytest.mark.parametrize(
    ("override", "output"),
    [
        ("classifier.label_smoothing=1", "a share from 0 to below 1"),
        ("classifier.class_weights=even", "give balanced, null, or a list"),
        ("classifier.class_weights=[1,0]", "numbers above 0"),
    ],
)
def test_wrong_values_are_named(override: str, output: str):
    with pytest.raises(UserError, match=output):
        load_config(None, ["data.path=x", override])


def test_a_run_of_a_version_without_a_key_goes_on_with_its_default():
    then = to_dict(Config())
    then["classifier"] = {key: value for key, value in then["classifier"].items() if key != "label_smoothing"}
    now = Config()
    assert differences("classifier", now, then, "a", "a") == []
    now.classifier.label_smoothing = 0.1
    assert differences("classifier", now, then, "a", "a") == ["classifier.label_smoothing (now 0.1, then 0.0)"]


def test_one_rank_and_two_train_the_same_weights(corpus, recipe, tmp_path):
    words = [recipe, f"data.path={corpus}", *TINY, f"data.cache_dir={tmp_path}/cache", f"runs_dir={tmp_path}"]
    words += [
        "runtime.precision=fp64",
        "tracking.wandb_mode=disabled",
        "lm.phases=[{lr: 5e-2}]",
        "classifier.phases=[{lr: 5e-3}]",
    ]
    words += ["classifier.label_smoothing=0.1", "classifier.class_weights=[1,2,4]"]
    for name, processes in (("one", 1), ("two", 2)):
        succeed(["run", *words, f"name={name}"], processes)
    one, two = (load_file(tmp_path / name / "classifier" / "model.safetensors") for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-9)
