"""Writes the pages of asv with links to the project and its commits.

    python asv_bench/publish.py

asv.conf.json cannot know where the repository lies; the remote "origin" of the checkout does.  Without one the pages
have no links.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


def find_address(remote):
    """The web address of a remote such as git@host:owner/name.git, or None if it is no address of a host."""
    found = re.fullmatch(
        r"(?:https?://|ssh://)?(?:[^@/]+@)?([\w.-]+\.\w+)(?::\d+/|[:/])(.+?)(?:\.git)?/?", remote.strip()
    )
    return f"https://{found[1]}/{found[2]}" if found else None


def make_config(text, address):
    """The text of asv.conf.json, with the addresses of the project and of a commit."""
    if address is None:
        return text
    links = json.dumps({"project_url": address, "show_commit_url": f"{address}/commit/"})
    return text.rstrip().removesuffix("}").rstrip() + ", " + links.removeprefix("{") + "\n"


def main():
    command = ["git", "-C", HERE, "remote", "get-url", "origin"]
    remote = subprocess.run(command, capture_output=True, text=True).stdout
    text = make_config((HERE / "asv.conf.json").read_text(), find_address(remote))
    # asv reads paths as relative to its configuration
    with tempfile.NamedTemporaryFile("w", dir=HERE, prefix=".published-", suffix=".json") as file:
        file.write(text)
        file.flush()
        return subprocess.run([sys.executable, "-m", "asv", "--config", file.name, "publish"], cwd=HERE).returncode


if __name__ == "__main__":
    sys.exit(main())
