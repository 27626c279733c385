r"""Formulas of final answers: from LaTeX to nested tuples.

One grammar reads one answer, such as ``\frac{\sqrt{3}}{2}``, ``[0, 1) \cup \{5\}``,
``x \ge 2`` or a matrix. Whatever is not in the grammar is refused, so nothing is
skipped, completed or guessed. `stepjax.evaluation.values` says which ones are equal.

A formula is a tuple of its kind and its parts:

  ("number", Fraction)  ("symbol", name)  ("constant", "pi" | "e" | "i" | "infinity")
  ("sum" | "product", [formula, …])  ("negative" | "inverse", formula)
  ("power", base, exponent)  ("call", name, formula, …)
  ("sequence", opening bracket, [formula, …], closing bracket)
  ("set", [formula, …])  ("builder", formula, condition)  ("matrix", [[formula, …], …])
  ("union" | "intersection" | "difference", formula, formula)
  ("relation", [formula, …], [sign, …])  ("text", words)
"""

import re
from fractions import Fraction
from typing import Any

Formula = tuple[Any, ...]

_DEEPEST = 40  # formulas inside of each other
_TOKEN = re.compile(
    r"\s+|(?P<token>\\begin\{[pbB]?(?:small)?matrix\}|\\end\{[pbB]?(?:small)?matrix\}"
    r"|\\text\{[^{}]*\}|\\overline\{[A-Z]+\}|\\math(?:bb|bf|cal)\{[A-Z]\}"
    r"|\d*\.?\d*\\(?:overline|dot)\{\d+\}(?<=\d\})|\d+(?:\.\d*)?|\.\d+"
    r"|\\[A-Za-z]+|\\.|[^\s])"
)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|dot)\{(\d+)\}")
_RELATIONS = {
    **{"<": "<", ">": ">", "=": "=", r"\lt": "<", r"\gt": ">", r"\le": "<="},
    **{r"\leq": "<=", r"\leqslant": "<=", r"\ge": ">=", r"\geq": ">=", "≤": "<="},
    **{r"\geqslant": ">=", "≥": ">=", r"\ne": "!=", r"\neq": "!=", "≠": "!="},
    **{r"\in": "in", "∈": "in"},
}
_SETS = {
    **{r"\cup": "union", "∪": "union", r"\cap": "intersection"},
    **{"∩": "intersection", r"\setminus": "difference", r"\backslash": "difference"},
}
_GREEK = (
    "alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa "
    "lambda mu nu xi rho sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta "
    "Lambda Xi Pi Sigma Phi Psi Omega ell"
)
_SYMBOLS = {f"\\{name}": name for name in _GREEK.split()}
_CONSTANTS = {r"\pi": "pi", r"\infty": "infinity", "e": "e", "i": "i"}
_CALLS = {
    f"\\{name}": name
    for name in "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln exp "
    "max min gcd lcm".split()
}
_INVERTED = ("sin", "cos", "tan")  # sin^-1 is the inverse function
_TIMES = ("*", r"\cdot", r"\times", r"\ast", "×", "·", "⋅")
_OVER = ("/", r"\div", "÷")
_ROUNDED = {r"\lfloor": ("floor", r"\rfloor"), r"\lceil": ("ceil", r"\rceil")}
_STOPS = frozenset(
    [")", "]", "}", r"\}", ",", ";", ":", r"\mid", r"\rvert", "&", r"\\", r"\rfloor"]
    + [r"\rceil", "+", "-", "^", "_", "!", *_TIMES, *_OVER]
    + [*_RELATIONS, *_SETS]
)


class NotAFormula(ValueError):
    """The text is not in the grammar."""


class TooDeep(NotAFormula):
    """The formula is nested more deeply than the grader reads."""


def read(text: str) -> Formula:
    """Reads one answer.

    Args:
      text: LaTeX without dollar signs, units, list commas and plus-minus signs.

    Raises:
      NotAFormula: when the text, or a part of it, is not in the grammar.
    """
    tokens = [found["token"] for found in _TOKEN.finditer(text) if found["token"]]
    reader = _Reader(tokens)
    formula = reader.sets()
    reader.expect(None)
    return formula


