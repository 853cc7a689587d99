/** What Python asks of the core through an embedded engine: JSON text in, text out. */

import { decode } from "./decode.js";
import { draw } from "./scene.js";
import { svg as toSvg } from "./svg.js";
import type { Document, View } from "./types.js";
import { onPaper, viewOf } from "./view.js";

/** Widths in points, and a budget that can be read at that width. */
export const PRESETS = {
  screen: { width: 1440, medium: "screen", size: null, budget: {} },
  "180mm": { width: 510, medium: "paper", size: "180mm", budget: {} },
  "88mm": { width: 249, medium: "paper", size: "88mm", budget: { nodesPerColumn: 6, kernelsPerNode: 3 } },
} as const;

export interface FigureOptions {
  preset?: keyof typeof PRESETS; // "screen"
  dark?: boolean;
  view?: Partial<View>; // beyond the preset's budget and the document's own view
  tiles?: Record<string, string>; // drawn tiles as data URLs, each by its number
}

/** The figure of a document as SVG text. */
export function svg(documentJson: string, optionsJson = "{}"): string {
  const { graph, scene, options } = figure(documentJson, optionsJson);
  return toSvg(graph, scene, { dark: options.dark, size: PRESETS[options.preset ?? "screen"].size, tiles: options.tiles });
}

/** The numbers of the tiles that `svg` would show, as JSON: what a host should cut out of their pages and hand over. */
export function tiles(documentJson: string, optionsJson = "{}"): string {
  const { scene } = figure(documentJson, optionsJson);
  return JSON.stringify([...new Set(scene.nodes.map(({ tile }) => tile))].filter((tile) => tile >= 0).sort((a, b) => a - b));
}

function figure(documentJson: string, optionsJson: string) {
  const document = JSON.parse(documentJson) as Document;
  const options = JSON.parse(optionsJson) as FigureOptions;
  const { width, medium, budget } = PRESETS[options.preset ?? "screen"];
  const graph = decode(document);
  return { graph, options, scene: draw(graph, onPaper(viewOf(document, { ...document.view, ...options.view }), budget), { width, medium }) };
}

/** What a view draws, as JSON: numbers of nodes and edges (inner kernels and those of the image included), those that are lit, and the caption's.
 *  The document's own view plays no part: "{}" is the default view. */
export function drawn(documentJson: string, viewJson = "{}"): string {
  const document = JSON.parse(documentJson) as Document;
  const graph = decode(document);
  const { nodes, edges: lines, lit, selection, numbers } = draw(graph, viewOf(document, JSON.parse(viewJson) as Partial<View>), { width: 1440, medium: "screen" });
  const { edges, kernels, filters, path } = selection;
  const sorted = (lists: number[][]) => lists.flat().sort((a, b) => a - b);
  const isolated = lit && {
    nodes: sorted(nodes.filter((_, i) => lit.nodes[i]).map((node) => node.nodes)),
    edges: sorted(lines.filter((_, i) => lit.edges[i]).map((line) => line.edges)),
  };
  return JSON.stringify({ nodes: sorted(nodes.map((node) => node.nodes)), edges, kernels, filters, path, lit: isolated, caption: numbers });
}
