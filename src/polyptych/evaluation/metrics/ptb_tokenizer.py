"""Penn Treebank tokens of captions, as the caption scorers expect them, without Java.

The COCO caption scores are defined on the output of Stanford's ``PTBTokenizer`` 3.4.1 with
``-preserveLines -lowerCase``, from which a list of punctuation tokens is removed. This module gives
the same tokens. It was written from observed behavior (Penn Treebank conventions plus the answers
of the Java program to probes); no grammar or code of it was used.

How the lexer decides, as every generated lexer does: at each position all rules are tried, the
longest match wins (what a rule merely looks ahead at counts), the first rule wins a tie. A
character that no rule knows (emoji outside the basic plane, private use, unassigned) is dropped.

Three habits of the original are kept, because scores depend on them: brackets survive as ``-lrb-``
(the removal list holds only upper-case names), runs such as ``??`` and ``?!`` survive, and phone
numbers and mixed fractions (``1 1/2``) become one token with no-break spaces inside.

One is not kept unless asked for: the original reads all captions as one file, so the first word of
the *next* caption can decide whether a last ``B.`` keeps its period. Here a caption's tokens depend
on that caption alone; pass ``following`` to reproduce a file.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from itertools import chain


def _words(text: str) -> list[str]:
    return text.split()


PUNCTUATION = frozenset(_words("'' ' `` ` -LRB- -RRB- -LCB- -RCB- . ? ! , : - -- ... ;"))
"""Tokens that the COCO caption evaluation removes after tokenization."""

_ABBREVIATIONS = _words(
    "al ala apr ariz assn aug bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est "
    "etc ext feb fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon "
    "mont neb nev nov oct okla penn plc ppte ppty pte ptes pty ptys rd rt sep sept seq sq sr "
    "sys tel tenn thu tue tues univ va vt wed wis wisc wyo"
)
# Titles and the like: a word may follow without a space (Mr.Smith is one token).
_TITLES = _words(
    "adj adm adv alex asst atty ave brig capt cf cie cmdr col cpl dept det dr drs elec ens ft "
    "gen gov govs hon insp invt jos lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc "
    "ph pres prof pvt rep reps rev sen sens sfc sgt spc st ste supt vs wm"
)
# Words in their own right unless capitalized.
_CAPITAL_ABBREVIATIONS = _words("Ark Az Del Ill La Mass Miss Ore Pa Tex Wash")
_NUMBER_ABBREVIATIONS = _words("art ca fig figs no nos op pp prop")
_SENTENCE_STARTERS = _words(
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last "
    "Many More Now Once One Other Our She Since So Some Such That The Their Then There These They "
    "This We What When While Yet You"
)

_NORMAL_FORM = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    '"': "''", "“": "``", "”": "''", "«": "``", "»": "''", "\x93": "``", "\x94": "''",
    "’": "'", "‘": "`", "‛": "`", "‹": "`", "›": "'", "\x91": "`", "\x92": "'",
    "–": "--", "—": "--", "―": "--", "\x96": "--", "\x97": "--", "…": "...",
    "½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3",
    "¢": "cents", "£": "#", "€": "$", "¤": "$", "₠": "$", "\x80": "$",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&md;": "--",
    "&mdash;": "--",
}  # fmt: skip


_PARENTHESES = str.maketrans({sign: _NORMAL_FORM[sign] for sign in "()"})
_QUOTES = str.maketrans({sign: _NORMAL_FORM[sign] for sign in "“”«»’‘‛‹›\x91\x92\x93\x94"})


def ptb_tokenize(text: str, following: str = "") -> list[str]:
    """Tokens of one caption, lower-case, without the punctuation of ``PUNCTUATION``.

    Args:
        text: The caption; line breaks count as spaces.
        following: The caption that comes next in the same file. Only needed to reproduce the
            original's reading of a file; see the head of this module.

    Returns:
        The tokens. A token can contain no-break spaces but no other white space.

    Example:
        >>> ptb_tokenize("A dog's ball (red), isn't it?")
        ['a', 'dog', "'s", 'ball', '-lrb-', 'red', '-rrb-', 'is', "n't", 'it']
    """
    text = text.replace("\xad", "")  # the soft hyphen is no part of a word
    if following or (_MAY_CROSS_SPACES.search(text) and _crosses_spaces().search(text)):
        return _lex(" ".join(text.split()), " " + following)
    return list(chain.from_iterable(map(_lex_chunk, text.split())))


@lru_cache(maxsize=1 << 17)
def _lex_chunk(chunk: str) -> tuple[str, ...]:
    """Tokens of a run without white space; captions repeat most of theirs."""
    return tuple(_lex(chunk, " "))


def _lex(text: str, right_context: str) -> list[str]:
    tokens = []
    position, end = 0, len(text)
    buffer = text + right_context
    while position < end:
        if buffer[position] == " ":
            position += 1
            continue
        best, reach = None, position
        for rule in _rules():
            match = rule.match(buffer, position)
            if match and match.end() > reach:
                best, reach = match, match.end()
        if best is None:
            position += 1
            continue
        group = best.lastindex or 0
        tokens.append(_normalize(best.group(group)))
        position = best.end(group)
    return [token for token in tokens if token and token not in PUNCTUATION]


def _normalize(token: str) -> str:
    if token in _NORMAL_FORM:
        return _NORMAL_FORM[token]
    if token == "&nbsp;":
        return ""
    if token in ("---", "----"):
        return "--"
    if token.startswith("...") and not token.strip("."):
        return "..."
    if token[0] in "’\x92" and _SUFFIX.fullmatch(token):
        token = "'" + token[1:]
    elif token[:1] in "nN" and _NOT.fullmatch(token):
        token = token[0] + token[1].replace("’", "'").replace("\x92", "'") + token[2]
    if " " in token:
        token = token.replace(" ", "\xa0")
    if "(" in token or ")" in token:  # a smiley or a phone number
        token = token.translate(_PARENTHESES)
    elif _QUOTE_RUN.fullmatch(token):
        token = token.translate(_QUOTES)
    return token.lower()


_APOSTROPHE = "['’\x92]"
_SUFFIX = re.compile(rf"{_APOSTROPHE}(?:s|m|d|ll|re|ve)", re.IGNORECASE)
_QUOTE_RUN = re.compile(r"[`‘’‛“”«»‹›\x91-\x94]{2,}")
_NOT = re.compile(rf"n{_APOSTROPHE}t", re.IGNORECASE)


@lru_cache(maxsize=1)
def _word_character() -> str:
    """Inside of a character class: letters, decimal digits and the marks that belong to words."""
    ranges: list[list[int]] = []
    for code in range(0x10000):
        category = unicodedata.category(chr(code))
        is_mark = category in ("Mn", "Mc") and (code < 0x370 or 0x483 <= code < 0x1100)
        if category[0] == "L" or category == "Nd" or is_mark:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\u{first:04x}-\\u{last:04x}" for first, last in ranges)


# Symbols that stand for themselves, by Unicode block; all others are dropped.
_SYMBOLS = (
    r"$-'*-/:-@\\^_`|~\xa1\xa5-\xa9\xac\xae-\xb4\xb6-\xb9\xbf\xd7\xf7\u037e\u0387\u0589\u05be\u05c0"
    r"\u05c3\u05c6\u060c\u061b\u061f\u066a\u066d\u06d4\u0964\u0965\u0e3f\u2016\u2017\u201a\u201e"
    r"\u201f\u2020-\u2023\u2030-\u2038\u203b\u203e-\u2042\u2044\u2070\u2074-\u207e\u2080-\u208e"
    r"\u20a4\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116-\u2118\u211e-\u2123\u2125\u2127\u2129"
    r"\u212e\u213a\u213b\u2140-\u2144\u214a-\u214d\u214f\u2155-\u215e\u2190-\u2bff\u3001\u3002\u3012"
    r"\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6"
)


def _one_of(words: list[str]) -> str:
    return "(?:" + "|".join(sorted(words, key=len, reverse=True)) + ")"


@lru_cache(maxsize=1)
def _rules() -> tuple[re.Pattern[str], ...]:
    """The lexer's rules. Where a rule has a group, the rest of its match is lookahead."""
    word = f"[{_word_character()}]"
    letter = rf"(?:(?!\d){word})"
    apostrophe = _APOSTROPHE
    not_word = f"(?!{word})"
    hyphen = "[-_\u058a\u2010\u2011]"
    elided = f"(?:[dol]['’‘`\x92](?={letter}{word}))?{word}+"  # O'Brien, l'eau
    chain = f"{elided}(?:{hyphen}{elided})*"
    suffix = f"{apostrophe}(?:s|m|d|ll|re|ve)"
    number = r"\d*(?:[.,:]?\d+)+"
    dotted = rf"{letter}{word}*(?:[.!?]{letter}{word}*)+"  # example.org, what?No
    acronym = rf"{letter}\.(?:{letter}\.)+"
    slash_part = r"[A-Za-z0-9]+(?:-[A-Za-z]+)*"
    label = r"[^\s`\"<>|.!?(){},]+"
    url_end = r"[^\s\"<>|.!?(){},-]"
    url_path = rf"/[^\s\"<>|()]+{url_end}"
    capitals = [*_CAPITAL_ABBREVIATIONS, *(word.upper() for word in _CAPITAL_ABBREVIATIONS)]

    def ignore_case(pattern: str) -> re.Pattern[str]:
        return re.compile(pattern, re.IGNORECASE)

    return (
        # Markup and addresses.
        re.compile(
            r"<[A-Za-z][\w:.@-]*(?:\s+[A-Za-z][\w:.-]*(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'>]+))?)*"
            r"\s*/?>|</[A-Za-z][\w:.@-]*>|<[!?][A-Za-z-][^>]*>"
        ),
        ignore_case(rf"https?://[^\s\"<>|(){{}}]+{url_end}"),
        ignore_case(rf"www\.(?:{label}\.)+[a-z]{{2,4}}(?:{url_path})?"),
        ignore_case(rf"(?:[a-z][a-z0-9]*\.)+(?:com|net|org|edu)(?:{url_path})?"),
        re.compile(r"[A-Za-z0-9][^\s\"<>|(){}]*@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+"),
        re.compile(r"&(?:amp|lt|gt|quot|apos|nbsp|md|mdash|ht|lr|q[clr]|tl|ur|cdq|odq|[aoue]uml);"),
        re.compile(r"&#\d+;"),
        re.compile(rf"#{letter}+|@[A-Za-z_][A-Za-z_0-9]*"),
        # Contractions: do|n't, dog|'s, can|not, gon|na, 't|is.
        ignore_case(r"([a-z]*[a-mo-z])n['’\x92`]t"),
        ignore_case(r"n['’\x92`]t"),
        ignore_case(rf"({word}+){suffix}"),
        ignore_case(rf"{suffix}(?![a-z])|[’\x92](?:[smdn]|ll|re|ve)"),
        ignore_case(rf"(can)not{not_word}"),
        ignore_case(rf"(gon|wan)na{not_word}"),
        ignore_case(rf"(got)ta{not_word}"),
        ignore_case(rf"(gim|lem)me{not_word}"),
        ignore_case(rf"('t)(?:is|was){not_word}"),
        ignore_case(rf"{apostrophe}(?:em|till?|cause)"),
        ignore_case(rf"({apostrophe}n)(?![{_word_character()}.-])"),
        ignore_case(rf"{apostrophe}n{apostrophe}"),
        re.compile(rf"{apostrophe}\d\ds?(?!{word})"),
        # Words.
        re.compile(rf"{word}+"),
        ignore_case(chain),
        ignore_case(rf"{word}[{_word_character()}.,]*(?:-(?:{acronym}|{elided}))+"),
        re.compile(rf"{slash_part}(?:\\?/{slash_part})+"),
        ignore_case(rf"n{apostrophe}{letter}{{2,}}"),
        re.compile(rf"[A-HJ-XZ]['’‘`\x92]{letter}{{2,}}"),
        re.compile(rf"[A-Za-z]+[aeiouyAEIOUY]['’\x92][aeiouA-Z]{letter}*"),  # ma'am
        ignore_case(rf"([jy]{apostrophe}){letter}|(?:[dl]|ol){apostrophe}"),
        ignore_case(rf"(?:c'mon|c'est|s'mores?|[eo]'er|ne'er|ev'ry|li'l|o['’`]o){not_word}"),
        re.compile(r"[A-Z]+(?:[&+][A-Z]+)+"),
        re.compile(r"[A-Z]+\$"),
        ignore_case(r"c\+\+|[cf]#"),
        ignore_case(rf"({_one_of(_ABBREVIATIONS)}\.)."),
        re.compile(dotted),
        # Abbreviations keep their period, initials too unless a sentence starts behind them.
        re.compile(rf"({letter})\.\s+(?:{_one_of(_SENTENCE_STARTERS)}\s|<[A-Za-z])"),
        re.compile(rf"(?:{letter}\.)+{letter}?"),
        ignore_case(_one_of(_TITLES) + r"\."),
        re.compile(_one_of(capitals) + r"\."),
        ignore_case(rf"({_one_of(_NUMBER_ABBREVIATIONS)}\.)\s?\d"),
        ignore_case(rf"((?:{chain}|{dotted})\.)[,;:]"),
        # Numbers.
        re.compile(rf"[-+]?{number}"),
        re.compile(r"\d{1,4}[- ]\d{1,4}/\d{1,4}"),
        re.compile(r"(?:\(\d{2,3}\) ?|(?:\+?\d{2,4} )?\d{2,4}[- ])\d{3,4}[- ]\d{3,5}"),
        # Signs.
        re.compile(r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]](?![A-Za-z0-9])"),
        re.compile(r"[-^x=~<>']_[-^x=~<>']|\([-=<>'][-=<>']\)|<<|>>"),
        re.compile(r"\.\.\.+|-{5,}|-{2,4}|[!?]+|(?:\\?\*)+|#+|@+|__+|''"),
        _QUOTE_RUN,
        re.compile(r"[\xb2\xb3\xb9\u2070\u2074-\u208e]+"),
        re.compile(rf"[{_SYMBOLS}]|" + "|".join(map(re.escape, _NORMAL_FORM))),
    )  # fmt: skip


_MAY_CROSS_SPACES = re.compile(r"[\d).]\s|<")  # cheap, and rules out most captions


@lru_cache(maxsize=1)
def _crosses_spaces() -> re.Pattern[str]:
    """Finds captions in which a token, or what decides about one, may contain white space."""
    return re.compile(
        rf"[\d)]\s\(?\d|<[!?/A-Za-z][^>]*\s|(?<![A-Za-z])[^\W\d_]\.\s+(?:{_one_of(_SENTENCE_STARTERS)}\s|<)"
        rf"|{_one_of(_NUMBER_ABBREVIATIONS)}\.\s\d",
        re.IGNORECASE,
    )