class _Reader:
    """Tokens, and the place that is read next; one method for each rule."""

    def __init__(self, tokens: list[str]):
        self._tokens, self._at, self._depth = tokens, 0, 0
        self._bars = 0  # absolute values and conditions that a bar can end

    @property
    def next(self) -> str | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def take(self) -> str | None:
        token = self.next
        self._at += 1
        return token

    def expect(self, token: str | None) -> None:
        if self.next != token:
            raise NotAFormula(f"{self.next!r} instead of {token!r}")
        self._at += 1

    def accept(self, *tokens: str) -> bool:
        found = self.next in tokens
        self._at += found
        return found

    # Sets and relations.

    def sets(self) -> Formula:
        left = self.relation()
        while self.next in _SETS:
            kind = _SETS[self.take()]
            left = (kind, left, self.relation())
        return left

    def relation(self) -> Formula:
        sides, signs = [self.ratio()], []
        while self.next in _RELATIONS:
            signs.append(_RELATIONS[self.take()])
            sides.append(self.ratio())
        return ("relation", sides, signs) if signs else sides[0]

    def ratio(self) -> Formula:
        parts = [self.sum()]
        while self.next == ":" and self._depth == 0:
            self.take()
            parts.append(self.sum())
        return ("sequence", ":", parts, ":") if len(parts) > 1 else parts[0]

    # Arithmetic.

    def sum(self) -> Formula:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise TooDeep("too deep")
        parts = [self._signed()]
        while self.next in ("+", "-"):
            parts.append(self._signed())
        self._depth -= 1
        return ("sum", parts) if len(parts) > 1 else parts[0]

    def _signed(self) -> Formula:
        sign = self.take() if self.next in ("+", "-") else "+"
        term = self.product()
        return ("negative", term) if sign == "-" else term

    def product(self) -> Formula:
        parts = [self._factor()]
        while True:
            if self.accept(*_TIMES):
                parts.append(self._factor())
            elif self.accept(*_OVER):
                parts.append(("inverse", self._factor()))
            elif self._ends():
                return ("product", parts) if len(parts) > 1 else parts[0]
            elif self.next[0] in "0123456789." and self._tokens[self._at - 1] != "!":
                raise NotAFormula("a number behind a factor")
            else:
                parts.append(self._factor())

    def _ends(self) -> bool:
        """Whether the next token is no further factor."""
        token = self.next
        if token == "|":  # ends what is between bars, or stands before a condition
            return self._bars > 0
        return token is None or token in _STOPS or token.startswith(r"\end{")

    def _factor(self) -> Formula:
        sign = self.take() if self.next in ("+", "-") else "+"
        base = self._primary()
        while self.next in ("^", "!", r"\degree"):
            token = self.take()
            if token == "!":
                base = ("call", "factorial", base)
            elif token == r"\degree":
                whole = ("number", Fraction(180))
                base = ("product", [base, ("constant", "pi"), ("inverse", whole)])
            else:
                base = ("power", base, self._argument())
        return ("negative", base) if sign == "-" else base

    def _argument(self) -> Formula:
        """Reads what belongs to a command or to ^: a group, a number or a symbol.

        LaTeX takes one digit of ^12; people who leave the braces out mean both.
        """
        if self.accept("{"):
            formula = self.sum()
            self.expect("}")
            return formula
        sign = self.accept("-")
        formula = self._primary()
        return ("negative", formula) if sign else formula

    def _primary(self) -> Formula:
        token = self.take()
        if token is None:
            raise NotAFormula("the text ends too early")
        if token[0] in "0123456789." and token != ".":
            return self._number(token)
        if token in ("(", "["):
            return self._bracket(token)
        if token == "{":
            formula = self.sum()
            self.expect("}")
            return formula
        if token == r"\{":
            return self._set()
        if token in (r"\lfloor", r"\lceil", "|", r"\lvert"):
            return self._between(token)
        if token == r"\frac":
            upper = self._argument()
            return ("product", [upper, ("inverse", self._argument())])
        if token in (r"\binom", r"\dbinom"):
            return ("call", "binomial", self._argument(), self._argument())
        if token == r"\sqrt":
            return self._root()
        if token == r"\log":
            return self._logarithm()
        if token in _CALLS:
            return self._call(_CALLS[token])
        if token.startswith(r"\begin{"):
            return self._matrix(token)
        return self._named(token)

    def _number(self, token: str) -> Formula:
        repeating = _REPEATING.fullmatch(token)
        if not repeating:
            whole = Fraction(token.rstrip(".") if token[-1] == "." else token)
            return ("number", self._mixed(whole, token))
        whole, fixed, again = repeating.groups()
        value = Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(fixed))
        return ("number", Fraction(f"{whole or 0}.{fixed or 0}") + value)

    def _mixed(self, whole: Fraction, token: str) -> Fraction:
        r"""Adds the fraction of a mixed number such as 2\frac{1}{3}."""
        ahead = self._tokens[self._at : self._at + 7]
        shape = [*ahead[:2], *ahead[3:5], *ahead[6:7]]
        if token.isdigit() and shape == [r"\frac", "{", "}", "{", "}"]:
            upper, lower = ahead[2], ahead[5]
            if upper.isdigit() and lower.isdigit() and 0 < int(upper) < int(lower):
                self._at += 7
                return whole + Fraction(int(upper), int(lower))
        return whole

    def _items(self, closing: tuple[str, ...]) -> tuple[list[Formula], str]:
        items = []
        depth, self._depth = self._depth, max(self._depth, 1)
        while True:
            items.append(self.sets())
            if self.next in closing:
                self._depth = depth
                return items, self.take()
            if not self.accept(",", ";"):
                raise NotAFormula(f"{self.next!r} between brackets")

    def _bracket(self, opening: str) -> Formula:
        if opening == "(" == self.next and self._doubled():
            self.take()
            formula = self._bracket("(")
            self.expect(")")
            return formula
        items, closing = self._items((")", "]"))
        if len(items) == 1 and (opening, closing) == ("(", ")"):
            return items[0]
        return ("sequence", opening, items, closing)

    def _doubled(self) -> bool:
        """Whether the next bracket closes right before the one around it."""
        depth = 0
        for place in range(self._at, len(self._tokens)):
            depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(self._tokens[place], 0)
            if depth == 0:
                return self._tokens[place + 1 : place + 2] == [")"]
        return False

    def _set(self) -> Formula:
        if self.accept(r"\}"):
            return ("set", [])
        self._bars += 1
        items, closing = self._items((r"\}", "|", r"\mid", ":"))
        self._bars -= 1
        if closing == r"\}":
            return ("set", items)
        conditions, _ = self._items((r"\}",))
        if len(items) != 1 or len(conditions) != 1:
            raise NotAFormula("several conditions of a set")
        return ("builder", items[0], conditions[0])

    def _between(self, opening: str) -> Formula:
        if opening in ("|", r"\lvert"):
            self._bars += 1
            formula = self.sum()
            self._bars -= 1
            self.expect("|" if opening == "|" else r"\rvert")
            return ("call", "abs", formula)
        name, closing = _ROUNDED[opening]
        formula = self.sum()
        self.expect(closing)
        return ("call", name, formula)

    def _root(self) -> Formula:
        degree = ("number", Fraction(2))
        if self.accept("["):
            degree = self.sum()
            self.expect("]")
        return ("call", "root", self._argument(), degree)

    def _logarithm(self) -> Formula:
        base = ("number", Fraction(10))
        if self.accept("_"):
            base = self._argument()
        inside = self._behind_name()
        return ("call", "log", inside, base)

    def _call(self, name: str) -> Formula:
        exponent = self._argument() if self.accept("^") else None
        if exponent == ("negative", ("number", Fraction(1))) and name in _INVERTED:
            name, exponent = f"arc{name}", None
        if name in ("max", "min", "gcd", "lcm"):
            self.expect("(")
            items, _ = self._items((")",))
            return ("call", name, *items)
        formula = ("call", name, self._behind_name())
        return ("power", formula, exponent) if exponent else formula

    def _behind_name(self) -> Formula:
        r"""Reads the argument of \sin x, \sin 2x, \sin(x + 1) or \ln|x|."""
        if self.next in ("(", "{", "|"):
            return self._primary()
        parts = [self._factor()]
        while self.next and (
            self.next in _SYMBOLS
            or self.next == r"\pi"
            or (len(self.next) == 1 and self.next.isalpha())
        ):
            parts.append(self._factor())
        return ("product", parts) if len(parts) > 1 else parts[0]

    def _matrix(self, token: str) -> Formula:
        end, rows = token.replace("begin", "end"), [[]]
        while True:
            rows[-1].append(self.sum())
            if self.accept(r"\\"):
                if self.next == end:
                    break
                rows.append([])
            elif not self.accept("&"):
                break
        self.expect(end)
        return ("matrix", rows)

    def _named(self, token: str) -> Formula:
        if token.startswith(r"\text{"):
            return ("text", " ".join(token[6:-1].split()).casefold())
        if token in (r"\emptyset", r"\varnothing", "∅"):
            return ("set", [])
        known = token in _SYMBOLS or token.startswith((r"\overline", r"\math"))
        if token in _CONSTANTS and self.next != "_":
            return ("constant", _CONSTANTS[token])
        if not known and not (len(token) == 1 and token.isalpha()):
            raise NotAFormula(f"{token!r} is not known")
        name = _SYMBOLS.get(token, token)
        if self.accept("_"):
            name += "_" + self._index()
        while self.accept("'"):
            name += "'"
        return ("symbol", name)

    def _index(self) -> str:
        """Reads a subscript as it is written."""
        if not self.accept("{"):
            return self.take() or ""
        parts = []
        while self.next not in ("}", "{", None):
            parts.append(self.take())
        self.expect("}")
        return "".join(parts)
