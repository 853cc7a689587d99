/** Files of the view: SVG, PNG, and the document itself with the view saved in it. */

import { draw } from "../core/scene.js";
import { svg } from "../core/svg.js";
import type { Document } from "../core/types.js";
import type { Store } from "./store.js";

/** On paper: its width, in points and as it is written, and the most that can be read at that width. */
const PAPERS = {
  180: { width: 510, size: "180mm", nodes: Infinity, kernels: Infinity },
  88: { width: 249, size: "88mm", nodes: 6, kernels: 3 },
} as const;

/** The view as SVG text: as wide as on the screen, or so many millimetres for a paper. */
function svgText(store: Store, width: "screen" | keyof typeof PAPERS): string {
  const { graph } = store;
  const view = store.view.value;
  if (width === "screen") return svg(graph, draw(graph, view, { width: store.width.value, medium: "screen" }), { dark: store.theme.value === "dark" });
  const { width: points, size, nodes, kernels } = PAPERS[width];
  const budget = { nodesPerColumn: Math.min(nodes, view.nodesPerColumn), kernelsPerNode: Math.min(kernels, view.kernelsPerNode) };
  return svg(graph, draw(graph, { ...view, ...budget }, { width: points, medium: "paper" }), { size });
}

export function exportSvg(store: Store, width: "screen" | keyof typeof PAPERS): void {
  download(svgText(store, width), "svg", "image/svg+xml");
}

/** The screen's SVG in pixels, at twice its size. */
export async function exportPng(store: Store): Promise<void> {
  const url = URL.createObjectURL(new Blob([svgText(store, "screen")], { type: "image/svg+xml" }));
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = 2 * image.naturalWidth;
  canvas.height = 2 * image.naturalHeight;
  canvas.getContext("2d")!.drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(url);
  canvas.toBlob((png) => png && download(png, "png", "image/png"));
}

/** The document with the view in it, as JSON. */
export function saved(store: Store): string {
  const document: Document = { ...store.graph.document, view: store.view.value };
  return JSON.stringify(document);
}

export function download(content: string | Blob, ending: string, type: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = `circuit.${ending}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
