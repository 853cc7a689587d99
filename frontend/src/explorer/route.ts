/** Addresses: the path is what is looked at, the query how, and the hash the diagram's own view. */

import {
  type AtlasView,
  PHOTO_COLORS,
  type TrajectoryView,
  UNIT_COLORS,
  WHOLE_ATLAS,
  WHOLE_TRAJECTORY,
} from "../maps/views.js";
import { MEASURES, type Measure, SECTIONS, type Section } from "./api.js";

export type Place =
  | { page: "home" }
  | { page: "layer"; layer: string; sort: Measure; lowest: boolean }
  | {
      page: "unit";
      layer: string;
      unit: number;
      section: Section;
      padding: boolean;
      low: number | null;
      high: number | null;
      photo: string | null; // the one that is shown with the unit's map
      split: string | null; // the division that is shown; null: the newest
    }
  | (Omit<TrajectoryView, "chosen"> & { page: "trajectory"; layer: string; unit: number; chosen: string[] }) // by keys
  | (AtlasView & { page: "atlas"; id: string })
  | { page: "circuit"; id: string; a: string | null; b: string | null } // two photographs that are contrasted
  | { page: "photo"; id: string; x: number | null; y: number | null } // a point, in pixels of the model's image
  | { page: "compare"; a: string; b: string }
  | { page: "jobs" }
  | { page: "nowhere"; path: string };

export type AtlasPlace = Extract<Place, { page: "atlas" }>;
export type TrajectoryPlace = Extract<Place, { page: "trajectory" }>;
export type CircuitPlace = Extract<Place, { page: "circuit" }>;

/** A place, and the hash of the model's weights that a link was made with. */
export type Route = Place & { weights: string | null };

const ID = /^[0-9a-f]{16}$/;
const UNIT = /^\d{1,9}$/;

/** How the address names one of a unit's photographs, of which there may be many: by how its id begins. */
export const photoKey = (id: string) => id.slice(0, KEY);
const KEY = 8;

/** The place that an address leads to. */
export function parseRoute(path: string, search: string): Route {
  const asked = new URLSearchParams(search);
  const weights = asked.get("weights");
  return { ...placeOf(path, asked), weights: weights && /^[0-9a-f]{4,64}$/.test(weights) ? weights : null };
}

function placeOf(path: string, asked: URLSearchParams): Place {
  const nowhere: Place = { page: "nowhere", path };
  const parts = decoded(path);
  if (!parts) return nowhere;
  const [kind, name, more] = parts;
  const only = (count: number) => parts.length === count && parts.every(Boolean);
  if (parts.length === 0) return { page: "home" };
  if (kind === "jobs" && only(1)) return { page: "jobs" };
  if (kind === "c" && only(2) && ID.test(name!)) {
    const photo = (of: string | null) => (of && ID.test(of) ? of : null);
    return { ...circuitPlace(name!), a: photo(asked.get("a")), b: photo(asked.get("b")) };
  }
  if (kind === "i" && only(2) && ID.test(name!)) {
    const [x, y] = [finite(asked.get("x")), finite(asked.get("y"))];
    return x === null || y === null ? photoPlace(name!) : { page: "photo", id: name!, x, y };
  }
  if (kind === "compare" && only(1)) {
    const [a, b] = [asked.get("a") ?? "", asked.get("b") ?? ""];
    return ID.test(a) && ID.test(b) ? { page: "compare", a, b } : nowhere;
  }
  if (kind === "l" && only(2))
    return { page: "layer", layer: name!, sort: among(MEASURES, asked.get("sort")), lowest: asked.has("lowest") };
  if (kind === "u" && only(3) && UNIT.test(more!)) {
    const section = among(SECTIONS, asked.get("show"));
    const [photo, split] = [asked.get("photo"), asked.get("split")];
    return {
      page: "unit",
      layer: name!,
      unit: Number(more),
      section,
      padding: section === "top" && asked.has("padding"),
      low: section === "range" ? finite(asked.get("low")) : null,
      high: section === "range" ? finite(asked.get("high")) : null,
      photo: photo && ID.test(photo) ? photo : null,
      split: split && ID.test(split) ? split : null,
    };
  }
  if (kind === "t" && only(3) && UNIT.test(more!)) {
    const [pictures, keys] = [asked.get("pictures"), asked.get("chosen") ?? ""];
    return {
      ...trajectoryPlace(name!, Number(more)),
      at: asked.get("at"),
      colors: PHOTO_COLORS.find((each) => each === asked.get("colors")) ?? null,
      pictures: pictures === "on" ? true : pictures === "off" ? false : null,
      chosen: /^[0-9a-f]*$/.test(keys) && keys.length % KEY === 0 ? (keys.match(/.{8}/g) ?? []) : [],
    };
  }
  if (kind === "a" && only(2) && ID.test(name!)) {
    const unit = asked.get("unit") ?? "";
    return {
      ...atlasPlace(name!),
      unit: UNIT.test(unit) ? Number(unit) : null,
      colors: UNIT_COLORS.find((each) => each === asked.get("colors")) ?? null,
      kernel: asked.get("kernel"),
    };
  }
  return nowhere;
}

