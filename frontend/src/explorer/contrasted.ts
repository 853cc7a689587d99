/** A circuit on two photographs: what its diagram is painted by, and what differs most. */

import { signal } from "@preact/signals";
import type { Contrast as Paint } from "../app/source.js";
import type { Contrast } from "./api.js";

/** The circuit whose diagram is painted by two photographs, and what its parts do on them. */
export const contrasted = signal<{ of: string; value: Paint } | null>(null);

/** What each part does on both photographs, to look up. */
export function paintOf({ layers }: Contrast): Paint {
  const found = new Map<string, readonly [number, number]>();
  const put = (of: unknown[], pair: readonly [number, number]) => found.set(of.join(" "), pair);
  for (const { layer, filters, outputs, kernels, added } of layers) {
    filters.forEach((filter, i) => put([layer, filter, null], outputs[i]!));
    kernels.forEach(([filter, input], i) => put([layer, filter, input], added[i]!));
  }
  return ({ layer, filter, input }) => found.get([layer, filter, input].join(" ")) ?? null;
}

/** The numbers of the pairs that differ most, the most first. */
export function differing(pairs: readonly (readonly [number, number])[], most: number): number[] {
  const by = pairs.map(([a, b]) => Math.abs(a - b));
  return [...pairs.keys()].sort((i, j) => by[j]! - by[i]!).slice(0, most);
}
