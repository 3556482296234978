"""Formulas become MathML when the book is built: a page needs no script to show them.

The part of LaTeX that the course uses, and no more: what is not known here is a warning, which fails
the build. Chromium, Firefox and Safari lay MathML out by themselves; course.css gives it its font.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LETTERS = {
    name: chr(code)
    for start, names in (
        (0x3B1, "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho"),
        (0x3C3, "sigma tau upsilon phi chi psi omega"),
        (0x391, "Alpha Beta Gamma Delta Epsilon Zeta Eta Theta Iota Kappa Lambda Mu Nu Xi Omicron Pi Rho"),
        (0x3A3, "Sigma Tau Upsilon Phi Chi Psi Omega"),
    )
    for code, name in enumerate(names.split(), start)
} | {
    "epsilon": "ϵ",
    "varepsilon": "ε",
    "phi": "ϕ",
    "varphi": "φ",
    "vartheta": "ϑ",
    "varsigma": "ς",
    "varrho": "ϱ",
}
UPRIGHT = {"infty": "∞", "ell": "ℓ", "top": "⊤", "bot": "⊥", "emptyset": "∅", "hbar": "ℏ", "%": "%", "#": "#"}
UPRIGHT |= {"partial": "∂", "nabla": "∇", "ldots": "…", "dots": "…", "cdots": "⋯", "vdots": "⋮", "ddots": "⋱"}
UPRIGHT |= {"&": "&", "_": "_", "$": "$", "prime": "′", "forall": "∀", "exists": "∃"}
FENCES = {"lbrace": "{", "rbrace": "}", "{": "{", "}": "}", "lVert": "‖", "rVert": "‖", "|": "‖", "Vert": "‖"}
FENCES |= {"lvert": "|", "rvert": "|", "vert": "|", "lfloor": "⌊", "rfloor": "⌋", "lceil": "⌈", "rceil": "⌉"}
FENCES |= {"langle": "⟨", "rangle": "⟩", "lbrack": "[", "rbrack": "]", "backslash": "\\"}
OPENING, CLOSING = set("([{⌊⌈⟨"), set(")]}⌋⌉⟩")
RELATIONS = {"approx": "≈", "propto": "∝", "in": "∈", "notin": "∉", "mid": "|", "leftarrow": "←", "gets": "←"}
RELATIONS |= {"rightarrow": "→", "to": "→", "mapsto": "↦", "longrightarrow": "⟶", "Rightarrow": "⇒"}
RELATIONS |= {"Longrightarrow": "⟹", "Leftrightarrow": "⇔", "iff": "⟺", "implies": "⟹", "le": "≤", "leq": "≤"}
RELATIONS |= {"ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "ll": "≪", "gg": "≫", "sim": "∼", "equiv": "≡"}
RELATIONS |= {
    "subset": "⊂",
    "subseteq": "⊆",
    "parallel": "∥",
    "perp": "⊥",
    "simeq": "≃",
    "leftrightarrow": "↔",
}
RELATIONS |= {
    "coloneqq": "≔",
    "longleftarrow": "⟵",
    "uparrow": "↑",
    "downarrow": "↓",
    "gtrsim": "≳",
    "lesssim": "≲",
}
BINARY = {
    "cdot": "⋅",
    "times": "×",
    "pm": "±",
    "mp": "∓",
    "odot": "⊙",
    "otimes": "⊗",
    "oplus": "⊕",
    "circ": "∘",
}
BINARY |= {"cap": "∩", "cup": "∪", "setminus": "∖", "ast": "∗", "star": "⋆", "div": "÷", "bullet": "∙"}
LARGE = {"sum": "∑", "prod": "∏", "int": "∫", "bigcup": "⋃", "bigcap": "⋂"}
NAMED = [
    "exp",
    "ln",
    "log",
    "tanh",
    "sin",
    "cos",
    "tan",
    "cosh",
    "sinh",
    "dim",
    "det",
    "deg",
    "arg",
    "Pr",
    "ker",
    "gcd",
]
UNDER = [
    "min",
    "max",
    "lim",
    "sup",
    "inf",
    "argmin",
    "argmax",
]  # in a display, what they range over stands below
SPACES = {",": "0.1667em", ":": "0.2222em", ">": "0.2222em", ";": "0.2778em", "!": "-0.1667em", " ": "0.25em"}
SPACES |= {"quad": "1em", "qquad": "2em", "~": "0.25em"}
ACCENTS = {
    "hat": "ˆ",
    "widehat": "^",
    "bar": "‾",
    "tilde": "˜",
    "widetilde": "~",
    "dot": "˙",
}
ACCENTS |= {"ddot": "¨", "vec": "→"}
VARIANTS = {"mathbf": 0x1D400, "boldsymbol": 0x1D400, "mathbb": 0x1D538, "mathcal": 0x1D49C}
# Script and double-struck capitals that Unicode had before the mathematical alphabets.
EARLIER = dict(zip("𝒝𝒠𝒡𝒣𝒤𝒧𝒨𝒭𝔺𝔿𝕅𝕇𝕈𝕉𝕑", "ℬℰℱℋℐℒℳℛℂℍℕℙℚℝℤ", strict=False))
SIZES = {"big": "1.2em", "Big": "1.8em", "bigg": "2.4em", "Bigg": "3em"}
STYLES = {"textstyle": "false", "displaystyle": "true"}
IGNORED = {"limits", "nolimits", "notag", "nonumber", "displaylimits"}
TABLES = {"aligned", "align", "align*", "split", "gathered", "gather", "gather*", "cases", "array"}
TABLES |= {"matrix", "pmatrix", "bmatrix", "vmatrix", "equation", "equation*"}
TOKEN = re.compile(r"\s+|\\[a-zA-Z]+|\\.|[0-9]+(?:[.,][0-9]+)*|.", re.DOTALL)


# What directly follows or precedes a formula; a long one may need the place where the line can break.
SHORT, AFTER, BEFORE = 60, r"^[^\s\w]{1,3}(\w{1,2}(?!\w))?", r"[^\s\w]{1,3}$"
LOGGER = logging.getLogger(__name__)


class FormulaError(ValueError):
    """What in a formula is not known here, or not closed."""


def element(tag: str, content: str, **attributes: str) -> str:
    written = "".join(f' {key}="{value}"' for key, value in attributes.items())
    return f"<{tag}{written}>{content}</{tag}>"


def operator(sign: str, **attributes: str) -> str:
    return element("mo", escape(sign, quote=False), **attributes)


def row(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else element("mrow", "".join(parts))


class Parser:
    """A formula's tokens, read from left to right; each method returns MathML."""

    def __init__(self, latex: str) -> None:
        self.tokens = [token for token in TOKEN.findall(latex) if not token.isspace()]
        self.latex, self.place = latex, 0

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise FormulaError(f"expected {expected or 'more'}, found {token or 'the end'}")
        self.place += 1
        return token

    def until(self, *ends: str, operand: bool = False) -> list[str]:
        """The parts up to one of ``ends``, which is not taken; ``operand`` tells that one stands before."""
        parts: list[str] = []
        while self.peek() not in ends:
            token = self.peek()
            if token[1:] in STYLES:  # a style holds to the end of its group
                self.take()
                return [*parts, element("mstyle", "".join(self.until(*ends)), displaystyle=STYLES[token[1:]])]
            part = self.scripted(operand)
            if part:
                parts.append(part)
                operand = not re.match("<mo[ >]", part) or 'form="postfix"' in part or part == BAR
        return parts

    def group(self) -> str:
        """One argument: what is between braces, or one token."""
        if self.peek() != "{":
            return self.atom()[0]
        self.take()
        parts = self.until("}")
        self.take("}")
        return row(parts)

    def raw(self) -> str:
        """An argument as it was written: the text of \\text, the name of \\begin."""
        if self.take() != "{":
            return self.tokens[self.place - 1]
        depth, parts = 1, []
        while depth:
            token = self.take()
            depth += {"{": 1, "}": -1}.get(token, 0)
            parts.append(token)
        return "".join(parts[:-1])

    def scripted(self, operand: bool) -> str:
        """An atom with what is written below and above it."""
        base, under = self.atom(operand)
        below = above = ""
        while self.peek() in ("_", "^", "'", r"\limits", r"\nolimits"):
            token = self.take()
            if token == "_":
                below = self.group()
            elif token == "^":
                above = self.group()
            elif token == "'":  # the sign is raised by itself
                base = element("mrow", base + operator("′", lspace="0", rspace="0"))
        if not (below or above):
            return base
        base = base or element("mrow", "")
        if "minsize" in base:  # as high as it is drawn, not as the plain sign
            base = element("mrow", base)
        names = ("munder", "mover", "munderover") if under else ("msub", "msup", "msubsup")
        return element(names[bool(above) + bool(below and above)], base + below + above)

    def fence(self) -> str:
        """The sign after \\left, \\right, \\big …"""
        token = self.take()
        if token in "()[]|/.":
            return "" if token == "." else token
        if token[1:] in FENCES:
            return FENCES[token[1:]]
        raise FormulaError(f"{token} is no fence")

    def atom(self, operand: bool = True) -> tuple[str, bool]:
        """One thing, and whether what is written below it stands under it."""
        token = self.take()
        name = token[1:]
        if token == "{":
            self.place -= 1
            return self.group(), False
        if token in ("}", "&", "\\\\", "_", "^", r"\right", r"\end"):
            raise FormulaError(f"unexpected {token}")
        if not token.startswith("\\"):
            return self.sign(token, operand), False
        if name in LETTERS:  # capitals stand upright, as in LaTeX
            return element(
                "mi", LETTERS[name], **({"mathvariant": "normal"} if name[0].isupper() else {})
            ), False
        if name in UPRIGHT:
            return element("mi", escape(UPRIGHT[name]), mathvariant="normal"), False
        if name in FENCES:
            return self.sign(FENCES[name], operand, name), False
        if name in RELATIONS:
            return operator(RELATIONS[name], stretchy="false", lspace="0.2778em", rspace="0.2778em"), False
        if name in BINARY:
            return self.binary(BINARY[name], operand), False
        if name in LARGE:
            return operator(LARGE[name], movablelimits="true"), True
        if name in NAMED or name in UNDER:
            before = "0.1667em" if operand else "0"
            after = "0" if self.peek() in ("(", "[") else "0.1667em"
            sign = operator(name, form="prefix", lspace=before, rspace=after, movablelimits="true")
            return sign, name in UNDER
        if name in SPACES:
            return element("mspace", "", width=SPACES[name]), False
        if name in SIZES or name[:-1] in SIZES:
            return self.sized(SIZES.get(name) or SIZES[name[:-1]]), False
        if name in VARIANTS:
            return element("mi", self.styled(VARIANTS[name])), False
        if name in ACCENTS:
            sign = operator(ACCENTS[name], stretchy="true" if name.startswith("wide") else "false")
            return element("mover", self.group() + sign, accent="true"), False
        if name in IGNORED:
            return "", False
        method = getattr(self, "read_" + name, None)
        if method is None:
            raise FormulaError(f"unknown command {token}")
        return method(), name in ("underbrace", "overbrace", "operatorname")

    def sign(self, token: str, operand: bool, name: str = "") -> str:
        if token[0].isdigit():
            return element("mn", token)
        if token.isalpha():
            return element("mi", token)
        if token in "+-*":
            return self.binary({"-": "−", "*": "∗"}.get(token, token), operand)
        if token in OPENING or name.startswith("l"):
            return operator(token, stretchy="false", form="prefix")
        if token in CLOSING or name.startswith("r"):
            return operator(token, stretchy="false", form="postfix")
        if token in "|‖":  # which side it stands on cannot be told: no space on either
            return BAR if token == "|" else BAR.replace("|", "‖")
        if token == "/":
            return operator("/", lspace="0", rspace="0")
        if token in "=<>:":
            return operator(token, lspace="0.2778em", rspace="0.2778em")
        if token in ",;":
            return operator(token, separator="true")
        if token in ".!":
            return operator(token, lspace="0", rspace="0")
        if token == "~":
            return element("mspace", "", width=SPACES[token])
        if ord(token) > 127:
            return element("mi", token, mathvariant="normal")
        raise FormulaError(f"unexpected {token}")

    @staticmethod
    def binary(sign: str, operand: bool) -> str:
        """Between two operands a binary sign has space around it; before the first one, a sign has none."""
        space = "0.2222em" if operand else "0"
        return operator(sign, form="infix" if operand else "prefix", lspace=space, rspace=space)

    def sized(self, size: str) -> str:
        sign = self.fence()
        form = "prefix" if sign in OPENING else "postfix" if sign in CLOSING else "infix"
        return operator(sign, form=form, stretchy="true", minsize=size, maxsize=size, lspace="0", rspace="0")

    def styled(self, start: int) -> str:
        letters = self.raw()
        if not re.fullmatch("[A-Za-z0-9]+" if start == 0x1D400 else "[A-Z1]+", letters):
            raise FormulaError(f"no such style for {letters}")
        digits = 0x1D7CE if start == 0x1D400 else 0x1D7D8
        styled = [
            chr(digits + int(one)) if one.isdigit() else chr(start + ord(one) - (65 if one < "a" else 71))
            for one in letters
        ]
        return "".join(EARLIER.get(one, one) for one in styled)

    def read_frac(self) -> str:
        return element("mfrac", self.group() + self.group())

    def read_tfrac(self) -> str:
        return element("mstyle", self.read_frac(), displaystyle="false")

    def read_dfrac(self) -> str:
        return element("mstyle", self.read_frac(), displaystyle="true")

    def read_overline(self) -> str:
        return element("mrow", self.group(), **{"class": "overline"})  # a border: few fonts can stretch a bar

    def read_binom(self) -> str:
        return (
            operator("(") + element("mfrac", self.group() + self.group(), linethickness="0") + operator(")")
        )

    def read_sqrt(self) -> str:
        if self.peek() != "[":
            return element("msqrt", self.group())
        self.take()
        degree = row(self.until("]"))
        self.take("]")
        return element("mroot", self.group() + degree)

    def read_underbrace(self) -> str:
        return element("munder", self.group() + operator("⏟", stretchy="true"))

    def read_overbrace(self) -> str:
        return element("mover", self.group() + operator("⏞", stretchy="true"))

    def read_underset(self) -> str:
        below = self.group()
        return element("munder", self.group() + below)

    def read_overset(self) -> str:
        above = self.group()
        return element("mover", self.group() + above)

    read_stackrel = read_overset

    def read_left(self) -> str:
        left, parts = self.fence(), self.until(r"\right")
        self.take()
        return self.fenced(left, "".join(parts), self.fence())

    @staticmethod
    def fenced(left: str, inside: str, right: str) -> str:
        opening = operator(left, form="prefix", stretchy="true") if left else ""
        closing = operator(right, form="postfix", stretchy="true") if right else ""
        return element("mrow", opening + inside + closing)

    def read_text(self) -> str:
        # The tokens carry no blanks: read the text where it stands in the formula.
        braces = [found.end() for found in TOKEN.finditer(self.latex) if not found[0].isspace()]
        start = braces[self.place]
        self.raw()
        words = self.latex[start : braces[self.place - 1] - 1].replace("\\", "")
        return element("mtext", escape(words, quote=False).replace(" ", "\u00a0"))

    read_textrm = read_mbox = read_textit = read_texttt = read_text

    def read_mathrm(self) -> str:
        return element("mi", escape(self.raw()), mathvariant="normal")

    read_mathit = read_mathrm

    def read_operatorname(self) -> str:
        if self.peek() == "*":
            self.take()
        return element("mi", escape(self.raw()), mathvariant="normal")

    def read_begin(self) -> str:
        kind = self.raw()
        if kind not in TABLES:
            raise FormulaError(f"unknown environment {kind}")
        if kind == "array":
            self.raw()  # its columns are aligned by course.css
        rows: list[list[str]] = [[]]
        while True:
            rows[-1].append("".join(self.until("&", "\\\\", r"\end", operand=bool(rows[-1]))))
            end = self.take()
            if end == "\\\\":
                if self.peek() == "[":
                    while self.take() != "]":
                        pass
                rows.append([])
            elif end == r"\end":
                break
        if self.raw() != kind:
            raise FormulaError(f"{kind} is not closed")
        rows = [cells for cells in rows if any(cells)]
        table = element(
            "mtable",
            "".join(element("mtr", "".join(element("mtd", cell) for cell in cells)) for cells in rows),
            # A display stays one inside its table; a matrix is set tight.
            displaystyle="false" if "matrix" in kind or kind == "cases" else "true",
            **{"class": "aligned" if kind in ("align", "align*", "aligned", "split") else kind.rstrip("*")},
        )
        left, right = {"pmatrix": "()", "bmatrix": "[]", "vmatrix": "||", "cases": ("{", "")}.get(
            kind, ("", "")
        )
        return self.fenced(left, table, right)


