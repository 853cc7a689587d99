/** Maps of images, one for each layer. A slider moves the images between them; a lasso chooses some. */

import { type Signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { Copied } from "../app/copied.js";
import type { Theme } from "../app/source.js";
import { decimal, percent, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import { GROUPS, INKS, rampColor } from "./color.js";
import { extent, type Point, placed } from "./geometry.js";
import { Plot, walked } from "./plot.js";
import type { Change, PhotoColors, TrajectoryView } from "./views.js";

export interface LayerOfTrajectory {
  layer: string;
  alias?: string; // as papers call it
  explained: number | null;
  kept: number | null;
  disparity: number | null;
  shared: number | null;
}

export interface TrajectoryData {
  layers: readonly LayerOfTrajectory[];
  points: readonly (readonly Point[])[]; // of each layer, of each image
  neighbors: number;
  response: readonly number[];
  groups: readonly string[];
  labels: readonly number[]; // of each image, the number of its group; -1: none
  notes: readonly string[];
  names: readonly string[];
  pictures: readonly string[]; // their addresses
}

const FEW = 60; // images that can be shown as pictures without hiding each other
const LASTS = 500; // ms that a move takes
const TICKS = 14; // names of layers that have room
const PICTURE = 32; // px

/** The maps, and how they are looked at. */
export interface Trajectory {
  data: TrajectoryData;
  theme: Theme;
  layer: number; // the one that is looked at
  colors: PhotoColors;
  pictures: boolean;
  chosen: ReadonlySet<number>;
  at: Signal<number>; // the layer whose map is drawn, which may be between two
  hovered: Signal<number>; // the image that is pointed at; -1: none
  change: Change<TrajectoryView>;
  go(layer: number, instead?: boolean): void;
  slide(at: number): void;
}

export function useTrajectory(
  data: TrajectoryData,
  view: TrajectoryView,
  change: Change<TrajectoryView>,
  theme: Theme,
): Trajectory {
  const wanted = Math.max(
    0,
    data.layers.findIndex(({ layer }) => layer === view.at),
  );
  const at = useSignal(wanted);
  const hovered = useSignal(-1);
  const frame = useRef(0);
  const slide = (to: number) => {
    cancelAnimationFrame(frame.current);
    at.value = to;
  };
  const glide = (to: number) => {
    const from = at.value;
    slide(from);
    if (matchMedia("(prefers-reduced-motion: reduce)").matches || from === to) {
      slide(to);
      return;
    }
    const began = performance.now();
    const step = (now: number) => {
      const t = Math.min(1, Math.max(0, (now - began) / LASTS));
      at.value = t < 1 ? from + (to - from) * t * t * (3 - 2 * t) : to;
      if (t < 1) frame.current = requestAnimationFrame(step);
    };
    frame.current = requestAnimationFrame(step);
  };
  useEffect(() => glide(wanted), [wanted]);
  useEffect(() => () => cancelAnimationFrame(frame.current), []);
  const go = (layer: number, instead = false) => {
    if (layer === wanted) glide(layer);
    else change({ at: layer === 0 ? null : data.layers[layer]!.layer }, instead);
  };
  useEffect(() => {
    const clear = (event: KeyboardEvent) => {
      if (event.key === "Escape" && view.chosen.length) change({ chosen: [] });
    };
    document.addEventListener("keydown", clear);
    return () => document.removeEventListener("keydown", clear);
  });
  const grouped = data.groups.length > 0;
  return {
    data,
    theme,
    layer: wanted,
    colors: grouped ? (view.colors ?? "group") : "response",
    pictures: view.pictures ?? data.names.length <= FEW,
    chosen: new Set(view.chosen),
    at,
    hovered,
    change,
    go,
    slide,
  };
}

const shortName = ({ layer, alias }: LayerOfTrajectory) => plain(alias || layer);
const fullName = ({ layer, alias }: LayerOfTrajectory) => plain(alias ? `${alias} (${layer})` : layer);
const figure = (value: number | null) => (value === null ? "–" : decimal(value));

/** Images, those with the highest response first. */
export function strongest(data: TrajectoryData, some: Iterable<number>): number[] {
  return [...some].sort((a, b) => data.response[b]! - data.response[a]!);
}

// ---------------------------------------- the map

export function TrajectoryMap({ of }: { of: Trajectory }) {
  return (
    <>
      <Tools of={of} />
      <Images of={of} />
      <Layers of={of} />
      <Figures of={of} />
    </>
  );
}

function groupColor(label: number, theme: Theme): string {
  return label < 0 ? INKS[theme].none : GROUPS[label % GROUPS.length]!;
}

function Tools({ of }: { of: Trajectory }) {
  const { data, theme, colors, pictures, change } = of;
  const [low, high] = [Math.min(...data.response), Math.max(...data.response)];
  return (
    <div class="tools">
      {data.groups.length > 0 && (
        <label class="field">
          color by
          <select
            part="colors"
            value={colors}
            onChange={(event) => {
              const next = event.currentTarget.value as PhotoColors;
              change({ colors: next === "group" ? null : next });
            }}
          >
            <option value="group">group</option>
            <option value="response">response</option>
          </select>
        </label>
      )}
      <label class="field">
        <input
          type="checkbox"
          checked={pictures}
          onChange={(event) => change({ pictures: event.currentTarget.checked })}
        />
        pictures
      </label>
      <div class="legend">
        {colors === "response" ? (
          <>
            response {significant(low)}
            <i class="ramp" style={{ background: `linear-gradient(to right, ${INKS[theme].ramp.join()})` }} />
            {significant(high)}
          </>
        ) : (
          [...data.groups.keys(), -1].map((label) => {
            const own = data.labels.flatMap((one, n) => (one === label ? [n] : []));
            if (!own.length) return null;
            return (
              <button type="button" key={label} title="Choose these images" onClick={() => change({ chosen: own })}>
                <i style={{ background: groupColor(label, theme) }} />
                {label < 0 ? "no group" : plain(data.groups[label]!)} ({own.length})
              </button>
            );
          })
        )}
      </div>
    </div>
  );
}

function Images({ of }: { of: Trajectory }) {
  const { data, theme, colors, chosen, change, hovered } = of;
  const images = usePictures(of.pictures ? data.pictures : []);
  const [at, pointed] = [of.at.value, hovered.value];
  const inks = INKS[theme];
  const order = useMemo(() => strongest(data, data.response.keys()), [data]);
  const most = useMemo(() => extent(data.points.flat()), [data]);
  const [low, high] = [data.response[order.at(-1)!]!, data.response[order[0]!]!];

  const colorOf = (n: number) =>
    colors === "group"
      ? groupColor(data.labels[n]!, theme)
      : rampColor(theme, high > low ? (data.response[n]! - low) / (high - low) : 1);

  /** Where image n is at a layer, which may be between two. */
  const where = (n: number, layer: number, width: number, height: number): Point => {
    const before = Math.floor(layer);
    const [x, y] = data.points[before]![n]!;
    const [to, up] = data.points[Math.ceil(layer)]![n]!;
    const share = layer - before;
    return placed([x + share * (to - x), y + share * (up - y)], most, width, height);
  };

  const paint = (pen: CanvasRenderingContext2D, points: readonly Point[], width: number, height: number) => {
    const mark = (n: number, size: number) => {
      const [x, y] = points[n]!;
      pen.globalAlpha = chosen.size > 0 && !chosen.has(n) && n !== pointed ? 0.35 : 1;
      if (of.pictures) {
        const side = PICTURE * size;
        const image = images[n];
        pen.fillStyle = inks.ground;
        pen.fillRect(x - side / 2, y - side / 2, side, side);
        if (image?.naturalWidth) pen.drawImage(image, x - side / 2, y - side / 2, side, side);
        pen.strokeStyle = colorOf(n);
        pen.lineWidth = 2.5;
        pen.strokeRect(x - side / 2, y - side / 2, side, side);
      } else {
        pen.beginPath();
        pen.arc(x, y, 5.5 * size, 0, 7);
        pen.fillStyle = colorOf(n);
        pen.fill();
        pen.strokeStyle = chosen.has(n) ? inks.ink : inks.ground;
        pen.lineWidth = chosen.has(n) ? 1.5 : 0.75;
        pen.stroke();
      }
      pen.globalAlpha = 1;
    };
    for (const n of order.toReversed()) if (n !== pointed) mark(n, 1);
    if (pointed < 0) return;
    const way = data.layers.map((_, layer) => where(pointed, layer, width, height));
    pen.beginPath();
    for (const [x, y] of way) pen.lineTo(x, y);
    pen.strokeStyle = pen.fillStyle = inks.soft;
    pen.lineWidth = 1;
    pen.stroke();
    for (const [x, y] of way) {
      pen.beginPath();
      pen.arc(x, y, 2, 0, 7);
      pen.fill();
    }
    mark(pointed, 1.5);
  };

  const toggled = (n: number) => (chosen.has(n) ? [...chosen].filter((one) => one !== n) : [...chosen, n]);
  return (
    <Plot
      label={
        "Map of the images. Drag around images to choose them; with Shift, add to them. Arrow keys walk through the " +
        "images, the space bar chooses one, Escape clears the choice."
      }
      theme={theme}
      reach={of.pictures ? 22 : 12}
      hovered={hovered}
      place={(width, height) => data.response.map((_, n) => where(n, at, width, height))}
      paint={paint}
      pick={(n, add) => change({ chosen: n < 0 ? (add ? [...chosen] : []) : add ? toggled(n) : [n] })}
      lasso={(some, add) => change({ chosen: add ? [...new Set([...chosen, ...some])] : some })}
      press={(key) => {
        const to = walked(key, order.indexOf(pointed), order.length);
        if (to !== null) hovered.value = order[to]!;
        else if (key === " " && pointed >= 0) change({ chosen: toggled(pointed) });
        else return false;
        return true;
      }}
    />
  );
}

/** Images that are loaded to be drawn; one that the server could not answer yet is asked for again. */
function usePictures(sources: readonly string[]): HTMLImageElement[] {
  const [, loaded] = useState(0);
  const key = sources.join(" ");
  const images = useMemo(() => sources.map(() => new Image()), [key]);
  useEffect(() => {
    const timers = new Set<ReturnType<typeof setTimeout>>();
    images.forEach((image, n) => {
      image.onload = () => loaded((count) => count + 1);
      image.onerror = () =>
        timers.add(
          setTimeout(() => {
            image.src = sources[n]!;
          }, 3000),
        );
      image.fetchPriority = "low";
      image.src = sources[n]!;
    });
    return () => {
      for (const timer of timers) clearTimeout(timer);
      for (const image of images) {
        image.onload = image.onerror = null;
        if (!image.complete) image.removeAttribute("src"); // it is not asked for any more
      }
    };
  }, [images]);
  return images;
}

// ---------------------------------------- the layers

function Layers({ of }: { of: Trajectory }) {
  const { data, layer, go, slide } = of;
  const { layers } = data;
  const last = layers.length - 1;
  const at = of.at.value;
  const shown = Math.round(at);
  const every = Math.ceil(layers.length / TICKS);
  return (
    <div class="slider">
      <input
        type="range"
        min={0}
        max={last}
        step="any"
        value={at}
        disabled={last === 0}
        aria-label="layer"
        aria-valuetext={fullName(layers[shown]!)}
        onInput={(event) => slide(Number(event.currentTarget.value))}
        onChange={(event) => go(Math.round(Number(event.currentTarget.value)), true)}
        onKeyDown={(event) => {
          const { key } = event;
          const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, Home: -last, End: last }[key];
          if (step === undefined) return;
          event.preventDefault();
          go(Math.max(0, Math.min(last, layer + step)), true);
        }}
      />
      <div class="ticks">
        {layers.map((one, n) => (
          <button
            type="button"
            key={one.layer}
            title={fullName(one)}
            aria-label={fullName(one)}
            aria-pressed={n === shown}
            onClick={() => go(n)}
          >
            {n % every && n !== last ? "·" : shortName(one)}
          </button>
        ))}
      </div>
      <p class="said" aria-live="polite">
        {fullName(layers[shown]!)}: {factsOf(layers, shown)}.
      </p>
    </div>
  );
}

function factsOf(layers: readonly LayerOfTrajectory[], n: number): string {
  const { explained, kept, disparity, shared } = layers[n]!;
  const parts = [
    explained !== null && `the map holds ${percent(explained)} of the variance`,
    kept !== null && `neighbors kept ${figure(kept)}`,
    disparity !== null &&
      `against ${shortName(layers[n - 1]!)}: disparity ${figure(disparity)}, neighbors shared ${figure(shared)}`,
  ];
  return parts.filter(Boolean).join("; ") || "all images are at one place";
}

function Figures({ of: { data } }: { of: Trajectory }) {
  const byChance = decimal(1 - 2 / (data.names.length - 1));
  return (
    <details>
      <summary>Figures of all layers, and remarks</summary>
      <div class="scroll" tabIndex={0} role="group" aria-label="figures of all layers">
        <table>
          <thead>
            <tr>
              {["layer", "variance explained", "neighbors kept", "disparity", "neighbors shared"].map((text) => (
                <th scope="col" key={text}>
                  {text}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {data.layers.map((row) => (
              <tr key={row.layer}>
                <th scope="row">{fullName(row)}</th>
                <td>{figure(row.explained)}</td>
                <td>{figure(row.kept)}</td>
                <td>{figure(row.disparity)}</td>
                <td>{figure(row.shared)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p>
        Neighbors: the share of the {data.neighbors} nearest that an image has in common, above chance (0 chance, 1
        all): kept, between the map and all saliencies of the layer; shared, between the maps of this layer and of the
        one before. Disparity: what is left of a map that is turned, mirrored and scaled onto the one before (0 the same
        shape; about {byChance} or more by chance).
      </p>
      {data.notes.map((note) => (
        <p key={note}>{plain(note)}</p>
      ))}
    </details>
  );
}

// ---------------------------------------- beside the map

/** A small picture of an image. */
export type Thumb = (n: number) => ComponentChildren;

/** The image that is pointed at. */
export function Pointed({ of, thumb }: { of: Trajectory; thumb: Thumb }) {
  const { data, hovered } = of;
  const n = hovered.value;
  if (n < 0)
    return (
      <p class="card soft">
        Point at an image to see it and its way through the layers. Drag around images
        {data.groups.length > 0 && ", or press the name of a group,"} to choose them.
      </p>
    );
  const label = data.labels[n]!;
  return (
    <div class="card">
      {thumb(n)}
      <div>
        <h3 dir="auto">{plain(data.names[n]!)}</h3>
        <p class="soft">response {significant(data.response[n]!)}</p>
        {label >= 0 && <p class="soft">group {plain(data.groups[label]!)}</p>}
      </div>
    </div>
  );
}

export const FEWEST = 4; // images that a circuit can be found on and measured on others

/** The images that are chosen, and below them what can be done with them. */
export function Chosen({ of, thumb, children }: { of: Trajectory; thumb: Thumb; children?: ComponentChildren }) {
  const { data, chosen, change, hovered } = of;
  const shown = strongest(data, chosen);
  return (
    <>
      <div class="heading">
        <h2>{shown.length ? `${shown.length} chosen` : "None chosen"}</h2>
        <span>
          <Copied text={() => shown.map((n) => data.names[n]).join("\n")} label="copy names" disabled={!shown.length} />
          <button type="button" disabled={!shown.length} onClick={() => change({ chosen: [] })}>
            clear
          </button>
        </span>
      </div>
      <ul class="thumbs" aria-label="chosen images">
        {shown.map((n) => (
          <li
            key={n}
            title={plain(data.names[n]!)}
            onPointerEnter={() => (hovered.value = n)}
            onPointerLeave={() => (hovered.value = -1)}
          >
            {thumb(n)}
          </li>
        ))}
      </ul>
      {shown.length > 0 && shown.length < FEWEST && (
        <p class="soft">Too few to find a circuit and test it on others.</p>
      )}
      {children}
    </>
  );
}
