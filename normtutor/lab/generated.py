"""The code that ``torch.compile`` generates: how many kernels, and how often each goes over the data."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Kernel:
    """One generated kernel: its name, which says what was fused into it, and its C++."""

    name: str
    source: str

    def reads(self, argument: str) -> int:
        """How many times the source reads an argument such as "in_ptr0": once in each loop over it."""
        return len(re.findall(rf"\b{argument}(?: \+|\[)", self.source))


def generated_kernels(function: Callable[..., object], *inputs: Tensor) -> list[Kernel]:
    """The kernels that torch's compiler makes for ``function(*inputs)``, forward only, on a CPU.

    The code is generated and neither built nor run, so no C++ compiler is needed; therefore it is scalar.
    A few seconds for the first call of a process. What was compiled before in this process compiles again
    at its next call.

    Raises:
        RuntimeError: this release of torch does not offer its generated code in the way that is used here.
    """
    from unittest import mock

    try:
        from torch._functorch import config as functorch
        from torch._inductor import config, cpu_vec_isa
        from torch._inductor.utils import get_code

        # It must not build programs to find out what the processor can, nor leave code that was never built
        # in a cache, for those who want it built.
        with (
            mock.patch.object(cpu_vec_isa, "valid_vec_isa_list", return_value=[]),
            config.patch({"fx_graph_cache": False, "fx_graph_remote_cache": False}),
            functorch.patch({"enable_autograd_cache": False}),
            torch.no_grad(),
        ):
            torch.compiler.reset()
            (code, *_) = get_code(torch.compile(function, dynamic=False, fullgraph=True), *inputs)
    except (ImportError, AttributeError) as error:
        raise RuntimeError(f"torch {torch.__version__} offers no generated code here: {error}") from error
    finally:
        torch.compiler.reset()
    found = re.findall(r"^(\w+) = async_compile\.cpp\w*\(.*?r'''(.*?)'''", code, re.MULTILINE | re.DOTALL)
    return [Kernel(name, source) for name, source in found]
