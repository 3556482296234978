"""Make book/static/math.woff2: of Latin Modern Math, only the signs that formulas.py can write.

    pip install brotli; python book/tools/math_font.py latinmodern-math.otf

Run by hand when formulas.py learns new signs; the font is in Debian's package fonts-lmodern and on the
pages of GUST, whose licence (math-LICENSE.txt) lets it be changed under another name.
"""

import sys
import unicodedata
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

import formulas

FONT = Path(__file__).parents[1] / "static" / "math.woff2"
NAME = "Course Math"


def signs() -> set[str]:
    """Every character of a formula, and the slanted forms that a browser puts in place of letters."""
    tables = (formulas.LETTERS, formulas.UPRIGHT, formulas.FENCES, formulas.RELATIONS, formulas.BINARY)
    found = {sign for table in (*tables, formulas.LARGE, formulas.ACCENTS) for sign in table.values()}
    found |= {chr(code) for code in range(0x20, 0x7F)} | set("√−∗′⏞⏟\u00a0") | set(formulas.EARLIER.values())
    slanted = [*range(0x1D434, 0x1D468), 0x210E, *range(0x1D6E2, 0x1D71C)]  # italic Latin and Greek
    bold = [*range(0x1D400, 0x1D434), *range(0x1D7CE, 0x1D7D8)]
    capitals = [*range(0x1D538, 0x1D552), *range(0x1D49C, 0x1D4B6)]
    return found | {
        chr(code) for code in slanted + bold + capitals if unicodedata.category(chr(code)) != "Cn"
    }


def main(source: str) -> None:
    font = TTFont(source)
    # Without the drawings for exponents ("ssty"), which would double the file for a hardly visible gain.
    options = subset.Options(flavor="woff2", layout_features=[], hinting=False)
    small = subset.Subsetter(options)
    small.populate(text="".join(signs()))
    small.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 3, 4, 6, 16):
            record.string = NAME.replace(" ", "") if record.nameID == 6 else NAME
    # Chromium lowers a subscript by the depth of a single letter too, and lifts an exponent by the height
    # of a bracket, which TeX does not: with these two, μ_i and x_i, (x)² and x² stand on the same lines.
    constants = font["MATH"].table.MathConstants
    constants.SubscriptBaselineDropMin.Value = 0
    constants.SuperscriptBaselineDropMax.Value = 350
    font["CFF "].cff.fontNames = [NAME.replace(" ", "")]
    subset.save_font(font, FONT, options)
    print(f"{FONT}: {FONT.stat().st_size} bytes")


if __name__ == "__main__":
    main(sys.argv[1])
