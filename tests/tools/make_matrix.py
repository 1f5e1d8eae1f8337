"""Writes the table of docs/numbers/platforms.md from the output of .ci/run: the lines that begin with RAN.

.ci/run | tee gate.log; python tests/tools/make_matrix.py gate.log
"""

import re
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "numbers" / "platforms.md"


def table(output):
    rows = re.findall(r"^RAN \| (.*) \| (.*)$", output, re.M)
    if not rows or "CI: all passed" not in output:
        raise SystemExit("that is not the output of a run that passed")
    return "\n".join(["| | what ran |", "|---|---|", *(f"| {where} | {what} |" for where, what in rows)])


if __name__ == "__main__":
    text = PAGE.read_text()
    new = f"<!-- matrix -->\n{table(Path(sys.argv[1]).read_text())}\n<!-- end of matrix -->"
    PAGE.write_text(re.sub(r"<!-- matrix -->.*<!-- end of matrix -->", lambda _: new, text, flags=re.S))
