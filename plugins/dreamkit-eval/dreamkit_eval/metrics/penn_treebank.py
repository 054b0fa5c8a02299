# ruff: noqa: RUF001 - quotes and dashes look alike
"""Penn Treebank tokens of captions, as COCO's caption metrics count them, without Java.

The rules were found by comparing outputs with those of `edu.stanford.nlp.process.PTBTokenizer` (Stanford CoreNLP 3.4.1,
`-preserveLines -lowerCase`), which pycocoevalcap 1.2 calls in `tokenizer/ptbtokenizer.py`. The first rule that matches
at a character makes the token, so that longer tokens stand above their beginnings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_ABBREVIATIONS: Final = """
    adj adm adv al ala alex apr ariz assn assoc asst attys? aug ave bancorp bhd bldg blvd brig bros calif capt cf cie
    cmdr co col colo comdr conn corp cos cpl ct dak dec dept det drs? elec ens esq est etc ext feb fla fri ft ga gen
    govs? hon inc ind insp intl invt jan jos jr jul jun kans? ky lieut lt ltd maj mar md messrs mfg mich minn mlle mme
    mo mon mont mrs? ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc p?p?t[ey]s? pres profs? pvt rd reps? rev
    rt sens? sept? seq sfc sgt spc sq sr ste? supts? sys tel tenn thu thurs treas tues? univ va vs vt wed wisc? wm wyo
"""
# After a letter with a period, one of these words begins a sentence, and the period ends the one before.
_SENTENCE_STARTS: Final = r"""
    A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Now Once One
    Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You Mr\. Ms\.
