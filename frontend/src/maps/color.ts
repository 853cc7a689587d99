/** Colors of points, for light and dark themes. */

import type { Theme } from "../app/source.js";
import { DARK, LIGHT } from "../core/color.js";

interface Inks {
  ground: string;
  ink: string;
  soft: string;
  none: string; // of a point without a value or group
  ramp: [low: string, middle: string, high: string];
}

export const INKS: Record<Theme, Inks> = {
  light: {
    ground: LIGHT.background,
    ink: LIGHT.text,
    soft: LIGHT.muted,
    none: "#b5b5b0",
    ramp: ["#d8bfac", "#c2570c", "#4d1f03"],
  },
  dark: {
    ground: DARK.background,
    ink: DARK.text,
    soft: DARK.muted,
    none: "#6b6c70",
    ramp: ["#4a3a30", "#d9702a", "#ffe2c9"],
  },
};

/** Colors of groups, which have no order. */
export const GROUPS = [
  "#c2570c",
  "#0072b2",
  "#009e73",
  "#8a5bd6",
  "#cc79a7",
  "#56b4e9",
  "#e69f00",
  "#7a7a00",
  "#a0522d",
] as const;

/** The color of a value from 0 to 1. */
export function rampColor(theme: Theme, value: number): string {
  const [low, middle, high] = INKS[theme].ramp;
  const share = Math.min(1, Math.max(0, value));
  return share < 0.5 ? between(low, middle, 2 * share) : between(middle, high, 2 * share - 1);
}

function between(a: string, b: string, share: number): string {
  const [one, other] = [a, b].map((text) => [1, 3, 5].map((n) => Number.parseInt(text.slice(n, n + 2), 16)));
  return `rgb(${one!.map((value, n) => Math.round(value + share * (other![n]! - value))).join(" ")})`;
}
