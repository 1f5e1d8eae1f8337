"""``csoftmax tag``: a tagger of sentences, a linear-chain CRF, trained and used on files with a token a line."""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._runtime.optional import UnusableError, load
from . import conll, outputs
from . import messages as say
from .arguments import parse_names_of_columns, parse_not_negative, parse_path, parse_positive, parse_seed
from .conll import Document
from .messages import Messages, count
from .predict import check_letters

if TYPE_CHECKING:
    from ..sequence import CRFTagger

SCHEMES = ("BIO", "IOB1", "BIOES", "BILOU", "BMES")
PARAMETERS = ("solver", "penalty_l2", "penalty_l1", "min_count", "hashing", "max_epochs")  # that are options
NO_LABEL = "_"  # of a sentence to which the scheme leaves no labels
# Options of one action, with what they are if they are not given.
ONLY: dict[str, dict[str, Any]] = {
    "fit": {
        "columns": None,
        "solver": None,
        "penalty_l2": None,
        "penalty_l1": None,
        "min_count": None,
        "hashing": None,
        "max_epochs": None,
        "early_stopping": False,
        "save_every": None,
        "seed": None,
    },
    "predict": {"output": None},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add = parser.add_argument
    add("action", choices=("fit", "predict", "evaluate"), help="train and save a model; write labels; measure")
    add(
        "data",
        type=parse_path,
        metavar="FILE",
        help="a token a line, blank lines between sentences; CoNLL-U; - is stdin",
    )
    add("--model", type=parse_path, required=True, metavar="PATH", help="file of the model, such as tagger.safetensors")
    add("--target", metavar="COLUMN", help="column of labels: its number, or a name of CoNLL-U; default: last, or UPOS")
    add("--scheme", choices=SCHEMES, help="labels are spans: fit allows no impossible ones, evaluate counts them")
    add("--json", action="store_true", help="print the result of fit or evaluate as one JSON object")
    add("-o", "--output", type=parse_path, help="of predict; default: standard output")
    fit = parser.add_argument_group("options of fit")
    add = fit.add_argument
    add("--columns", type=parse_names_of_columns, metavar="A,B", help="word, then others; default: all, or FORM")
    add("--solver", choices=("lbfgs", "adamw"), help="default: lbfgs")
    add("--penalty-l2", type=parse_not_negative, metavar="P", help="default: 1e-4")
    add("--penalty-l1", type=parse_not_negative, metavar="P", help="default: 0")
    add("--min-count", type=parse_positive, metavar="N", help="leave out attributes of fewer tokens; default: 1")
    add("--hashing", type=parse_positive, metavar="N", help="hash attributes to N columns, without a vocabulary")
    add("--max-epochs", type=parse_positive, metavar="N", help="default: 100")
    add("--early-stopping", action="store_true", help="hold out a tenth of the sentences, keep the best epoch")
    add("--save-every", type=parse_positive, metavar="N", help="also save the model after every N epochs")
    add("--seed", type=parse_seed, metavar="N", help="default: 0")
    say.add_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Train, predict or evaluate."""
    for action, options in ONLY.items():
        for name, unset in options.items():
            if arguments.action != action and getattr(arguments, name) != unset:
                raise UnusableError(
                    f"--{name.replace('_', '-')} belongs to tag {action}, not to tag {arguments.action}"
                )
    if arguments.action == "predict" and arguments.json:
        raise UnusableError("--json belongs to tag fit and tag evaluate; tag predict writes the file with its labels")
    for name, extra in (("scipy", "learn"), ("sklearn", "learn"), ("safetensors", "learn")):
        load(name, extra)
    messages = say.from_arguments(arguments)
    messages.release()
    return {"fit": fit, "predict": predict, "evaluate": evaluate}[arguments.action](arguments, messages)


def fit(arguments: argparse.Namespace, messages: Messages) -> int:
    """Train a tagger and save it."""
    outputs.check_model_output(arguments.model, {"file of tokens": arguments.data})
    document = conll.read(arguments.data, arguments.quiet)
    if document.n_columns < 2:
        raise UnusableError(f"{document.name} has one column; tag fit needs one for the word and one for its label")
    default = "UPOS" if document.is_conllu else str(document.n_columns)
    target = conll.find_column(arguments.target or default, document, "--target")
    if arguments.columns == []:
        raise UnusableError("--columns names no column; give numbers such as 1,2")
    if arguments.columns:
        columns = [conll.find_column(name, document, "--columns") for name in arguments.columns]
    else:
        columns = [1] if document.is_conllu else [i for i in range(document.n_columns) if i != target]
    if target in columns:
        raise UnusableError(f"column {target + 1} cannot be both --target and one of --columns")
    tagger = make_tagger(arguments)
    tagger.command_ = {  # type: ignore[attr-defined]
        "target": target,
        "columns": columns,
        "scheme": arguments.scheme,
        "is_conllu": document.is_conllu,
        "separator": document.separator,
    }
    X, y = make_data(document, columns), labels_of(document, target)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            tagger.fit(X, y)
        except ValueError as error:
            raise UnusableError(f"{document.name}: {in_words_of_command(error, document, target)}") from error
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        messages.say(text)
    save(tagger, arguments.model)
    figures: dict[str, Any] = {
        "model": str(arguments.model),
        "sentences": len(X),
        "tokens": sum(map(len, X)),
        "labels": len(tagger.classes_),
        "attributes": int(tagger.n_features_in_),
        "weights": int(np.count_nonzero(tagger.state_.data)),
        "epochs": int(tagger.n_iter_),
        "loss": float(tagger.history_["loss"][-1]),
        "accuracy": tagger.score(X, y),
    }
    if arguments.json:
        print(json.dumps(figures))
    elif not arguments.quiet:
        print(
            f"{count(figures['sentences'], 'sentence')}, {count(figures['tokens'], 'token')}, "
            f"{count(figures['labels'], 'label')}, {count(figures['attributes'], 'attribute')}"
        )
        print(
            f"{count(figures['epochs'], 'epoch')}, loss {figures['loss']:.6g}, accuracy {figures['accuracy']:.4f} on "
            "the same sentences"
        )
        print(f"model: {figures['model']}")
    return 0


def make_tagger(arguments: argparse.Namespace) -> CRFTagger:
    """Return an untrained tagger; what is not given is the tagger's default."""
    from .._learn.chain_parameters import check_parameters
    from ..sequence import CRFTagger

    callbacks: list[Any] = [] if arguments.quiet else ["progress"]
    if arguments.save_every:

        def save_regularly(tagger: CRFTagger, record: dict[str, Any]) -> None:
            if record["epoch"] % arguments.save_every == 0:
                save(tagger, arguments.model)

        callbacks.append(save_regularly)
    given = {name: getattr(arguments, name) for name in PARAMETERS}
    tagger = CRFTagger(
        constraints=arguments.scheme,
        early_stopping=arguments.early_stopping,
        random_state=arguments.seed or 0,
        callbacks=callbacks,
        **{name: value for name, value in given.items() if value is not None},
    )
    try:
        check_parameters(tagger)
    except (TypeError, ValueError) as error:  # of an option, not of the file
        raise UnusableError(with_names_of_options(str(error))) from error
    return tagger


def with_names_of_options(text: str) -> str:
    """A message of the tagger with options in place of parameters: "--solver adamw" for "solver='adamw'"."""
    for name in (*PARAMETERS, "early_stopping"):
        option = f"--{name.replace('_', '-')}"
        text = re.sub(rf"\b{name}='?([\w.+-]+)'?", rf"{option} \1", text)
        text = re.sub(rf"^{name}\b", option, text)
    return text


def in_words_of_command(error: ValueError, document: Document, target: int) -> str:
    """A message of the tagger on the labels of a file: lines and columns in place of y, options of parameters."""
    text = re.sub(
        r"^y\[(\d+)\]", lambda m: f"the sentence that begins in line {document.places[int(m[1])][0] + 1}", str(error)
    )
    text = re.sub(r"^(y|y_true) has", f"column {target + 1} has", text)
    text = re.sub(r"^y_pred has", "the model gives", text)
    text = re.sub(r"under constraints='(\w+)'", r"under --scheme \1", text, count=1)
    return with_names_of_options(text)


def save(tagger: CRFTagger, path: Path) -> None:
    """Save a tagger, or say why that is impossible."""
    try:
        tagger.save(path)
    except OSError as error:
        raise UnusableError(f"cannot write {str(path)!r}: {error.strerror or error}") from error


def make_data(document: Document, columns: list[int]) -> list[list[list[str]]]:
    """Attributes of all tokens."""
    return [conll.make_features(sentence, columns) for sentence in document.sentences]


def labels_of(document: Document, target: int) -> list[list[str]]:
    """Labels of all tokens."""
    return [[token[target] for token in sentence] for sentence in document.sentences]


def load_tagger(path: Path) -> tuple[CRFTagger, dict[str, Any]]:
    """Read a tagger, and what `fit` has noted about the columns."""
    from ..sequence import CRFTagger

    try:
        tagger = CRFTagger.load(path)
    except (OSError, ValueError, ImportError) as error:
        raise UnusableError(str(error)) from error
    noted = getattr(tagger, "command_", None)
    if not isinstance(noted, dict) or not {"target", "columns", "scheme", "is_conllu"} <= set(noted):
        raise UnusableError(f"{str(path)!r} was not written by csoftmax tag fit: it does not say which columns it uses")
    return tagger, noted


def read_for(noted: dict[str, Any], arguments: argparse.Namespace, *, needs_target: bool) -> tuple[Document, int]:
    """Read a file with the columns that the model uses, and find the column of labels; it may lack the last one."""
    document = conll.read(arguments.data, arguments.quiet, noted.get("separator"))
    if document.is_conllu != noted["is_conllu"]:
        given, known = (("", "was not"), ("not ", "was"))[noted["is_conllu"]]
        raise UnusableError(f"{document.name} is {given}CoNLL-U, and the model {known} trained on CoNLL-U")
    target = noted["target"]
    if arguments.target:
        target = conll.find_column(arguments.target, document, "--target")
    if target in noted["columns"]:
        raise UnusableError(f"--target {target + 1}: the model reads this column; labels would take the place of words")
    needed = max([*noted["columns"], target if needs_target else 0]) + 1
    if document.n_columns < needed:
        raise UnusableError(
            f"{document.name} has {count(document.n_columns, 'column')}; the model reads {needed}"
            + (", one of them with labels" if needs_target else "")
        )
    return document, target


def predict(arguments: argparse.Namespace, messages: Messages) -> int:
    """Write the file with predicted labels in the column of labels, which is added if it is not there."""
    tagger, noted = load_tagger(arguments.model)
    if str(arguments.output) == outputs.STREAM:
        arguments.output = None
    if arguments.output:
        outputs.check_output(arguments.output, {"model": arguments.model, "file of tokens": arguments.data})
    document, target = read_for(noted, arguments, needs_target=False)
    if target > document.n_columns:
        raise UnusableError(
            f"{document.name} has {count(document.n_columns, 'column')}; labels cannot go to column {target + 1}"
        )
    lines = list(document.lines)
    labels = tagger.predict(make_data(document, noted["columns"]))
    for sentence, places, found in zip(document.sentences, document.places, labels):
        if found[0] is None:
            line = places[0] + 1
            messages.say(f"line {line}: the scheme leaves no labels for a sentence like this; it gets {NO_LABEL}")
        for token, place, label in zip(sentence, places, found):
            columns = [*token[:target], NO_LABEL if label is None else str(label), *token[target + 1 :]]
            lines[place] = (document.separator or " ").join(columns)
    text = "".join(line + end for line, end in zip(lines, document.ends))
    if not arguments.output:
        check_letters([text])
        sys.stdout.write(text)
        return 0
    from .._learn.store import write_whole

    try:
        write_whole(arguments.output, lambda file: file.write(text.encode()))
    except OSError as error:
        raise UnusableError(f"cannot write {str(arguments.output)!r}: {error.strerror or error}") from error
    messages.detail(f"{count(len(labels), 'sentence')} written to {arguments.output}")
    return 0


def evaluate(arguments: argparse.Namespace, messages: Messages) -> int:
    """Measure accuracy and, with a scheme, precision, recall and F1 of spans."""
    from .._learn.spans import OUTSIDE, count_spans

    tagger, noted = load_tagger(arguments.model)
    document, target = read_for(noted, arguments, needs_target=True)
    y = labels_of(document, target)
    found = tagger.predict(make_data(document, noted["columns"]))
    predicted = [[OUTSIDE if label is None else label for label in labels] for labels in found]
    pairs = [(a, b) for sentence in zip(y, predicted) for a, b in zip(*sentence)]
    result: dict[str, Any] = {
        "sentences": len(y),
        "tokens": len(pairs),
        "accuracy": sum(a == b for a, b in pairs) / len(pairs),
        "sentence_accuracy": sum(a == b for a, b in zip(y, predicted)) / len(y),
    }
    scheme = arguments.scheme or noted["scheme"]
    if scheme:
        try:
            counts = count_spans(y, predicted, scheme)
        except ValueError as error:
            raise UnusableError(f"{document.name}: {in_words_of_command(error, document, target)}") from error
        result["scheme"] = scheme
        for name, kind in [("all", None), *((kind, kind) for kind in counts.types())]:
            precision, recall = counts.precision_recall(kind)
            true = counts.true.total() if kind is None else counts.true[kind]
            figures = {"precision": precision, "recall": recall, "f1": counts.f1(kind), "spans": true}
            result.setdefault("spans", {})[name] = figures
    if arguments.json:
        print(json.dumps(result))
        return 0
    print(
        f"{count(result['sentences'], 'sentence')}, {count(result['tokens'], 'token')}: accuracy "
        f"{result['accuracy']:.4f}, whole sentences {result['sentence_accuracy']:.4f}"
    )
    width = max([len(name) for name in result.get("spans", ())] + [5])
    if scheme:
        print(f"{'spans':{width}}  precision  recall      F1  number")
    for name, f in result.get("spans", {}).items():
        print(f"{name:{width}}  {f['precision']:9.4f}  {f['recall']:6.4f}  {f['f1']:6.4f}  {f['spans']:6d}")
    return 0