"""
_L: Final = r"(?:[^\W\d_¹²³¼-¾⁰-₎⅐-⅟①-⓿❶-➓]|[\u0300-\u036f])"  # a letter; `\w` has superscripts
_W: Final = rf"(?:{_L}|\d)"
_A: Final = r"(?:['’]|&apos;)"
_AUXILIARY: Final = r"(?:ll|re|ve|[sdm])(?![a-z])"
_NAME: Final = r"[a-z][\w.:-]*"  # of a tag or attribute
_PATH: Final = r"[^\s\"<>|(){}]"
_TOKEN: Final = re.compile(
    "|".join(
        [
            r"(?!cannot|gonna|gotta|wanna|lemme|gimme)[a-z]+(?=\s)",  # most tokens; for speed alone
            rf"<{_NAME}(?:[ \t]+{_NAME}(?:=(?:\"[^\"<>\n]*\"|'[^'<>\n]*'))?)*[ \t]*/?>|</{_NAME}>|<[!?][a-z-][^<>\n]*>",
            rf"https?://{_PATH}+?\.{_PATH}+(?<![.,!?;:])",
            rf"(?:[a-z][a-z0-9]*\.)+(?:com|net|org|edu)/{_PATH}{{2,}}(?<![.,!?;:])",
            r"\d[a-z0-9]*\.(?:[chx]|txt|html?|jpe?g|gif|png|pdf|doc|mp3|mov|exe|py|xml|zip)(?=[\s.,!?]|\Z)",
            rf"<?[a-z0-9]{_PATH}*@(?:[^\s\"<>|(){{}}.]+\.)*[^\s\"<>|(){{}}.]+>?",  # an e-mail address
            r"\(\d{2,3}\) ?\d{3,4}[- ]?\d{3,5}",  # a phone number
            r"\d{1,4}[- ]\d{1,4}\\?/\d{1,4}",  # 2 1/2
            r"[a-z]*[a-mo-z](?=n['’`‘‛]t)",  # ca, before n't
            r"(?:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:lem|gim)(?=me))(?=(?:not|na|ta|me)(?!\w|[-/.!?]\w|['’]\w))",
            rf"{_A}t(?=is|was)",
            rf"c{_A}(?:mon|est)|cap{_A}n|nat{_A}l|s{_A}mores|nor{_A}easter|li{_A}l|ev{_A}ry|e{_A}er",
            rf"[dlon]{_A}(?!{_AUXILIARY}){_L}{{2}}{_W}*(?:[-_]{_W}+)*",  # o'clock
            r"n['’`‘‛]t|''|``|[‘’“”‛‹›«»]{2}",
            rf"{_L}+[aeiouy]{_A}[aeiou]{_L}*",  # ma'am
            rf"ol{_A}(?!{_AUXILIARY})|dunkin{_A}|somethin{_A}|[dl]{_A}(?!{_AUXILIARY})|[jy]{_A}(?={_L})(?!{_AUXILIARY})",
            rf"{_A}(?:em|till?|cause)|{_A}n{_A}|{_A}n(?![.a-z])|{_A}[2-9]0s|{_A}[2-9]\d(?!\d)",
            rf"{_A}{_AUXILIARY}|’(?:ll|re|ve|[sdm])",
            r"(?-i:[A-Z]+(?:&(?:amp;)?[A-Z]+)+)|(?-i:[A-Z]{1,3})\$|c\+\+|[cf]\#",  # AT&T, US$
            r"[a-z0-9]+(?:-[a-z]+){0,2}(?:\\?/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",  # and/or, 1/2
            rf"{_W}(?:{_W}|[.,‑])*(?:-(?:[a-z](?:\.[a-z])+\.|{_W}+))+(?:_{_W}+)*",  # black-and-white, 1,000-year
            rf"{_W}+(?:_{_W}+)+",
            rf"{_L}(?:\.{_L})+\.(?!{_L})",  # U.S.
            rf"{_L}\.(?!{_L}|\s+(?-i:(?:{'|'.join(_SENTENCE_STARTS.split())})\s|</?[a-z]))",
            rf"(?:{'|'.join(_ABBREVIATIONS.split())})\.(?!{_L})",
            rf"(?:ed|ph)\.d\.(?!{_L}{_L})|(?:nos?|figs?|pp|art|prop)\.(?=\s*\d)",
            r"-{2,}|[+-]?\d*(?:[.:,]\d+)+",
            rf"{_L}(?:{_W}|[‐‑])*(?:[.!?]{_L}(?:{_W}|[‐‑])*)*|{_W}+|[+-]\d+",
            r"[<>]?[:;=][-o*']?(?:[()dp\\{@|\[\]]|(?-i:O))(?![a-z0-9])",  # :)
            r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)",
            rf"\#{_L}+|@[a-z_]\w*|&(?:amp|lt|gt|quot|nbsp|\#\d+);",
            r"\.{3,5}|[!?]+|\*+|\#+|@+|_+|<<|>>|(?:\\\*)+",
            r"[!-/:-@\[-`{-~¡-¿×÷‖‗‚„-‣‰-‸※‾-⁂⁄⁰-₎€℀-⯿、。\n]",  # other symbols are dropped
        ]
    ),
    re.IGNORECASE,
)
_SINGLE: Final = {
    **dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True)),
    **dict(zip("½¼¾⅓⅔", ("1/2", "1/4", "3/4", "1/3", "2/3"), strict=True)),
    **{"€": "$", "¤": "$", "£": "#", "¢": "cents", "–": "--", "—": "--", "―": "--", "…": "...", '"': "''"},
    **{"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&apos;": "'", "&nbsp;": ""},
}
_PARTS: Final = {"(": "-lrb-", ")": "-rrb-", " ": "\xa0", "&amp;": "&"}
_QUOTES: Final = str.maketrans(
    dict(zip("‘‛‹’›“«”»", ("`",) * 3 + ("'",) * 2 + ("``",) * 2 + ("''",) * 2, strict=True))
)
_SHORTENED: Final = re.compile(rf"n?{_A}(?:ll|re|ve|[sdmt])")
# pycocoevalcap's list. Brackets are in it in upper case, so that the lower-case ones stay.
_REMOVED: Final = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";", ""])


def caption_tokens(captions: Sequence[str]) -> list[list[str]]:
    """Split captions into lower-case tokens, without punctuation: a list of tokens for each caption.

    Line breaks in a caption are spaces. A no-break space joins the words of one token, such as "2 1/2".

    The first word of the next caption counts, because Java reads all captions as one file: "plan b." gives "b." at the
    end, but "b" before a caption that begins with "A". Nothing else depends on other captions.
    """
    lines: list[list[str]] = [[] for _ in captions]
    text = "\n".join(" ".join(caption.splitlines()) for caption in captions).replace("\xad", "")
    line = 0
    for match in _TOKEN.finditer(text):
        if match[0] == "\n":
            line += 1
        elif (token := _normalized(match[0].lower())) not in _REMOVED:
            lines[line].append(token)
    return lines


def _normalized(token: str) -> str:
    if token in _SINGLE:
        return _SINGLE[token]
    if set(token) == {"."}:
        return token[:3]
    if set(token) == {"-"}:
        return token if len(token) == 1 or len(token) > 4 else "--"
    if all(map(_QUOTES.__contains__, map(ord, token))):
        return token.translate(_QUOTES)
    if _SHORTENED.fullmatch(token):
        return re.sub(_A, "'", token)
    for part, normal in _PARTS.items():
        token = token.replace(part, normal)
    return token
