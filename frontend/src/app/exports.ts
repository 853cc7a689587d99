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
async function svgText(store: Store, width: "screen" | keyof typeof PAPERS): Promise<string> {
  const { graph } = store;
  const view = store.view.value;
  const paper = width === "screen" ? null : PAPERS[width];
  const budget = paper && { nodesPerColumn: Math.min(paper.nodes, view.nodesPerColumn), kernelsPerNode: Math.min(paper.kernels, view.kernelsPerNode) };
  const scene = draw(graph, { ...view, ...budget }, paper ? { width: paper.width, medium: "paper" } : { width: store.width.value, medium: "screen" });
  const tiles = await store.pictures.cut(scene.nodes.map(({ tile }) => tile));
  return svg(graph, scene, { tiles, size: paper?.size, dark: !paper && store.theme.value === "dark" });
}

export async function exportSvg(store: Store, width: "screen" | keyof typeof PAPERS): Promise<void> {
  download(await svgText(store, width), "svg", "image/svg+xml");
}

/** The screen's SVG in pixels, at twice its size. */
export async function exportPng(store: Store): Promise<void> {
  const url = URL.createObjectURL(new Blob([await svgText(store, "screen")], { type: "image/svg+xml" }));
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
