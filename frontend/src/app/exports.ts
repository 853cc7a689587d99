/** Files of the view: SVG, PNG, and the document itself with the view saved in it. */

import { DocumentError } from "../core/decode.js";
import { PRESETS } from "../core/figure.js";
import { draw } from "../core/scene.js";
import { svg } from "../core/svg.js";
import type { Document, Meta } from "../core/types.js";
import { leftOut, onPaper, readViewFile, viewFile } from "../core/view.js";
import type { Store } from "./store.js";

/** The view as SVG text: as wide as on the screen or, exactly as Python writes it, for a paper. */
async function svgText(store: Store, preset: keyof typeof PRESETS): Promise<string> {
  const { graph } = store;
  const { medium, size, budget, width } = PRESETS[preset];
  const screen = preset === "screen";
  const scene = draw(graph, onPaper(graph, store.view.value, budget), {
    width: screen ? store.plan.value.width : width,
    medium,
  });
  const tiles = await store.pictures.cut(scene.nodes.flatMap((node) => node.tiles));
  return svg(graph, scene, { tiles, size, dark: screen && store.theme.value === "dark" });
}

export async function exportSvg(store: Store, preset: keyof typeof PRESETS): Promise<void> {
  const width = preset === "screen" ? "" : `-${preset}`;
  download(store, await svgText(store, preset), `${width}.svg`, "image/svg+xml");
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
  canvas.toBlob((png) => png && download(store, png, ".png", "image/png"));
}

export function saveView(store: Store): void {
  download(store, viewFile(store.graph, store.view.value), ".view.json", "application/json");
}

/** Asks for a file and shows the view in it, or says why not. */
export function openView(store: Store): void {
  const input = document.createElement("input");
  input.type = "file";
  input.accept = ".json,application/json";
  input.onchange = async () => {
    try {
      const { view, left } = readViewFile(store.graph, store.base, await input.files![0]!.text());
      store.held.value = null;
      store.selection.value = [];
      store.change(view, "the view of the file is shown");
      store.notice.value = leftOut(left);
    } catch (error) {
      store.notice.value = error instanceof DocumentError ? error.message : "The file cannot be read.";
    }
  };
  input.click();
}

/** The document with the view in it, as JSON. */
export function saved(store: Store): string {
  const document: Document = { ...store.graph.document, view: store.view.value };
  return JSON.stringify(document);
}

/** This page with the view in it, as HTML. Its script and policy stay as they are. */
export function savedPage(store: Store): string {
  const page = document.documentElement.cloneNode(true) as HTMLElement;
  page.querySelector("#diagram")!.replaceChildren();
  page.querySelector("#circuit")!.textContent = saved(store).replaceAll("<", "\\u003c");
  for (const each of [page, page.querySelector("body")!]) each.removeAttribute("style");
  delete page.dataset.ready;
  return `<!doctype html>\n${page.outerHTML}\n`;
}

/** The name of an exported file, without characters that do not belong in file names. */
export function fileName({ file }: Meta, ending: string): string {
  return `${(file ?? "").replace(/[^\w.+-]+/g, "-").replace(/^[-.]+/, "") || "circuit"}${ending}`;
}

export function download(store: Store, content: string | Blob, ending: string, type: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  link.download = fileName(store.graph.document.meta, ending);
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
