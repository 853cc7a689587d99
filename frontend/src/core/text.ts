/** Measures text without a browser, wraps it and shortens it. */

// Widths in units of the font's size, a little more than Helvetica's, so that other fonts fit too.
const NARROW = /[ijl.,:;'|!I()[\]{}ftr\-\u00b7]/;
const WIDE = /[mwMW@%\u2026+]/;
const CAPITAL = /[A-Z&]/;

/** The approximate width of a text in the units of its size, rather too large than too small. */
export function textWidth(text: string, size: number): number {
  let width = 0;
  for (const sign of text) {
    if (sign === " " || sign === "\u00a0") width += 0.31;
    else if (NARROW.test(sign)) width += 0.38;
    else if (WIDE.test(sign)) width += 0.92;
    else if (CAPITAL.test(sign)) width += 0.72;
    else width += sign.codePointAt(0)! < 0x2000 ? 0.59 : 1.05;
  }
  return width * size;
}

/** Removes characters that would change how other text is read: bidi and other controls, broken surrogates. */
export function plain(text: string): string {
  return text
    .replace(/[\t\n\r]+/g, " ")
    .replace(/[\p{Cc}\p{Cs}\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufffe\uffff]/gu, "\ufffd");
}

/** The text, with its middle replaced by an ellipsis if it is wider than `room`. */
export function shorten(text: string, room: number, size: number): string {
  if (textWidth(text, size) <= room) return text;
  const signs = [...text];
  for (let kept = signs.length - 1; kept > 0; kept--) {
    const head = Math.ceil(kept / 2);
    const short = `${signs.slice(0, head).join("")}\u2026${signs.slice(signs.length - (kept - head)).join("")}`;
    if (textWidth(short, size) <= room) return short;
  }
  return "";
}

/** The text in lines no wider than `room`, broken at spaces. A word that is wider is shortened. */
export function wrap(text: string, room: number, size: number): string[] {
  const lines: string[] = [];
  let line = "";
  for (const word of text.split(" ")) {
    const longer = line ? `${line} ${word}` : word;
    if (!line || textWidth(longer, size) <= room) line = longer;
    else {
      lines.push(line);
      line = word;
    }
  }
  return [...lines, line].map((each) => shorten(each, room, size));
}

/** A name in as few lines as it needs, at most so many, broken where names break (dots, dashes, spaces); null if that
 *  does not fit. */
export function broken(text: string, room: number, size: number, most: number): string[] | null {
  const lines = [""];
  for (const part of text.split(/(?<=[._/\- ])/)) {
    if (lines.at(-1) !== "" && textWidth((lines.at(-1) + part).trim(), size) > room) lines.push("");
    lines[lines.length - 1] += part;
  }
  const trimmed = lines.map((line) => line.trim());
  return trimmed.length <= most && trimmed.every((line) => textWidth(line, size) <= room) ? trimmed : null;
}
