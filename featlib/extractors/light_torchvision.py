"""torchvision, imported without torch's compiler; every module here takes torchvision from this one.

torchvision.ops.roi_align takes one function from torch's compiler when it is imported, and with it loads the compiler
and sympy: 4.5 of 8 CPU seconds in each process that holds a network (torch 2.15, torchvision 0.29), on a short job
more than the work. Here that function is a stand-in that loads the compiler when it is first called, which only the
detectors do. Goes when torchvision imports it lazily itself.
"""

import sys
from importlib import import_module
from types import ModuleType


def _is_compile_supported(device_type: str) -> bool:
    return bool(import_module("torch._dynamo.utils").is_compile_supported(device_type))


def _import_torchvision() -> None:
    """Imports torchvision while a stand-in for the compiler's module is in place; it is taken away afterwards."""
    import torch  # noqa: F401 - torch itself must not meet the stand-in

    if "torchvision" in sys.modules or "torch._dynamo" in sys.modules:
        return
    package, module = ModuleType("torch._dynamo"), ModuleType("torch._dynamo.utils")
    package.__path__ = []
    module.__dict__["is_compile_supported"] = _is_compile_supported
    stand_ins = {"torch._dynamo": package, "torch._dynamo.utils": module}
    sys.modules.update(stand_ins)
    try:
        import torchvision.models  # noqa: F401
    except ImportError:
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # a torchvision that takes more than that is imported as it is, by whoever asks
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


_import_torchvision()

import torchvision  # noqa: E402
from torchvision.models import feature_extraction  # noqa: E402

__all__ = ["feature_extraction", "torchvision"]
