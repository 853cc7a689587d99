/** A scene as self-contained SVG text, for papers and exports; the same from every engine. */

import { DARK, edgeColor, heat, LIGHT, type Palette } from "./color.js";
import { type Graph, gainOf, kernel } from "./decode.js";
import { count, plural } from "./format.js";
import { measures } from "./place.js";
import { short } from "./route.js";
import { barWidth, edgeTitle } from "./scene.js";
import type { KernelMap, Label, LegendItem, Mark, Scene, SceneEdge, SceneNode } from "./scene-types.js";
import { plain } from "./text.js";
import { NodeKind } from "./types.js";

const FONTS = "Inter, Helvetica, Arial, 'Liberation Sans', sans-serif";

/** How the two sides of a comparison are dashed, in widths of the widest edge. */
export const DASHES: Record<Mark, number[]> = { both: [], a: [2.2, 0.6], b: [0.35, 0.65] };

export const DIM = 0.08; // the opacity of what is not lit, in figures and on the page

export interface SvgOptions {
  dark?: boolean;
  size?: string | null; // what it should measure on paper, as "180mm"; null: its own pixels
  /** Drawn tiles as pictures of their own, by number: data URLs that the host cut out of their pages. */
  tiles?: Record<string, string>;
}

/** The scene as SVG. A node whose tile is missing has a sign instead of a picture. */
export function svg(graph: Graph, scene: Scene, { dark = false, size = null, tiles = {} }: SvgOptions = {}): string {
  const palette = dark ? DARK : LIGHT;
  const { width, height } = scene;
  const nodes = scene.nodes.map((node, i) => nodeSvg(graph, scene, node, i, palette, tiles));
  const body = [
    `<rect width="${short(width)}" height="${short(height)}" fill="${palette.background}"/>`,
    labelSvg(scene.title, palette.text, 'font-weight="600"'),
    labelSvg(scene.caption, palette.muted),
    labelSvg(scene.note, palette.text),
    ...scene.legend.map((item) => legendSvg(scene, item, palette)),
    ...scene.headings.map((label) => labelSvg(label, palette.muted)),
    '<g fill="none">',
    ...scene.edges.map((edge, i) => edgeSvg(graph, scene, edge, !scene.lit || scene.lit.edges[i] === 1, palette)),
    "</g>",
    ...nodes,
    ...scene.glyphs.map((glyph) => mapSvg(graph, scene, glyph, edgeColor(palette, scene.edges[glyph.edge]!), palette)),
    ...scene.more.map(({ bar, shown, label }) =>
      [
        rect(bar.x, bar.y, bar.width, bar.height, `rx="${short(bar.height / 2)}" fill="${palette.faint}"`),
        rect(bar.x, bar.y, bar.width * shown, bar.height, `rx="${short(bar.height / 2)}" fill="${palette.muted}"`),
        labelSvg(label, palette.muted),
      ].join(""),
    ),
  ];
  const measured =
    size === null
      ? `width="${short(width)}" height="${short(height)}"`
      : `width="${size}" height="${scaled(size, height / width)}"`;
  const box = `viewBox="0 0 ${short(width)} ${short(height)}"`;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" ${measured} ${box} font-family="${FONTS}" role="img">`,
    `<title>${escaped(plain(graph.document.meta.title))}</title>`,
    `<desc>${escaped(plain(description(graph, scene)))}</desc>`,
    ...body,
    "</svg>\n",
  ].join("\n");
}

/** What a figure is of, and its caption in full. */
function description({ document: { meta, variants } }: Graph, { view, numbers }: Scene): string {
  const circuits = [view.variant, ...(view.compare === null ? [] : [view.compare])].map((each) => variants[each]!);
  const sizes = circuits.map(({ kept, relevant }) => `${count(kept)} of ${plural(relevant, "kernel")} kept`);
  return `${meta.model}, ${meta.feature}: ${sizes.join("; ")}. ${numbers.text}`;
}

/** "180mm" times a ratio. */
function scaled(size: string, ratio: number): string {
  return size.replace(/^[\d.]+/, (value) => short(Number(value) * ratio));
}

/** Text escaped for markup and attributes. */
export function escaped(text: string): string {
  return text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);
}

function rect(x: number, y: number, width: number, height: number, more: string): string {
  return `<rect x="${short(x)}" y="${short(y)}" width="${short(width)}" height="${short(height)}" ${more}/>`;
}

