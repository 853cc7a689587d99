/** All text of a scene: shortened to the available room, with the full text in its title. */

import { spanAt, spanName } from "./blocks.js";
import type { Graph } from "./decode.js";
import { count, percent } from "./format.js";
import { circuitName, nodeName } from "./names.js";
import type { Columns, Measures } from "./place.js";
import type { Box } from "./route.js";
import type { Canvas, Label, LegendItem, More } from "./scene-types.js";
import type { Parts } from "./select.js";
import { broken, plain, shorten, textWidth } from "./text.js";
import { type Cut, NodeKind, type Span, type View } from "./types.js";

export function lineHeight(size: number): number {
  return size * 1.25;
}

/** A label with these lines, and a title if that says more. */
export function line(
  lines: string[],
  x: number,
  y: number,
  size: number,
  anchor: Label["anchor"],
  title: string,
): Label {
  return { x, y, lines, size, anchor, turned: false, title };
}

/** The box that a label takes up. */
export function labelBox({ x, y, lines, size, anchor, turned }: Label): Box {
  const width = Math.max(0, ...lines.map((each) => textWidth(each, size)));
  const height = lines.length ? size + (lines.length - 1) * lineHeight(size) : 0;
  const before = anchor === "start" ? 0 : anchor === "middle" ? width / 2 : width;
  if (turned)
    return { left: x - size * 0.8, right: x - size * 0.8 + height, top: y - (width - before), bottom: y + before };
  return { left: x - before, right: x - before + width, top: y - size * 0.8, bottom: y - size * 0.8 + height };
}

/** The lines below a node: of a range of columns what is `inside`; its label and number; its name; or its number, with
 *  its layer's where the column holds several. */
export function nodeLines(
  graph: Graph,
  parts: Parts,
  unit: number,
  several: boolean,
  room: number,
  sizes: Measures,
  inside = "",
): string[] {
  const nodes = parts.members[unit]!;
  const size = sizes.small;
  if (parts.spans[unit])
    return inside
      .split(", ")
      .map((text) => shorten(text, room, size))
      .filter(Boolean);
  if (parts.groups[unit] !== null) return [shorten(plain(`${parts.groups[unit]} \u00d7${nodes.length}`), room, size)];
  const node = nodes[0]!;
  const name = graph.document.nodes.names[node];
  const own = parts.labels.get(node);
  if (name !== undefined && !own) return broken(plain(name), room, size, 2) ?? [shorten(plain(name), room, size)];
  const number = unitText(graph, node);
  if (own) {
    const whole = `${own} \u00b7 ${number}`;
    if (textWidth(whole, size) <= 0.7 * room) return [whole];
    return [shorten(own, room, size), ...(textWidth(number, size) <= room ? [number] : [])].filter(Boolean);
  }
  if (!several || graph.layer[node]! < 0) return textWidth(number, size) <= room ? [number] : [];
  const layer = plain(graph.document.layers[graph.layer[node]!]!.label);
  const whole = `${layer} \u00b7 ${number}`;
  if (textWidth(whole, size) <= room) return [whole];
  return textWidth(number, size) <= room ? [shorten(layer, room, size), number].filter(Boolean) : [];
}

const KINDS: Record<number, string> = { [NodeKind.add]: "sum", [NodeKind.gate]: "gate", [NodeKind.mix]: "mix" };

function unitText(graph: Graph, node: number): string {
  const kind = KINDS[graph.kind[node]!];
  if (graph.unit[node]! < 0) return kind ?? "feature";
  return kind && graph.layer[node]! < 0 ? `${kind} ${graph.unit[node]}` : String(graph.unit[node]);
}

/** The full text of a node's label: its name, or a group's name with its members', and its flow. */
export function nodeTitle(graph: Graph, parts: Parts, unit: number): string {
  return `${unitName(graph, parts, unit)}, ${percent(parts.flow[unit]!)} of the flow`;
}

/** The name of a node, or of a group with the names of its members. */
export function unitName(graph: Graph, parts: Parts, unit: number): string {
  if (parts.spans[unit]) return parts.groups[unit]!;
  const group = parts.groups[unit] === null ? "" : `${plain(parts.groups[unit]!)}: `;
  return group + parts.members[unit]!.map((node) => nodeName(graph, node, parts.labels)).join(", ");
}

const HEADING = 3; // lines

/** The columns' headings, in up to three lines and one for the receptive field or, if columns are narrow, all turned;
 *  and where they end. */
export function headings(
  graph: Graph,
  shown: number[],
  columns: Columns,
  top: number,
  sizes: Measures,
  spans: readonly Span[] = [],
): { labels: Label[]; bottom: number } {
  const size = sizes.small;
  const texts = shown.map((column) => {
    const span = spanAt(spans, column);
    const { alias, label } = graph.document.columns[column]!;
    return span ? spanName(graph, span) : plain(alias || label);
  });
  const fields = shown.map((column) => {
    const { sees } = graph.document.columns[spanAt(spans, column)?.last ?? column]!;
    return sees ? `sees ${count(sees)} px` : "";
  });
  const titles = shown.map((column, c) =>
    plain(
      [...new Set([texts[c], spanAt(spans, column) ? "" : graph.document.columns[column]!.detail, fields[c]])]
        .filter(Boolean)
        .join(", "),
    ),
  );
  const narrow = columns.room < size * 3.5 && texts.some((text) => !broken(text, columns.room, size, HEADING));
  if (narrow) {
    const most = size * 11;
    const short = texts.map((text) => shorten(text, most, size));
    const bottom = top + Math.max(...short.map((text) => textWidth(text, size)));
    return {
      labels: short.map((text, c) => ({
        ...line([text], columns.x[c]! + size * 0.3, bottom, size, "start", titles[c]!),
        turned: true,
      })),
      bottom,
    };
  }
  const fits = fields.every((text) => textWidth(text, size) <= columns.room);
  const lines = texts.map((text, c) => [
    ...(broken(text, columns.room, size, HEADING) ?? [shorten(text, columns.room, size)]),
    ...(fits && fields[c] ? [fields[c]] : []),
  ]);
  const bottom = top + Math.max(...lines.map((each) => each.length)) * lineHeight(size);
  return {
    labels: lines.map((each, c) =>
      line(
        each,
        columns.x[c]!,
        bottom - (each.length - 0.8) * lineHeight(size) + size * 0.05,
        size,
        "middle",
        titles[c]!,
      ),
    ),
    bottom,
  };
}

