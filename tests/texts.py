"""Texts that break programs that do not take them as text."""

TEXTS = {
    "quotes": """"a" 'b' `c` “d” \\ \\n ${e} {{f}} %s""",
    "markup": "</script><script>run()</script>",
    "attributes": '"><img src=x onerror=run()>',
    "comments": "<!-- ]]> --> &amp; &#60; <style>",
    "addresses": "100 % #1 & a=b?c:d,e;f+g %2C %3A",
    "emoji": "🚲👩‍🔬 é é ﬁ",
    "right to left": "עגלה ו دراجة 3",
    "formula": "=1+1;@SUM(A1)",
    "json": '{"a": [null, 1e999]}, __proto__',
    "spaces": "  two  each side  ",
}
"""Name -> a text of at most 40 characters on one line, without control characters."""

LONG = "".join(f"{n}: {text}\n" for n, text in enumerate([*TEXTS.values()] * 9))[:2000]
"""2,000 characters on several lines."""
