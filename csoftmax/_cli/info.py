"""``python -m csoftmax info``: what is installed and what it found on this machine."""

import json

from .._runtime.config import show_config


def run(options):
    if options.json:
        print(json.dumps(show_config("dicts"), indent=2))
    else:
        show_config()
    return 0
