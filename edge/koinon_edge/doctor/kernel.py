"""A first kernel on the graphics processor, and the same on the processor: do they say the same?

This is run by the interpreter of the owner's task, which may be as old as 3.8 and has nothing of Koinon's: it is a
program of its own, prints one line of JSON, and never fails. `torch.cuda.is_available()` alone says little: a torch
that was not built for this graphics processor says that there is one, and its first kernel fails.
"""

from __future__ import annotations

import importlib
import json
import platform


def check() -> dict[str, object]:
    said: dict[str, object] = {"python": platform.python_version(), "stage": "import"}
    try:
        torch = importlib.import_module("torch")
    except Exception as error:
        said["missing"] = isinstance(error, ImportError) and error.name == "torch"
        said["error"] = f"{type(error).__name__}: {error}"
        return said
    said.update(torch=torch.__version__, cuda=torch.version.cuda, stage="processor")
    try:
        torch.manual_seed(0)
        a, b = torch.randn(128, 96), torch.randn(96, 64)
        image, filters = torch.randn(2, 3, 16, 16), torch.randn(4, 3, 3, 3)
        convolve = torch.nn.functional.conv2d
        product, maps = a @ b, convolve(image, filters)
        if not torch.cuda.is_available():
            said["stage"] = "no gpu"
            return said
        said.update(stage="device", built_for=torch.cuda.get_arch_list())
        said["gpu"] = torch.cuda.get_device_name(0)
        said["capability"] = "sm_{}{}".format(*torch.cuda.get_device_capability(0))
        said["stage"] = "kernel"
        product_off = _off((a.cuda() @ b.cuda()).cpu(), product)
        said.update(
            off=max(product_off, _off(convolve(image.cuda(), filters.cuda()).cpu(), maps)), stage="done"
        )
    except Exception as error:
        said["error"] = f"{type(error).__name__}: {error}"
    return said


def _off(found: object, right: object) -> float:
    """The largest difference, as a share of the largest value; infinite where something is no number."""
    off = float((found - right).abs().max() / right.abs().max())  # type: ignore[operator, attr-defined]
    return off if off == off else float("inf")


if __name__ == "__main__":
    print(json.dumps(check()), flush=True)
