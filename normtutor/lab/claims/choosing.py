"""The claims that the chapter tests."""

from normtutor.lab.claims import Claim

CLAIMS: tuple[Claim, ...] = ()
