/** Converts a view to the text after a URL's "#", and back. Only what differs from the document's view is written. */

import type { View } from "../core/types.js";

const NUMBERS = [
  "variant",
  "compare",
  "kernels",
  "nodesPerColumn",
  "kernelsPerNode",
  "root",
  "isolate",
  "share",
  "image",
] as const;
const TEXTS = ["paths", "pictures", "mode"] as const;

/** The hash for `view`, without its "#": only what differs from `base`. A group is its nodes, a colon, its name. */
export function formatHash(view: View, base: View): string {
  const out: string[] = [];
  const put = (key: string, value: string) =>
    out.push(`${key}=${encodeURIComponent(value).replace(/%2C/g, ",").replace(/%3A/g, ":")}`);
  for (const key of NUMBERS) if (view[key] !== base[key]) put(key, view[key] === null ? "" : String(view[key]));
  for (const key of TEXTS) if (view[key] !== base[key]) put(key, view[key]);
  if (view.pins.join() !== base.pins.join()) put("pins", view.pins.join());
  if (JSON.stringify(view.groups) !== JSON.stringify(base.groups)) {
    if (view.groups.length === 0) put("group", "");
    for (const group of view.groups) put("group", `${group.nodes.join()}:${group.name}`);
  }
  return out.join("&");
}

/** Parses a hash, without checking it against the document. Missing keys and invalid numbers are left out. */
export function parseHash(hash: string): Partial<View> {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const out: Record<string, unknown> = {};
  for (const key of NUMBERS) {
    const text = given.get(key);
    if (text === "") out[key] = null;
    else if (text !== null && Number.isFinite(Number(text))) out[key] = Number(text);
  }
  for (const key of TEXTS) if (given.has(key)) out[key] = given.get(key);
  const pins = given.get("pins");
  if (pins !== null) out.pins = numbers(pins);
  if (given.has("group")) {
    out.groups = given
      .getAll("group")
      .filter((text) => text.includes(":"))
      .map((text) => ({ nodes: numbers(text.slice(0, text.indexOf(":"))), name: text.slice(text.indexOf(":") + 1) }));
  }
  return out as Partial<View>;
}

function numbers(text: string): number[] {
  return text === "" ? [] : text.split(",").map(Number);
}
