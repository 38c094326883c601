"""Writes src/unicode_words.inc: the characters of Unicode's \\w, as runtime/wordlevel.py has them.

From the repository's root: `.venv/bin/python runtime/cpp/unicode_table.py > runtime/cpp/src/unicode_words.inc`.
"""

import sys
import unicodedata

from videossm.runtime.wordlevel import WordLevelTokenizer

tokenizer = WordLevelTokenizer({"x": 0}, (), 0, lowercase=False, punctuation=True)
letters = [point for point in range(sys.maxunicode + 1) if tokenizer._kind(chr(point)) == "letter"]
ranges: list[list[int]] = []
for point in letters:
    if ranges and ranges[-1][1] == point - 1:
        ranges[-1][1] = point
    else:
        ranges.append([point, point])

print(f"// By unicode_table.py, of Unicode {unicodedata.unidata_version}: first and last characters.")
line = ""
for first, last in ranges:
    entry = f"{{0x{first:X}, 0x{last:X}}},"
    if len(line) + len(entry) + 1 > 120:
        print(line)
        line = ""
    line += (" " if line else "") + entry
print(line)
