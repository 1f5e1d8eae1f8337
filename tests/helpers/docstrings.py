"""Public objects of a module with their methods, and the examples in their docstrings."""

import doctest
import importlib
import inspect
import re

MODULES = (
    "",
    ".adversarial",
    ".samplers",
    ".geometric",
    ".heads",
    ".linear_model",
    ".calibration",
    ".choice",
    ".metrics",
    ".class_weight",
    ".sequence",
    ".distributed",
)


def public_objects(module):
    """Yield name and object of the functions and classes in `__all__` of csoftmax or one of its modules."""
    imported = importlib.import_module(f"csoftmax{module}")
    for name in imported.__all__:
        if inspect.isroutine(getattr(imported, name)) or inspect.isclass(getattr(imported, name)):
            yield name, getattr(imported, name)


def public_methods(cls):
    """Yield name and function of public methods and properties, those of private bases too; not scikit-learn's own."""
    for name in dir(cls):
        if name.startswith("_"):
            continue
        member = inspect.getattr_static(cls, name)
        if isinstance(member, (staticmethod, classmethod)):
            member = member.__func__
        if isinstance(member, property):
            member = member.fget
        if inspect.isfunction(member) and member.__module__.startswith("csoftmax"):
            yield name, inspect.unwrap(member)


def has_example(thing):
    return ">>> " in (inspect.getdoc(thing) or "")


def documented(doc, section="Parameters"):
    """The entries of a numpydoc section: name -> (what stands behind the colon, description)."""
    body = re.search(rf"^{section}\n-+\n(.*?)(?=^\w[\w ]*\n-{{3,}}$|\Z)", doc, re.M | re.S)
    found, names = {}, []
    for line in body[1].splitlines() if body else ():
        if line and not line.startswith(" "):
            left, _, kind = line.partition(" : ")
            names = [name.strip().lstrip("*") for name in left.split(",")]
            found |= dict.fromkeys(names, (kind, ""))
        elif line.strip():
            found |= {name: (found[name][0], f"{found[name][1]} {line.strip()}") for name in names}
    return found


def run_examples(module):
    """Run the examples of a module; doctest.testmod would leave out methods that are defined in private files."""
    runner, seen = doctest.DocTestRunner(), set()
    for name, thing in public_objects(module):
        members = public_methods(thing) if inspect.isclass(thing) else ()
        for label, member in [(name, thing), *((f"{name}.{method}", f) for method, f in members)]:
            if id(member) not in seen and has_example(member):
                seen.add(id(member))
                runner.run(doctest.DocTestParser().get_doctest(inspect.getdoc(member), {}, label, None, 0))
    return runner.summarize()
