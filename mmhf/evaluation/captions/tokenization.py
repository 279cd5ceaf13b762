r"""Tokens of COCO's caption metrics, without Java.

`pycocoevalcap` runs Stanford's PTBTokenizer (CoreNLP 3.4.1, `-lowerCase`) and drops the tokens that are punctuation.
The rules here were found by comparing outputs: of 40,960 captions of Flickr8k all but one, which holds a file name,
have the same tokens. They differ on purpose in this:

- emoji are tokens, where PTBTokenizer deletes them;
- Chinese, Japanese, Thai, Lao, Khmer and Burmese, which are written without spaces, are cut into characters with their
  marks, where PTBTokenizer keeps a whole run as one token, so that only equal sentences would match;
- tokens never depend on the caption that follows.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise

import regex

PUNCTUATION = frozenset({"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"})
"""Tokens that `pycocoevalcap` drops. It also names -LRB- and the like, but in capitals, which never match."""

_BRACKETS = str.maketrans({"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"})
_SPELLINGS = str.maketrans(
    {"“": '"', "”": '"', "„": '"', "«": '"', "»": '"', "‘": "`", "–": "--", "—": "--", "…": "...", "£": "#", "€": "$"}
    | {"¢": " cents", "½": " 1/2", "¼": " 1/4", "¾": " 3/4"}
)

_ABBREVIATIONS = (
    "adm|al|apr|ariz|assn|aug|ave|bldg|blvd|bros|calif|capt|cf|co|col|colo|conn|corp|cpl|ct|dec|dept|dr|esq|est|etc|ext"
    "|feb|fla|fri|ft|ga|gen|gov|hon|inc|intl|jan|jr|jul|jun|lt|ltd|maj|mar|md|messrs|mich|minn|mon|mr|mrs|ms|mt|natl|nov"
    "|oct|okla|penn|ph|pres|prof|pvt|rd|rep|rev|rt|sen|sep|sept|sgt|sr|st|supt|tenn|thu|thurs|tue|tues|univ|va|vs|wed|wis"
)
_SENTENCE_STARTS = "The|A|An|In|On|At|He|She|It|They|There|This|That|One|Two|We|You|I|But|And"
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "wanna": ("wan", "na"),
    "gimme": ("gim", "me"),
    "lemme": ("lem", "me"),
    "'tis": ("'t", "is"),
    "'twas": ("'t", "was"),
}

_SPACELESS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_LETTER = rf"[[\p{{L}}\p{{N}}]--[{_SPACELESS}]]"

_TOKEN = regex.compile(
    rf"""
    (?:https?|ftp)://[^\s<>"'`|(){{}}\[\]]+(?<![.,?!;:])
  | (?:{_LETTER}|[._%+-])++@[\p{{L}}\p{{N}}-]+(?:\.[\p{{L}}\p{{N}}-]+)*\.\p{{L}}{{2,}}
  | </?\p{{L}}[\p{{L}}\p{{N}}]*\s*/?>  # a tag, such as <unk>
  | (?:\p{{Regional_Indicator}}{{2}}|[0-9\#*]\ufe0f?\u20e3  # emoji: flags, keycaps, sequences
      |[\p{{Extended_Pictographic}}--[©®™]](?:[\ufe0f\p{{EMod}}]|\u200d\p{{Extended_Pictographic}})*)
  | [[{_SPACELESS}]&&\p{{L}}]\p{{M}}*
  | [\#@]\p{{L}}[\p{{L}}\p{{N}}_]*
  | ['’](?:s|m|d|re|ve|ll|em|cause|tis|twas|n['’]|\d0s)(?![\p{{L}}\p{{N}}])
  | \bph\.d\.
  | (?:\p{{L}}\.){{2,}}(?!\p{{L}})
  | \b(?:{_ABBREVIATIONS})\.(?!\p{{L}})
  | \bno\.(?=\s*\d)
  | \b\p{{L}}\.(?=\s+\S)(?!(?-i:\s+(?:{_SENTENCE_STARTS})\b))
  | (?-i:\b[A-Z]+(?:&[A-Z]+)+)
  | \b\d+(?::\d+)+
  | (?<![^\s(])[-+]?(?:\d|\.(?=\d))\d*(?:[.,/]\d+)*(?![\p{{L}}\p{{N}}-])
  | {_LETTER}(?:{_LETTER}|[\p{{M}}\u200c\u200d]|[-'’./,_](?={_LETTER})(?:(?<!,)|(?<=\d,)(?=\d)))*
  | [:;=]-?[()DP](?!\w)
  | [?!]{{2,}} | \.{{2,}} | -{{2,}} | \*+ | _+ | \#+ | << | >>
  | [^\s"\p{{Cf}}]
    """,
    regex.VERSION1 | regex.VERBOSE | regex.IGNORECASE,
)
_WITH_CLITIC = regex.compile(r"(.*\p{L})(n['’]t)|(.*[\p{L}\p{N}])(['’](?:s|m|d|re|ve|ll))")


def coco_tokens(text: str) -> list[str]:
    """Cut a caption into lower-case tokens without punctuation.

    >>> coco_tokens("A man's dog isn't running (yet).")
    ['a', 'man', "'s", 'dog', 'is', "n't", 'running', '-lrb-', 'yet', '-rrb-']
    """
    tokens: list[str] = []
    for word, following in pairwise([*text.split(), ""]):
        # What follows a word decides only whether its full stop is an abbreviation's.
        tokens += _word_tokens(word, following if word.endswith(".") else "")
    return tokens


@lru_cache(maxsize=1 << 16)
def _word_tokens(word: str, following: str) -> tuple[str, ...]:
    spelled = word.translate(_SPELLINGS)
    matches = (match for match in _TOKEN.finditer(f"{spelled} {following}") if match.start() < len(spelled))
    tokens = (part for match in matches for part in _parts(match[0].lower()))
    return tuple(token for token in tokens if token not in PUNCTUATION and token.strip(".-’"))


def _parts(token: str) -> tuple[str, ...]:
    if token in _TWO_WORDS:
        return _TWO_WORDS[token]
    found = _WITH_CLITIC.fullmatch(token)
    if found:
        stem, clitic = (part for part in found.groups() if part is not None)
        return (*_parts(stem), clitic.replace("’", "'"))
    return (token.translate(_BRACKETS),)
