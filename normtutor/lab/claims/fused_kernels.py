"""The chapter on fused kernels tests no published claim: those of its literature are times on a GPU."""

from normtutor.lab.claims import Claim

CLAIMS: tuple[Claim, ...] = ()
