"""Installs the project, and what it misses, beside what is installed; replaces nothing.

    python experiments/colab/install.py

Colab and Kaggle come with the JAX that their GPU's plugin fits. Another JAX would leave the plugin
out and compute on the CPU.
"""

import argparse
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]


def main() -> None:
    """Installs; pip says what it cannot do."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    installed = {(d.name, d.version) for d in importlib.metadata.distributions()}
    kept = [f'{n}=={v}' for n, v in installed if n and re.fullmatch(r'\d[\w.+!-]*', v or '')]
    with tempfile.TemporaryDirectory() as folder:
        constraints = pathlib.Path(folder) / 'installed.txt'
        constraints.write_text('\n'.join(kept))
        pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--constraint', constraints]
        sys.exit(subprocess.run([*pip, '--editable', f'{ROOT}[train]'], check=False).returncode)


if __name__ == '__main__':
    main()
