"""Lighthouse on the built site, phone and desktop: `make lighthouse`. A report, no test: timing is noisy.

python book/tools/lighthouse.py [RUNS]     the median of so many runs, 3 by default
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from address import ROOT
from serve import HTML, find_browser, serve

LIGHTHOUSE = "lighthouse@12.8.2"
NODE = ROOT / "_build" / "node"
SCORES = ("performance", "accessibility", "best-practices", "seo")
AUDITS = ("largest-contentful-paint", "total-blocking-time", "cumulative-layout-shift")


def heaviest() -> str:
    """The chapter with the most markup."""
    return max((HTML / "notebooks").glob("*.html"), key=lambda page: page.stat().st_size).name


def measure(url: str, preset: str, chromium: str) -> dict[str, Any]:
    """One run of Lighthouse: its report."""
    command = [str(NODE / "node_modules/.bin/lighthouse"), url, "--quiet", "--output=json"]
    command += ["--chrome-flags=--headless=new --no-sandbox --disable-gpu --disable-quic"]
    command += [
        f"--only-categories={','.join(SCORES)}",
        *(["--preset=desktop"] if preset == "desktop" else []),
    ]
    done = subprocess.run(
        command, env=os.environ | {"CHROME_PATH": chromium}, capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def main(runs: int = 3) -> None:
    chromium = find_browser()
    if not chromium or not shutil.which("npm"):
        raise SystemExit("needs Node and Chromium: apt-get install nodejs npm chromium")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(NODE), LIGHTHOUSE]
    subprocess.run(install, check=True)
    server, address = serve()
    folder = ROOT / "_build" / "lighthouse"
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{'page':<28} {'':<8} perf  a11y  best   SEO |  LCP s  TBT ms    CLS |   KiB requests")
    for page in ("book/introduction.html", f"notebooks/{heaviest()}"):
        for preset in ("mobile", "desktop"):
            reports = [measure(f"{address}/{page}", preset, chromium) for _ in range(runs)]
            (folder / f"{Path(page).stem}-{preset}.json").write_text(json.dumps(reports[-1]))
            scores = [median(one["categories"][name]["score"] for one in reports) for name in SCORES]
            paint, block, shift = (
                median(one["audits"][name]["numericValue"] for one in reports) for name in AUDITS
            )
            requests = reports[-1]["audits"]["network-requests"]["details"]["items"]
            size = sum(one.get("transferSize", 0) for one in requests) / 1024
            print(
                f"{page:<28} {preset:<8} {'  '.join(f'{score:.2f}' for score in scores)} |"
                f" {paint / 1000:6.2f} {block:7.0f} {shift:6.3f} | {size:5.0f} {len(requests):8}"
            )
            for name, audit in reports[-1]["audits"].items():
                whole = [
                    one
                    for one in SCORES[1:]
                    if any(
                        ref["id"] == name and ref["weight"]
                        for ref in reports[-1]["categories"][one]["auditRefs"]
                    )
                ]
                if whole and audit["score"] not in (1, None):
                    print(f"    {whole[0]}: {name}: {audit['title']}")
    server.shutdown()
    print(f"The last report of each is in {folder.relative_to(ROOT)}.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