/** The address of a place. */
export function formatRoute(place: Place, weights: string | null = null): string {
  const asked: [string, string][] = [];
  const path = (() => {
    switch (place.page) {
      case "home":
        return "/";
      case "jobs":
        return "/jobs";
      case "circuit":
        if (place.a !== null) asked.push(["a", place.a]);
        if (place.b !== null) asked.push(["b", place.b]);
        return `/c/${place.id}`;
      case "photo":
        if (place.x !== null && place.y !== null) asked.push(["x", String(place.x)], ["y", String(place.y)]);
        return `/i/${place.id}`;
      case "compare":
        asked.push(["a", place.a], ["b", place.b]);
        return "/compare";
      case "layer":
        if (place.sort !== MEASURES[0]) asked.push(["sort", place.sort]);
        if (place.lowest) asked.push(["lowest", ""]);
        return `/l/${encodeURIComponent(place.layer)}`;
      case "unit":
        if (place.section !== SECTIONS[0]) asked.push(["show", place.section]);
        if (place.padding) asked.push(["padding", ""]);
        if (place.low !== null) asked.push(["low", String(place.low)]);
        if (place.high !== null) asked.push(["high", String(place.high)]);
        if (place.photo !== null) asked.push(["photo", place.photo]);
        if (place.split !== null) asked.push(["split", place.split]);
        return `/u/${encodeURIComponent(place.layer)}/${place.unit}`;
      case "trajectory":
        if (place.at !== null) asked.push(["at", place.at]);
        if (place.colors !== null) asked.push(["colors", place.colors]);
        if (place.pictures !== null) asked.push(["pictures", place.pictures ? "on" : "off"]);
        if (place.chosen.length) asked.push(["chosen", place.chosen.join("")]);
        return `/t/${encodeURIComponent(place.layer)}/${place.unit}`;
      case "atlas":
        if (place.unit !== null) asked.push(["unit", String(place.unit)]);
        if (place.colors !== null) asked.push(["colors", place.colors]);
        if (place.kernel !== null) asked.push(["kernel", place.kernel]);
        return `/a/${place.id}`;
      case "nowhere":
        return place.path;
    }
  })();
  if (weights) asked.push(["weights", weights]);
  const query = new URLSearchParams(asked).toString().replace(/=(?=&|$)/g, "");
  return query ? `${path}?${query}` : path;
}

/** Whether two places show the same thing, perhaps in another way. */
export function sameObject(a: Place, b: Place): boolean {
  const bare = (place: Place) => (place.page === "compare" ? formatRoute(place) : formatRoute(place).split("?")[0]);
  return bare(a) === bare(b);
}

export function layerPlace(layer: string): Place {
  return { page: "layer", layer, sort: MEASURES[0], lowest: false };
}

export function unitPlace(layer: string, unit: number): Place {
  return {
    page: "unit",
    layer,
    unit,
    section: SECTIONS[0],
    padding: false,
    low: null,
    high: null,
    photo: null,
    split: null,
  };
}

export function circuitPlace(id: string): CircuitPlace {
  return { page: "circuit", id, a: null, b: null };
}

export function trajectoryPlace(layer: string, unit: number): TrajectoryPlace {
  return { page: "trajectory", layer, unit, ...WHOLE_TRAJECTORY, chosen: [] };
}

export function atlasPlace(id: string): AtlasPlace {
  return { page: "atlas", id, ...WHOLE_ATLAS };
}

export function photoPlace(id: string): Place {
  return { page: "photo", id, x: null, y: null };
}

/** The decoded parts of a path; null if it is not well encoded. */
function decoded(path: string): string[] | null {
  try {
    const parts = path.replace(/^\//, "").split("/").map(decodeURIComponent);
    return parts.length === 1 && parts[0] === "" ? [] : parts;
  } catch {
    return null;
  }
}

function among<T extends string>(known: readonly [T, ...T[]], text: string | null): T {
  return known.find((each) => each === text) ?? known[0];
}

function finite(text: string | null): number | null {
  return text === null || text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text);
}
