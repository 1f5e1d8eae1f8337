"""The command `calibrate` on rows that are all classified correctly."""

import numpy as np
import pytest
from sklearn.metrics import log_loss

from csoftmax.__main__ import main
from csoftmax.linear_model import SoftmaxRegression

pytest.importorskip("safetensors", reason="the learn extra has it")
pytest.importorskip("pyarrow", reason="the cli extra has it; no wheel for CPython 3.15 yet")


def write(path, X, y):
    lines = [",".join([*map(repr, row), label]) for row, label in zip(X.tolist(), y.tolist())]
    path.write_text("\n".join(["a,b,label", *lines]) + "\n")


def test_separable_rows_are_named_and_do_no_harm(tmp_path, capsys):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    X = rng.normal(size=(400, 2)) + 3 * np.eye(2)[y]
    names = np.array(["no", "yes"])[y]
    model = SoftmaxRegression(penalty_l2=1e-2).fit(X[:100], names[:100])
    right = np.flatnonzero(model.predict(X[:300]) == names[:300])[100:130]
    model.save(tmp_path / "model.safetensors")
    write(tmp_path / "held_out.csv", X[right], names[right])
    arguments = [str(tmp_path / name) for name in ("model.safetensors", "held_out.csv")]
    assert main(["calibrate", *arguments, "--target", "label", "--output", str(tmp_path / "hot.safetensors")]) == 0
    captured = capsys.readouterr()
    notes = [line for line in captured.err.splitlines() if "held-out rows" in line]  # beside one about the columns
    assert len(notes) == 1
    assert notes[0].startswith("csoftmax calibrate: all held-out rows (30) are classified correctly")
    assert "the prior (prior=1) keeps the temperature at" in notes[0]
    assert captured.out.startswith("temperature 0.")
    calibrated = SoftmaxRegression.load(tmp_path / "hot.safetensors")
    before, after = (log_loss(names[300:], m.predict_proba(X[300:])) for m in (model, calibrated))
    assert after < 2 * before
    write(tmp_path / "held_out.csv", X[100:300], names[100:300])
    assert main(["calibrate", *arguments, "--target", "label", "--output", str(tmp_path / "hot.safetensors")]) == 0
    assert "held-out rows" not in capsys.readouterr().err