/** "+88 more · 55 % shown" and a bar below each column that hides nodes, all in the longest form that fits. */
export function moreLabels(
  hidden: { count: number; share: number }[],
  columns: Columns,
  top: number,
  sizes: Measures,
): More[] {
  const size = sizes.small;
  const forms = hidden.map(({ count: n, share }) => {
    const [more, shown] = [`+${count(n)}`, percent(share)];
    return [[`${more} more \u00b7 ${shown} shown`], [`${more} more`, `${shown} shown`], [more, shown]];
  });
  const fits = [0, 1, 2].find((form) =>
    hidden.every(({ count: n }, c) => !n || forms[c]![form]!.every((text) => textWidth(text, size) <= columns.room)),
  );
  const thickness = sizes.gap * 0.45;
  const width = Math.min(columns.room * 0.8, sizes.node[1]);
  const turnedHeight = Math.max(0, ...hidden.map(({ count: n }, c) => (n ? textWidth(forms[c]![0]![0]!, size) : 0)));
  return hidden.flatMap(({ count: n, share }, column): More[] => {
    if (!n) return [];
    const x = columns.x[column]!;
    const bar = { x: x - width / 2, y: top, width, height: thickness };
    const title = forms[column]![0]![0]!;
    const below = top + thickness + size * 0.4;
    const label =
      fits === undefined
        ? { ...line([title], x + size * 0.3, below + turnedHeight, size, "end", title), turned: true }
        : line(forms[column]![fits]!, x, below + size * 0.85, size, "middle", title);
    return [{ column, count: n, shown: share, label: label as Label, bar }];
  });
}

export const THICKER = "thicker = ";
export const SHARE = "share of the score = estimate, not measured";

/** The legend's items in rows from y = 0; `beside` says whether they fit beside the title. */
export function legend(
  graph: Graph,
  view: View,
  canvas: Canvas,
  sizes: Measures,
  title: string,
  what: {
    bundles: { connection: boolean; sign: number }[];
    hides: boolean;
    inner: boolean;
    grids: boolean;
    firsts: boolean;
  },
): { items: LegendItem[]; beside: boolean } {
  const entries: [LegendItem["kind"], string][] = [];
  if (what.bundles.some(({ sign }) => sign > 0)) entries.push(["excites", "excites"]);
  if (what.bundles.some(({ sign }) => sign < 0)) entries.push(["inhibits", "inhibits"]);
  if (what.bundles.some(({ connection }) => connection)) entries.push(["connects", "passed on without weights"]);
  if (what.hides) entries.push(["hidden", "more connections, hidden"]);
  if (view.compare !== null) {
    entries.push(["both", "in both"]);
    entries.push(["onlyA", `only ${circuitName(graph, view.variant, view)}`]);
    entries.push(["onlyB", `only ${circuitName(graph, view.compare, view)}`]);
  }
  const [own, other] = [view.variant, view.compare ?? view.variant].map(
    (each) => graph.document.variants[each]!.calibration?.thicker,
  );
  entries.push(["text", THICKER + ((own === other && own) || "matters more")]);
  if (what.grids) entries.push(["text", "small grid = the weights of this kernel"]);
  if (what.firsts) entries.push(["text", "first layer = its weights on the image, neutral = 0"]);
  const { cuts = [], wholes = [] } = graph.document.tiles;
  const beyond = ({ box: [top, left, tall, wide], whole }: Cut) =>
    Math.min(top, left) < 0 || top + tall > wholes[whole]!.size[0] || left + wide > wholes[whole]!.size[1];
  if (cuts.some(beyond)) entries.push(["text", "hatched = beyond the image"]);
  if (what.inner) entries.push(["text", "grid beside a number = this channel's own kernel"]);
  entries.push(["text", SHARE]);

  const size = sizes.font;
  const sign = size * 2.2;
  const inner = canvas.width - 2 * sizes.margin;
  const widths = entries.map(([kind, text]) => (kind === "text" ? 0 : sign + size * 0.5) + textWidth(text, size));
  const space = size * 1.5;
  const total = widths.reduce((sum, width) => sum + width + space, -space);
  const beside = total + textWidth(title, sizes.title) + 3 * space <= inner;
  let x = beside ? canvas.width - sizes.margin - total : sizes.margin;
  let y = 0;
  const items = entries.map(([kind, full], i): LegendItem => {
    if (x > sizes.margin && x + widths[i]! > canvas.width - sizes.margin + 0.01)
      [x, y] = [sizes.margin, y + lineHeight(size)];
    const text = shorten(full, inner - sign * 1.5, size);
    const item = {
      kind,
      x,
      y,
      label: line([text], kind === "text" ? x : x + sign + size * 0.5, y, size, "start", full),
    };
    x += widths[i]! + space;
    return item;
  });
  return { items, beside };
}