function labelSvg({ x, y, lines, size, anchor, turned, title }: Label, color: string, more = ""): string {
  if (!lines.length) return "";
  const turn = turned ? ` transform="rotate(-90 ${short(x)} ${short(y)})"` : "";
  const spans = lines.map((text, i) =>
    i ? `<tspan x="${short(x)}" dy="${short(size * 1.25)}">${escaped(text)}</tspan>` : escaped(text),
  );
  const hint = title && title !== lines.join(" ") ? `<title>${escaped(title)}</title>` : "";
  const place = `x="${short(x)}" y="${short(y)}" font-size="${short(size)}" text-anchor="${anchor}"`;
  return `<text ${place} fill="${color}"${turn}${more ? ` ${more}` : ""}>${hint}${spans.join("")}</text>`;
}

function dashes(mark: Mark, widest: number): string {
  return mark === "both" ? "" : ` stroke-dasharray="${DASHES[mark].map((part) => short(part * widest)).join(" ")}"`;
}

function edgeSvg(graph: Graph, scene: Scene, edge: SceneEdge, lit: boolean, palette: Palette): string {
  const sizes = measures(scene);
  const color = edgeColor(palette, edge);
  const around = short(edge.width + sizes.edge[1] * 0.3);
  const halo = lit
    ? `<path d="${edge.path}" stroke="${palette.background}" stroke-width="${around}" stroke-opacity="0.7"/>`
    : "";
  const line = `<path d="${edge.path}" stroke-width="${short(edge.width)}"${dashes(edge.mark, sizes.edge[1])}/>`;
  const bar = edge.bar ? `<path d="${edge.bar}" stroke-width="${short(barWidth(sizes))}"/>` : "";
  // Opacity of strokes, not of groups: SVG viewers take seconds to composite each group.
  const opacity = short((scene.lit ? 0.92 : 0.78) * (lit ? 1 : DIM));
  const title = `<title>${escaped(edgeTitle(graph, scene, edge))}</title>`;
  return `<g>${title}${halo}<g stroke="${color}" stroke-opacity="${opacity}">${line}${bar}</g></g>`;
}

function nodeSvg(
  graph: Graph,
  scene: Scene,
  node: SceneNode,
  index: number,
  palette: Palette,
  tiles: Record<string, string>,
): string {
  const lit = !scene.lit || scene.lit.nodes[index] === 1;
  const isolated = scene.lit !== null && scene.view.isolate !== null && node.nodes.includes(scene.view.isolate);
  const { x, y, size } = node;
  const sizes = measures(scene);
  const [left, top] = [x - size / 2, y - size / 2];
  const hair = sizes.edge[1] * 0.11;
  const stack =
    node.nodes.length > 1
      ? [2, 1].map((step) =>
          rect(
            left + step * hair * 3,
            top - step * hair * 3,
            size,
            size,
            `fill="${palette.faint}" stroke="${palette.background}" stroke-width="${short(hair)}"`,
          ),
        )
      : [];
  const strong = isolated || node.pinned || node.mark !== "both";
  const width = short(isolated ? hair * 3 : strong ? hair * 2 : hair);
  const stroke = `stroke="${strong ? palette.text : palette.faint}" stroke-width="${width}"`;
  const frame = rect(left, top, size, size, `fill="none" ${stroke}${dashes(node.mark, sizes.edge[1])}`);
  const stub = [node.hiddenIn, node.hiddenOut].map((each) =>
    each ? `<path d="${each.path}" ${stubStroke(sizes.edge[1], palette)}/>` : "",
  );
  return `<g${lit ? "" : ` opacity="${DIM}"`}>${[
    `<title>${escaped(node.label.title)}</title>`,
    ...stub,
    rect(left - hair * 2, top - hair * 2, size + hair * 4, size + hair * 4, `fill="${palette.background}"`),
    ...stack,
    pictureSvg(node, palette, tiles),
    frame,
    ...node.inner.map((map) => mapSvg(graph, scene, map, palette.connects, palette)),
    labelSvg({ ...node.label, title: "" }, node.target ? palette.text : palette.muted),
  ].join("")}</g>`;
}

function stubStroke(widest: number, palette: Palette): string {
  const dots = `stroke-linecap="round" stroke-dasharray="0 ${short(widest * 0.5)}"`;
  return `fill="none" stroke="${palette.connects}" stroke-width="${short(widest * 0.22)}" ${dots}`;
}