def mathml(latex: str, display: bool = False) -> str:
    """The formula as MathML."""
    return element(
        "math",
        element("mrow", "".join(Parser(latex).until(""))),
        **({"display": "block"} if display else {}),
    )


BAR = operator("|", stretchy="false", lspace="0", rspace="0")


def converted(node: nodes.Element, display: bool) -> str:
    try:
        made = mathml(node.astext(), display)
    except FormulaError as error:
        LOGGER.warning("formula not understood: %s: %s", error, node.astext(), location=node, type="formula")
        return element("code", escape(node.astext()))
    if any(isinstance(above, nodes.thead) for above in ancestors(node)):
        # A header that is all formula counts as empty unless it has a name.
        return made.replace("<math", f'<math aria-label="{re.sub("<[^>]*>", "", made)}"', 1)
    return made


def ancestors(node: nodes.Element) -> Iterator[nodes.Element]:
    while node.parent is not None:
        node = node.parent
        yield node


def keep_together(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Mark what touches a short formula: a browser breaks the line between it and a full stop or "-th"."""
    for node in list(doctree.findall(nodes.math)):
        if len(node.astext()) > SHORT:
            continue
        place = node.parent.index(node)
        for key, at, pattern in (("after", place + 1, AFTER), ("before", place - 1, BEFORE)):
            text = node.parent[at] if 0 <= at < len(node.parent) else None
            found = re.search(pattern, text) if isinstance(text, nodes.Text) else None
            if found:
                node[key] = found[0]
                node.parent[at] = nodes.Text(text[: found.start()] + text[found.end() :])


def visit_inline(translator: Any, node: nodes.math) -> None:
    before, after = escape(node.get("before", ""), quote=False), escape(node.get("after", ""), quote=False)
    opening, closing = ('<span class="together">', "</span>") if before or after else ("", "")
    start = translator.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    formula = start + converted(node, False) + "</span>"
    translator.body.append(opening + before + formula + after + closing)
    raise nodes.SkipNode


def visit_display(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", "", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append(converted(node, True) + "</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("doctree-resolved", keep_together)
    app.connect("config-inited", lambda _, config: setattr(config, "html_math_renderer", "mathml"))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
