"""Run what needs a GPU: ``python -m tools.gpu``, or ``make gpu``.

The tests marked ``cuda``, of the losses and of the models. Where PyTorch sees no CUDA device this
is said and the exit status is 2, so that nobody takes tests that were left out for tests that
passed.
"""

import subprocess
import sys

import torch

__all__ = ["main"]


def main() -> int:
    """Run the tests, or say why not; return the exit status."""
    if not torch.cuda.is_available():
        build = torch.version.cuda or "none: a build for the CPU"
        print(
            f"no CUDA device: PyTorch {torch.__version__} sees none (CUDA of this build: {build})",
            file=sys.stderr,
        )
        return 2
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}", flush=True)
    return subprocess.call([sys.executable, "-m", "pytest", "-m", "cuda", "-v", "tests"])


if __name__ == "__main__":
    sys.exit(main())