/** The places of a node's tiles: one fills the square, four share it with a gap between them. */
export function tilePlaces({ x, y, size, tiles }: SceneNode): { tile: number; x: number; y: number; size: number }[] {
  const [left, top] = [x - size / 2, y - size / 2];
  const [step, side] = tiles.length > 1 ? [size * 0.52, size * 0.48] : [0, size];
  return tiles.map((tile, i) => ({ tile, x: left + (i % 2) * step, y: top + (i >> 1) * step, size: side }));
}

/** A node's tiles, or a sign if it has none. */
function pictureSvg(node: SceneNode, palette: Palette, cut: Record<string, string>): string {
  const { x, y, size, kind, label } = node;
  const [left, top] = [x - size / 2, y - size / 2];
  const shown = tilePlaces(node).filter(({ tile }) => cut[tile] !== undefined);
  if (shown.length)
    return shown
      .map(({ tile, x, y, size }) => {
        const place = `x="${short(x)}" y="${short(y)}" width="${short(size)}" height="${short(size)}"`;
        return `<image ${place} preserveAspectRatio="none" href="${escaped(cut[tile]!)}"/>`;
      })
      .join("");
  const sign: Record<number, string> = { [NodeKind.add]: "+", [NodeKind.gate]: "\u00d7", [NodeKind.mix]: "\u03a3" };
  const font = Math.max(size * 0.55, label.size); // no text is smaller than a label
  const place = `x="${short(x)}" y="${short(y + font * 0.35)}" font-size="${short(font)}" text-anchor="middle"`;
  const text = sign[kind] ? `<text ${place} fill="${palette.muted}">${sign[kind]}</text>` : "";
  return text && `${rect(left, top, size, size, `fill="${palette.faint}"`)}${text}`;
}

/** A kernel's heat map in a frame, as the circuit uses it: with the sign of its gain. */
function mapSvg(
  graph: Graph,
  scene: Scene,
  { kernel: of, x, y, width, height }: KernelMap,
  color: string,
  palette: Palette,
): string {
  const { weights, width: columns, height: rows } = kernel(graph, of)!;
  const turn = Math.sign(gainOf(graph, scene.view, of));
  const hair = measures(scene).edge[1] * 0.12;
  const largest = weights.reduce((most, weight) => Math.max(most, Math.abs(weight)), 0) || 1;
  const [left, top] = [x - width / 2, y - height / 2];
  const cell = width / columns;
  const cells = Array.from(weights, (weight, i) =>
    rect(
      left + (i % columns) * cell,
      top + Math.floor(i / columns) * (height / rows),
      cell,
      height / rows,
      `fill="${heat((turn * weight) / largest)}"`,
    ),
  );
  const frame = rect(left, top, width, height, `fill="none" stroke="${color}" stroke-width="${short(hair)}"`);
  const ground = `fill="${palette.background}"`;
  const behind = rect(left - hair * 2, top - hair * 2, width + hair * 4, height + hair * 4, ground);
  return `<g>${behind}<g shape-rendering="crispEdges">${cells.join("")}</g>${frame}</g>`;
}

function legendSvg(scene: Scene, { kind, x, y, label }: LegendItem, palette: Palette): string {
  const sizes = measures(scene);
  const length = sizes.font * 2.2;
  const middle = y - sizes.font * 0.32;
  const width = sizes.edge[1] * 0.5;
  const line = `d="M${short(x)} ${short(middle)}h${short(length)}"`;
  const end = `d="M${short(x + length)} ${short(middle - width)}v${short(width * 2)}"`;
  const stroke = (color: string, mark: Mark = "both") =>
    `<path ${line} stroke="${color}" stroke-width="${short(width)}" fill="none"${dashes(mark, sizes.edge[1])}/>`;
  const bar = `<path ${end} stroke="${palette.inhibits}" stroke-width="${short(barWidth(sizes))}"/>`;
  const signs: Record<LegendItem["kind"], () => string> = {
    excites: () => stroke(palette.excites),
    inhibits: () => stroke(palette.inhibits) + bar,
    connects: () => stroke(palette.connects),
    hidden: () => `<path ${line} ${stubStroke(sizes.edge[1], palette)}/>`,
    both: () => stroke(palette.text),
    onlyA: () => stroke(palette.text, "a"),
    onlyB: () => stroke(palette.text, "b"),
    text: () => "",
  };
  return signs[kind]() + labelSvg(label, palette.muted);
}
