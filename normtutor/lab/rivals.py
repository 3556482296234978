"""Fused layers of other projects, for the benchmark, where they are installed (CUDA only).

Liger-Kernel: https://github.com/linkedin/Liger-Kernel; quack: https://github.com/Dao-AILab/quack; apex:
https://github.com/NVIDIA/apex. Their defaults are kept but for ε, which is our layer's, and for Liger's
RMSNorm, which would otherwise write its gradient over the upstream one. What they compute is not judged here.
"""

import math
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor, nn

from normtutor.catalog import Shape, groups

Factory = Callable[[Shape], nn.Module]
NAMES = ("Liger-Kernel", "quack", "apex")
MODULES = {"Liger-Kernel": "liger_kernel.transformers", "quack": "quack", "apex": "apex.normalization"}


class Flat(nn.Module):
    """A layer of rows on an input whose rows have several axes."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x.flatten(1)).view_as(x)
        return y


def _row(module: str, name: str, **options: object) -> Factory:
    def layer(shape: Shape) -> nn.Module:
        made: nn.Module = getattr(import_module(module), name)(math.prod(shape[1:]), **options)
        return made if len(shape) == 2 else Flat(made)

    return layer


def _liger_group(shape: Shape) -> nn.Module:
    made: nn.Module = import_module("liger_kernel.transformers.group_norm").LigerGroupNorm(
        shape[1], groups(shape[1]), eps=1e-5
    )
    return made


# Technique → rival → layer. quack's LayerNorm is functions without autograd; apex's GroupNorm, an extension
# of its own in apex.contrib, is not tried; for BatchNorm on one device and InstanceNorm none has a layer.
LAYERS: dict[str, dict[str, Factory]] = {
    "layer": {
        "Liger-Kernel": _row("liger_kernel.transformers.layer_norm", "LigerLayerNorm", eps=1e-5),
        "apex": _row("apex.normalization", "MixedFusedLayerNorm", eps=1e-5),
    },
    "rms": {
        "Liger-Kernel": _row("liger_kernel.transformers.rms_norm", "LigerRMSNorm", eps=1e-6, in_place=False),
        "quack": _row("quack.rmsnorm", "QuackRMSNorm", eps=1e-6),
        "apex": _row("apex.normalization", "MixedFusedRMSNorm", eps=1e-6),
    },
    "group": {"Liger-Kernel": _liger_group},
}


def layers(technique: str) -> tuple[dict[str, Factory], dict[str, str]]:
    """The rivals' layers for a technique: those that can be built here, and why the others cannot.

    Returns:
        name → factory (shape → module), and name → reason.
    """
    offered = LAYERS.get(technique, {})
    absent = {name: _absent(MODULES[name]) if name in offered else "no such layer tried" for name in NAMES}
    absent = {name: why for name, why in absent.items() if why}
    return {name: offered[name] for name in offered if name not in absent}, absent


def _absent(module: str) -> str:
    try:
        import_module(module)
    except Exception as error:  # what an installed one raises, if what it needs is missing, is its own affair
        return f"cannot be imported: {error}" if find_spec(module.split(".")[0]) else "not installed"
    return ""
