"""normtutor: neural-network normalization, derived, built, proved, timed and graded.

The parts, each imported where it is used: :mod:`normtutor.functional`, :mod:`normtutor.layers`,
:mod:`normtutor.catalog`, :mod:`normtutor.networks`, :mod:`normtutor.lab`, :mod:`normtutor.exercises`,
and, where Triton is installed to good use, :mod:`normtutor.fused`.
"""

__version__ = "0.1.0"
