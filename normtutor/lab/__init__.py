"""The instruments: parity, timing, memory, data, figures, source display.

Everything a lesson needs is imported from here: ``from normtutor.lab import parity, bench, memory``. A
name is loaded when it is first used, so nothing is imported that is not needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normtutor.lab.comparison import Comparison, compare
    from normtutor.lab.data import digits, minibatches, photographs
    from normtutor.lab.evidence import recorded, recorded_style, recorded_timings
    from normtutor.lab.figures import (
        index_set,
        label_lines,
        line_chart,
        recorded_roofline,
        roofline,
        use_style,
    )
    from normtutor.lab.generated import generated_kernels
    from normtutor.lab.machine import provenance
    from normtutor.lab.memory_use import MemoryUse, memory, memory_table
    from normtutor.lab.parity_report import ParityReport, parity
    from normtutor.lab.source import show_source
    from normtutor.lab.timing import Timings, bench
    from normtutor.lab.traffic_count import Traffic, traffic
    from normtutor.lab.training import accuracy, one_thread, train
    from normtutor.lab.truth import standardization

# No module has the name of a function: importing one would put the module in the function's place.
_HOME = {
    "comparison": ("Comparison", "compare"),
    "data": ("digits", "minibatches", "photographs"),
    "evidence": ("recorded", "recorded_style", "recorded_timings"),
    "figures": ("index_set", "label_lines", "line_chart", "recorded_roofline", "roofline", "use_style"),
    "generated": ("generated_kernels",),
    "machine": ("provenance",),
    "memory_use": ("MemoryUse", "memory", "memory_table"),
    "parity_report": ("ParityReport", "parity"),
    "source": ("show_source",),
    "timing": ("Timings", "bench"),
    "traffic_count": ("Traffic", "traffic"),
    "training": ("accuracy", "one_thread", "train"),
    "truth": ("standardization",),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "Comparison",
    "MemoryUse",
    "ParityReport",
    "Timings",
    "Traffic",
    "accuracy",
    "bench",
    "compare",
    "digits",
    "generated_kernels",
    "index_set",
    "label_lines",
    "line_chart",
    "memory",
    "memory_table",
    "minibatches",
    "one_thread",
    "parity",
    "photographs",
    "provenance",
    "recorded",
    "recorded_roofline",
    "recorded_style",
    "recorded_timings",
    "roofline",
    "show_source",
    "standardization",
    "traffic",
    "train",
    "use_style",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
