"""Triton kernels behind :mod:`normtutor.fused`: the extra ``normtutor[fused]``, for CUDA GPUs.

Nothing here is imported unless it is asked for. ``rows`` holds the kernels in which one program owns whole
index sets, ``blocks`` those for sets that many programs share, ``plan`` chooses tiles, ``ops`` launches the
kernels as operators of torch with their gradients.
"""
