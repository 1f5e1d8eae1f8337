"""The commands of ``python -m csoftmax``.

Each is a module: `add_arguments` declares its arguments, `main` carries it out and returns the exit code.
"""
