/** Pictures from the document: tiles of its atlases, and maps over positions as small images. */

import { heat } from "../core/color.js";
import { type Graph, numbers, type Place, tileAt } from "../core/decode.js";
import type { Document } from "../core/types.js";

/** The pages of the atlases, each behind one short URL that many nodes can refer to. */
export class Pictures {
  readonly size: number;
  readonly pages: { url: string; columns: number; rows: number; image: HTMLImageElement }[];
  #document: Document;

  constructor(document: Document) {
    this.#document = document;
    this.size = document.tiles.size;
    this.pages = document.tiles.pages.map(({ src, columns, count }) => {
      const url = URL.createObjectURL(blob(src));
      const image = new Image();
      image.src = url;
      return { url, columns, rows: Math.ceil(count / columns), image };
    });
  }

  /** The place of a tile; null for -1 and for a tile that is on no page. */
  at(tile: number): { page: number; x: number; y: number } | null {
    const place = tile < 0 ? null : tileAt(this.#document, tile);
    return place && { page: place.page, x: place.column * this.size, y: place.row * this.size };
  }

  /** An image's thumbnail, or an empty string if it would have to be fetched. */
  thumbnail(image: number): string {
    const src = this.#document.images?.src[image] ?? "";
    return src.startsWith("data:image/") ? src : "";
  }

  /** Cuts tiles out of their pages: data URLs by number. */
  async cut(tiles: number[]): Promise<Record<string, string>> {
    await Promise.all(this.pages.map(({ image }) => image.decode()));
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = this.size;
    const cut: Record<string, string> = {};
    for (const tile of new Set(tiles)) {
      const at = this.at(tile);
      if (!at) continue;
      canvas
        .getContext("2d")!
        .drawImage(this.pages[at.page]!.image, at.x, at.y, this.size, this.size, 0, 0, this.size, this.size);
      cut[tile] = canvas.toDataURL("image/png");
    }
    return cut;
  }

  close(): void {
    for (const { url } of this.pages) URL.revokeObjectURL(url);
  }
}

/** A map over positions as an image with one pixel per position, and the value that full color stands for. */
export interface PositionMap {
  url: string;
  height: number;
  width: number;
  top: number;
}

/** The target on one image in several networks: the full model, and variants. */
export interface OnImage {
  networks: {
    variant: number | null; // null: the full model
    map: PositionMap | null; // null: there is only one position
    mean: number;
    maximum: number;
    r2: number | null; // null: of the full model itself, and where it is not defined
    r2Inside: number | null;
  }[];
  /** The value that full color stands for in all maps, and the lowest and highest values in them (or 0). */
  top: number;
  low: number;
  high: number;
}

/** Maps of nodes and kernels for the document's images, decoded on first use. */
export class Maps {
  #graph: Graph;
  #made = new Map<string, PositionMap | null>();
  #decoded = new Map<Place, ReturnType<typeof numbers>>();

  constructor(graph: Graph) {
    this.#graph = graph;
  }

  /** A node's activation on an image in the circuit; null: not stored. */
  activation(node: number, image: number): PositionMap | null {
    return this.#map("activation", node, image);
  }

  /** What a kernel adds to its filter, position by position; null: not stored. */
  presum(edge: number, image: number): PositionMap | null {
    return this.#map("presum", edge, image);
  }

  /** The target on an image, in the full model and in some variants, their maps on one scale; null: no images. */
  target(variants: number[], image: number): OnImage | null {
    const images = this.#graph.document.images;
    if (!images) return null;
    const { shape, fullMap } = images.target;
    const [count, height, width] = fullMap.shape as [number, number, number];
    type Figure = "fullMean" | "fullMaximum" | "fullScale" | "mean" | "maximum" | "scale" | "r2" | "r2Inside";
    const of = (name: Figure, row: number) => this.#numbers(`images.target.${name}`)[row * count + image]!;
    const all = [
      {
        values: this.#numbers("images.target.fullMap"),
        row: 0,
        scale: of("fullScale", 0),
        variant: null as number | null,
      },
      ...variants.map((variant) => ({
        values: this.#numbers("images.target.map"),
        row: variant,
        scale: of("scale", variant),
        variant: variant as number | null,
      })),
    ];
    const top = Math.max(...all.map(({ scale }) => scale));
    const ends = all.flatMap(({ values, row, scale }) => {
      const start = (row * count + image) * height * width;
      return [...values.subarray(start, start + height * width)].map((value) => (value / 127) * scale);
    });
    const networks = all.map(({ values, row, scale, variant }) => ({
      variant,
      map:
        shape[0] * shape[1] === 1
          ? null
          : this.#paint(
              `target ${variant} ${image} ${top}`,
              values,
              (row * count + image) * height * width,
              height,
              width,
              scale,
              top,
            ),
      mean: variant === null ? of("fullMean", 0) : of("mean", variant),
      maximum: variant === null ? of("fullMaximum", 0) : of("maximum", variant),
      r2: variant === null ? null : defined(of("r2", variant)),
      r2Inside: variant === null ? null : defined(of("r2Inside", variant)),
    }));
    return { networks, top, low: Math.min(0, ...ends), high: Math.max(0, ...ends) };
  }

  /** Mean effect of a kernel on an image, signed; null: not known. */
  effect(edge: number, image: number): number | null {
    const images = this.#graph.document.images;
    if (!images) return null;
    const value = this.#numbers("images.effect")[edge * images.names.length + image];
    return value === undefined || Number.isNaN(value) ? null : value;
  }

  #map(kind: "activation" | "presum", item: number, image: number): PositionMap | null {
    const images = this.#graph.document.images;
    if (!images) return null;
    const start = this.#numbers(`images.${kind}Offset`)[item]!;
    if (start < 0) return null;
    const [height, width] = this.#numbers(`images.${kind}Shape`).subarray(2 * item, 2 * item + 2) as unknown as [
      number,
      number,
    ];
    const scale = this.#numbers(`images.${kind}Scale`)[item * images.names.length + image]!;
    return this.#paint(
      `${kind} ${item} ${image}`,
      this.#numbers(`images.${kind}`),
      start + image * height * width,
      height,
      width,
      scale,
    );
  }

  /** Values of `scale` at 127, full color at `top`. */
  #paint(
    key: string,
    values: ArrayLike<number>,
    start: number,
    height: number,
    width: number,
    scale: number,
    top = scale,
  ): PositionMap | null {
    if (this.#made.has(key)) return this.#made.get(key)!;
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d")!;
    const image = context.createImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      const color = Number.parseInt(heat(top > 0 ? ((values[start + i]! / 127) * scale) / top : 0).slice(1), 16);
      image.data.set([color >> 16, (color >> 8) & 255, color & 255, 255], 4 * i);
    }
    context.putImageData(image, 0, 0);
    const map = { url: canvas.toDataURL(), height, width, top };
    this.#made.set(key, map);
    return map;
  }

  /** Decoded on first use. */
  #numbers(place: Place) {
    if (!this.#decoded.has(place)) this.#decoded.set(place, numbers(this.#graph.document, place));
    return this.#decoded.get(place)!;
  }
}

function defined(value: number): number | null {
  return Number.isNaN(value) ? null : value;
}

/** The bytes of a data URL. */
function blob(src: string): Blob {
  const comma = src.indexOf(",");
  const type = /^data:([^;,]*)/.exec(src)?.[1] ?? "";
  return new Blob([Uint8Array.from(atob(src.slice(comma + 1)), (sign) => sign.charCodeAt(0))], { type });
}
