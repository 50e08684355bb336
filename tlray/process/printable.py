"""Names of the user's (classes, locations, reasons) where people read them: nothing in them is obeyed.

    printable("\x1b[31mred")              # "\\x1b[31mred": no terminal is told anything
    markdown("<b>a|b</b>")                # shown as it is, also in a table
    code("a`b")                           # the same as a code span

Programs read JSON, which holds every name exactly.
"""

import re

# Controls but tab and newline; marks that turn the direction of text, and other lines' ends; halves of characters
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
MARKDOWN = re.compile(r"[\\`*_\[\]|~$]")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def printable(text: str) -> str:
    """The text with control characters written out; tabs and ends of lines stay."""
    return OBEYED.sub(_written_out, text)


def in_one_line(text: str) -> str:
    """The same, with every run of blanks, tabs and ends of lines as one blank."""
    return printable(" ".join(text.split()))


def markdown(text: object) -> str:
    """Text of one line that means nothing but itself in Markdown, also within a table."""
    plain = in_one_line(str(text))
    escaped = MARKDOWN.sub(r"\\\g<0>", "".join(ENTITIES.get(character, character) for character in plain))
    return escaped.replace("://", "&#58;//")  # no link either


def code(text: object) -> str:
    """A code span, fenced by more backticks than the text has in a row; not for tables, which end at every `|`."""
    plain = in_one_line(str(text)) or "(empty)"
    longest = max((len(run) for run in re.findall("`+", plain)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {plain} {fence}" if plain.startswith("`") or plain.endswith("`") else f"{fence}{plain}{fence}"


def _written_out(match: re.Match[str]) -> str:
    number = ord(match[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
