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

/** The hash for `view`, without its "#": only what differs from `base`. A group is its nodes, a colon, its name; a
 *  label or a note its node, a colon, its text. */
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
  const ranges = ({ collapsed }: View) => collapsed.map(({ first, last }) => `${first}-${last}`).join();
  if (ranges(view) !== ranges(base)) put("collapsed", ranges(view));
  if (JSON.stringify(view.notes) !== JSON.stringify(base.notes)) {
    if (view.notes.length === 0) put("label", "");
    for (const { node, label, note } of view.notes) {
      put("label", `${node}:${label}`);
      if (note) put("note", `${node}:${note}`);
    }
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
    out.groups = split(given, "group").map(([nodes, name]) => ({ nodes: numbers(nodes), name }));
  }
  const collapsed = given.get("collapsed");
  if (collapsed !== null)
    out.collapsed = collapsed.split(",").map((range) => {
      const [first, last] = range.split("-").map(Number);
      return { first, last };
    });
  if (given.has("label")) {
    const notes = new Map(pairs(given, "note"));
    out.notes = pairs(given, "label").map(([node, label]) => ({ node, label, note: notes.get(node) ?? "" }));
  }
  return out as Partial<View>;
}

/** What stands before and after the first colon of each value of a key. */
function split(given: URLSearchParams, key: string): [string, string][] {
  const texts = given.getAll(key).filter((text) => text.includes(":"));
  return texts.map((text) => [text.slice(0, text.indexOf(":")), text.slice(text.indexOf(":") + 1)]);
}

function pairs(given: URLSearchParams, key: string): [number, string][] {
  return split(given, key).map(([node, text]) => [Number(node), text]);
}

function numbers(text: string): number[] {
  return text === "" ? [] : text.split(",").map(Number);
}
