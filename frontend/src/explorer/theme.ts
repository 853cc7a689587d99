/** The colors: those of the reader's system, or those that the reader chose. */

import { computed, effect, signal } from "@preact/signals";
import { onSystemTheme, type Theme } from "../app/source.js";

export const THEMES = ["system", "light", "dark"] as const;

const KEY = "convcircuits-theme";
const system = signal<Theme>("light");

/** What the reader chose. */
export const chosen = signal<(typeof THEMES)[number]>(kept());

export const theme = computed<Theme>(() => (chosen.value === "system" ? system.value : chosen.value));

function kept() {
  try {
    return THEMES.find((each) => each === localStorage.getItem(KEY)) ?? THEMES[0];
  } catch {
    return THEMES[0]; // the browser keeps nothing
  }
}

/** Follows the system and other tabs, and keeps what is chosen. */
export function follow(): void {
  onSystemTheme((now) => {
    system.value = now;
  });
  addEventListener("storage", ({ key }) => {
    if (key === KEY || key === null) chosen.value = kept();
  });
  effect(() => {
    document.documentElement.style.colorScheme = theme.value;
    try {
      if (chosen.value === "system") localStorage.removeItem(KEY);
      else localStorage.setItem(KEY, chosen.value);
    } catch {
      // it holds until the page is left
    }
  });
}
