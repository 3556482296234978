"""Ask every address outside that the built site links to whether it is still there: `make links`.

No part of the tests: other people's servers are not ours to prove.
"""

import re
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from serve import HTML

AGENT = {"User-Agent": "Mozilla/5.0 (link check)"}


def outside() -> dict[str, set[str]]:
    """Each address outside, without its fragment, and the pages that link to it."""
    found: dict[str, set[str]] = defaultdict(set)
    for page in sorted(HTML.rglob("*.html")):
        for address in re.findall(r'<a\b[^>]*\bhref="(https?://[^"]+)"', page.read_text("utf8")):
            found[unescape(address).split("#")[0]].add(page.relative_to(HTML).as_posix())
    return found


def fault(address: str) -> str:
    """What is wrong with the address: '' if it answers. Some servers refuse HEAD, and some all robots."""
    problem = ""
    for method in ("HEAD", "GET"):
        try:
            with urlopen(Request(address, method=method, headers=AGENT), timeout=20):
                return ""
        except HTTPError as error:
            if error.code in (403, 429):
                return ""
            problem = f"status {error.code}"
        except (URLError, TimeoutError, ValueError) as error:
            problem = str(error)
    return problem


def main() -> int:
    links = outside()
    if not links:
        sys.exit("no link to ask after: run `make book` first")
    with ThreadPoolExecutor(8) as pool:
        faults = dict(zip(links, pool.map(fault, links), strict=True))
    for address, problem in faults.items():
        if problem:
            print(f"{address}: {problem}; linked from {', '.join(sorted(links[address]))}")
    broken = sum(map(bool, faults.values()))
    print(f"{len(links)} addresses, {broken} without an answer")
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main())
