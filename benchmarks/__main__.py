"""``python -m benchmarks`` measures everything there is, one module after the other."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Run each module that has a command of its own, in a process of its own."""
    names = [path.stem for path in sorted(HERE.glob("*.py"))]
    failed = []
    for name in names:
        if name in ("__init__", "__main__", "measure"):
            continue
        print(f"benchmarks.{name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=HERE.parent)
        if done.returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
