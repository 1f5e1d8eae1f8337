"""The C ABI as text: exported symbols with their versions, prototypes, sizes and offsets of structures, enumerators.

    python tests/make_abi.py > tests/abi.txt

A line that goes or changes breaks programs that are compiled already: CSM_ABI_MAJOR and the SONAME must change with it.
A new line needs a new CSM_ABI_MINOR.
"""

import re
import subprocess
import tempfile
from pathlib import Path

import csoftmax


def output(*command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def symbols():
    names = output("nm", "-D", "--defined-only", csoftmax.get_library()).split("\n")
    found = [line.split()[-1] for line in names if "@@CSOFTMAX_" in line]
    return [f"symbol {name}" for name in sorted(found) if not name.endswith("_PRIVATE")]


def fields(body):
    """Names of the members of a structure."""
    names = []
    for declaration in body.split(";"):
        function = re.search(r"\(\s*\*\s*(\w+)\s*\)", declaration)
        if function:
            names.append(function[1])
        elif declaration.strip():
            names += [re.search(r"(\w+)\s*(?:\[[^]]*\])?\s*$", part)[1] for part in declaration.split(",")]
    return names


def functions(text):
    """Prototypes of the preprocessed header, each on a line."""
    found = re.findall(r"^((?:csm_status|size_t|int|const char \*) ?csm_\w+\([^;{]*\));", text, re.M)
    return sorted("function " + re.sub(r"\s+", " ", one) for one in found)


def layout():
    include = f"-I{csoftmax.get_include()}"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "abi.c"
        source.write_text("#include <csoftmax_api.h>\n")
        text = re.sub(r"^#.*$", "", output("cc", "-E", include, source), flags=re.M)
        lines = ["#include <stdio.h>", "#include <csoftmax_api.h>", "int main(void) {"]
        for name, body in re.findall(r"typedef struct (csm_\w+) \{(.*?)\} \1;", text, re.S):
            lines.append(f'printf("struct {name} %zu\\n", sizeof({name}));')
            lines += [f'printf("{name}.{f} %zu\\n", offsetof({name}, {f}));' for f in fields(body)]
        for _, body in re.findall(r"typedef enum (csm_\w+) \{(.*?)\}", text, re.S):
            lines += [f'printf("enum {e} %d\\n", (int){e});' for e in re.findall(r"\bCSM_\w+", body)]
        lines += ['printf("abi %d.%d\\n", CSM_ABI_MAJOR, CSM_ABI_MINOR);', "}"]
        source.write_text("\n".join(lines))
        output("cc", include, source, "-o", Path(folder) / "abi")
        return output(Path(folder) / "abi").splitlines() + functions(text)


def abi():
    return [*layout(), *symbols()]


if __name__ == "__main__":
    print("\n".join(abi()))
