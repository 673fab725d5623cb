"""The three questions (dataset, epochs, train or load), then the audit: ``cd src && python main.py``.

The run folder goes to ``outputs/`` in the repository; data is looked for in ``data/`` and models in ``models/`` there.
"""

import sys
from pathlib import Path


def main() -> int:
    """Ask and audit; returns the exit code."""
    root = Path(__file__).resolve().parent.parent
    try:
        from memberscope.prompts import interact
    except ModuleNotFoundError as error:
        print(
            f"{error.name} is not installed: run `make install` in {root}, then `. .venv/bin/activate`.",
            file=sys.stderr,
        )
        return 3
    return interact(root)


if __name__ == "__main__":
    sys.exit(main())
