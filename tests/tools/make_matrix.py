"""The README's table of platforms, from the output of .ci/run: the lines that begin with RAN.

.ci/run | tee gate.log; python tests/make_matrix.py gate.log
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def table(output):
    rows = re.findall(r"^RAN \| (.*) \| (.*)$", output, re.M)
    if not rows or "CI: all passed" not in output:
        raise SystemExit("that is not the output of a run that passed")
    return "\n".join(["| | what ran |", "|---|---|", *(f"| {where} | {what} |" for where, what in rows)])


if __name__ == "__main__":
    text = README.read_text()
    new = f"<!-- matrix -->\n{table(Path(sys.argv[1]).read_text())}\n<!-- end of matrix -->"
    README.write_text(re.sub(r"<!-- matrix -->.*<!-- end of matrix -->", lambda _: new, text, flags=re.S))
