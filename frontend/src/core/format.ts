/** Numbers and nouns as readers see them, the same in every host (an embedded engine may have no Intl). */

/** 12345 as "12,345". */
export function count(value: number): string {
  return String(Math.round(value)).replace(/\B(?=(\d{3})+$)/g, ",");
}

/** 0.553 as "55 %". A share that only rounds to 0 % or 100 % is written with "<" or ">". */
export function percent(share: number): string {
  if (share > 0 && share < 0.005) return "<1 %";
  if (share < 1 - 1e-9 && share > 0.995) return ">99 %";
  return `${decimal(100 * share, 0)} %`;
}

/** A number with a fixed number of decimals, a true minus sign and no negative zero. */
export function decimal(value: number, digits = 2): string {
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "\u2212");
}

/** A number of any size with three significant digits. */
export function significant(value: number): string {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  const size = Math.floor(Math.log10(Math.abs(value)));
  if (size >= 5 || size < -3) return value.toExponential(2).replace(/-/g, "\u2212").replace("e+", "e");
  return decimal(value, Math.max(0, 2 - size));
}

/** A gain, as a factor. */
export function gainText(gain: number): string {
  return `\u00d7 ${significant(gain)}`;
}

/** A count with its noun: plural(1, "kernel") is "1 kernel". */
export function plural(value: number, noun: string): string {
  return `${count(value)} ${noun}${value === 1 ? "" : "s"}`;
}
