/** The functions that Python calls through an embedded engine: JSON text in, text out. */

import { closedAtFirst } from "./blocks.js";
import { decode } from "./decode.js";
import { draw } from "./scene.js";
import type { Scene } from "./scene-types.js";
import { svg as toSvg } from "./svg.js";
import { defaultView, onPaper, ownView, viewOf } from "./view.js";

/** Widths in points, each with a budget that is readable at that width. */
export const PRESETS = {
  screen: { width: 1440, medium: "screen", size: null, budget: {} },
  "180mm": { width: 510, medium: "paper", size: "180mm", budget: {} },
  "88mm": { width: 249, medium: "paper", size: "88mm", budget: { nodesPerColumn: 6, kernelsPerNode: 3 } },
} as const;

type Preset = keyof typeof PRESETS;

/** The figures of a document, which is parsed once. Arguments and results are text, which is all that embedded engines
 *  can exchange. */
export function figures(documentJson: string) {
  const graph = decode(JSON.parse(documentJson));
  const scenes = new Map<Preset, Scene>();
  const sceneOf = (preset: Preset): Scene => {
    const { width, medium, budget } = PRESETS[preset];
    if (!scenes.has(preset)) scenes.set(preset, draw(graph, onPaper(graph, ownView(graph), budget), { width, medium }));
    return scenes.get(preset)!;
  };
  return {
    /** The ranges of columns that the view of a network of more than `most` draws as one at first, as JSON. */
    blocks(most: string): string {
      return JSON.stringify(closedAtFirst(graph, Number(most)));
    },
    /** The numbers of the tiles that a figure shows, as JSON: what a host should cut out of their pages and hand to
     *  `svg`. */
    tiles(preset: Preset): string {
      return JSON.stringify([...new Set(sceneOf(preset).nodes.flatMap(({ tiles }) => tiles))].sort((a, b) => a - b));
    },
    /** The figure as SVG text; the tiles as data URLs, each by its number, as JSON. */
    svg(preset: Preset, tilesJson: string): string {
      return toSvg(graph, sceneOf(preset), {
        size: PRESETS[preset].size,
        tiles: JSON.parse(tilesJson) as Record<string, string>,
      });
    },
    /** What a view draws, as JSON: numbers of nodes and edges (inner kernels and those of the image included), those
     *  that are lit, and the caption's. The document's own view plays no part: "{}" is the default view. */
    drawn(viewJson: string): string {
      const view = viewOf(graph, defaultView(graph), JSON.parse(viewJson));
      const { nodes, edges: lines, lit, selection, numbers } = draw(graph, view, { width: 1440, medium: "screen" });
      const { edges, kernels, filters, path } = selection;
      const sorted = (lists: number[][]) => lists.flat().sort((a, b) => a - b);
      const isolated = lit && {
        nodes: sorted(nodes.filter((_, i) => lit.nodes[i]).map((node) => node.nodes)),
        edges: sorted(lines.filter((_, i) => lit.edges[i]).map((line) => line.edges)),
      };
      return JSON.stringify({
        nodes: sorted(nodes.map((node) => node.nodes)),
        edges,
        kernels,
        filters,
        path,
        lit: isolated,
        caption: numbers,
      });
    },
  };
}
