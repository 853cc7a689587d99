/** Colors with a meaning, for light and dark themes. They can be told apart in gray print and by the color-blind. */

export interface Palette {
  background: string;
  text: string;
  muted: string;
  faint: string; // stubs, bars, frames
  excites: string;
  inhibits: string;
  connects: string;
}

export const LIGHT: Palette = {
  background: "#ffffff",
  text: "#1f1f1f",
  muted: "#6e6e6e",
  faint: "#e4e2dd",
  excites: "#c2570c",
  inhibits: "#5b3a9e",
  connects: "#b4b4ae",
};

export const DARK: Palette = {
  background: "#17171a",
  text: "#ececea",
  muted: "#a3a3a0",
  faint: "#3a3a3e",
  excites: "#f0883e",
  inhibits: "#a78bfa",
  connects: "#66665f",
};

/** The color of an edge. */
export function edgeColor(palette: Palette, edge: { connection: boolean; sign: number }): string {
  return edge.connection ? palette.connects : edge.sign < 0 ? palette.inhibits : palette.excites;
}

const ZERO = [247, 246, 244];
const POSITIVE = [180, 78, 6];
const NEGATIVE = [84, 49, 150];

/** The heat map's color of a weight that is `value` of the kernel's largest: orange above zero, purple below, zero
 *  neutral. */
export function heat(value: number): string {
  const share = Math.min(1, Math.abs(value));
  const end = value < 0 ? NEGATIVE : POSITIVE;
  return `#${ZERO.map((zero, i) =>
    Math.round(zero + (end[i]! - zero) * share)
      .toString(16)
      .padStart(2, "0"),
  ).join("")}`;
}
