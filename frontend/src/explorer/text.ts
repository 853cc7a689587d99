/** What the explorer says of numbers, jobs and circuits. */

import { count, decimal, percent, plural, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import type {
  AblatedFigures,
  Ablation,
  Box,
  CircuitCard,
  Histogram,
  Job,
  Layer,
  Measure,
  Report,
  Section,
} from "./api.js";
import { photoKey } from "./route.js";

export const NOT_MEASURED = "not measured";

/** A share, or that there is none. */
export function shareText(share: number | null): string {
  return share === null ? NOT_MEASURED : percent(share);
}

/** R² as other places write it: ".83". */
export function r2Text(r2: number | null): string {
  if (r2 === null) return NOT_MEASURED;
  return decimal(r2).replace(/^(\u2212?)0\./, "$1.");
}

/** The share of positions with higher values, of a quantile: "0.3 %". */
export function topText(quantile: number): string {
  const above = 100 * (1 - quantile);
  if (above < 0.05) return above > 0 ? "<0.1 %" : "0 %";
  return `${above < 9.95 ? above.toFixed(1) : Math.round(above)} %`;
}

/** A figure of a report, if it is a number. */
export function figure(report: Report, name: string): number | null {
  const value = report.figures[name];
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

export const MEASURE_NAMES: Record<Measure, string> = {
  unit: "number",
  active: "share active",
  sparsity: "sparsity",
  at_border: "border share",
  average_map_r2: "average map R²",
  rectified_variance: "variance above 0",
  highest: "highest value",
};

export const SECTION_NAMES: Record<Section, string> = {
  top: "top",
  median: "median",
  bottom: "bottom",
  near_zero: "near zero",
  range: "between",
};

/** "conv3_3", or the module's name. */
export function layerName(layer: { name: string; alias: string } | undefined, name: string): string {
  return layer?.alias || name;
}

/** 75 as "1 min 15 s". */
export function seconds(value: number): string {
  const whole = Math.max(0, Math.round(value));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return whole % 60 ? `${Math.floor(whole / 60)} min ${whole % 60} s` : `${whole / 60} min`;
  const minutes = Math.round(whole / 60);
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/** An estimate of seconds: 75 as "1 min", 8 as "8 s". */
export function roughly(value: number): string {
  const step = value < 10 ? 1 : value < 60 ? 10 : 60;
  return seconds(Math.max(1, step * Math.round(value / step)));
}

/** 1536 as "1.5 kB". */
export function bytes(value: number): string {
  for (const [size, unit] of [
    [1e9, "GB"],
    [1e6, "MB"],
    [1e3, "kB"],
  ] as const)
    if (value >= size) return `${(value / size).toFixed(1)} ${unit}`;
  return plural(value, "byte");
}

/** How far a job is. */
export function progress(job: Job, before = "", now = Date.now() / 1000): string {
  if (job.state === "queued") return before ? `waits until this is done: ${before}` : "waiting";
  if (job.state !== "running") return job.error || job.state;
  const steps = job.total === null ? (job.done ? count(job.done) : "") : `${count(job.done)} / ${count(job.total)}`;
  const rate = job.rate === null ? "" : ` \u00b7 ${pace(job.rate)} per second`;
  const taken = job.since === null ? 0 : Math.floor(now - job.since);
  const time = job.left ? `${seconds(job.left)} left in this step` : taken > 0 ? `for ${seconds(taken)} now` : "";
  return `${job.phase}${steps && ` ${steps}`}${rate}${time && ` \u00b7 ${time}`}`;
}

/** A number of steps, with two digits at least. */
function pace(rate: number): string {
  return rate >= 10 ? count(Math.round(rate)) : String(Number(rate.toPrecision(2)));
}

/** What a job does, in words. */
export function jobName(job: Job, circuits: readonly CircuitCard[], layers: readonly Layer[]): string {
  const circuit = circuits.find(({ id }) => id === job.parameters.circuit);
  const of = circuit ? circuitName(circuit, layers) : String(job.parameters.circuit ?? "");
  const second = circuits.find(({ id }) => id === job.parameters.a);
  switch (job.kind) {
    case "index":
      return "Index the photographs";
    case "find":
      return `Find a circuit of ${featureName(String(job.parameters.feature), layers)}${wanted(job.parameters)}`;
    case "evaluate":
      return `Measure ${of}`;
    case "diagram":
      return `Draw ${of}`;
    case "sweep":
      return `Measure other sizes of ${of}`;
    case "extract":
      return `Extract ${of}`;
    case "put_back":
      return `Put the map of ${of} back`;
    case "ablate":
      return `Measure ${of} without ${partName(job.parameters, layers)}`;
    case "compare":
      return `Compare circuits of ${second ? featureOf(second, layers) : String(job.parameters.a)}`;
    case "split":
      return `Split ${featureName(String(job.parameters.feature), layers)}`;
    case "trajectory":
      return `Place the photographs of ${featureName(`${job.parameters.layer}:${job.parameters.unit}`, layers)}`;
    case "visualise":
      return `Make the picture of ${featureName(`${job.parameters.layer}:${job.parameters.unit}`, layers)}`;
    case "neighbours":
      return `Correlate the maps of ${named(String(job.parameters.layer), layers)}`;
  }
}

function named(layer: string, layers: readonly Layer[]): string {
  return layerName(
    layers.find(({ name }) => name === layer),
    layer,
  );
}

function partName(of: Record<string, unknown>, layers: readonly Layer[]): string {
  const where = named(String(of.layer), layers);
  return of.input === null ? `filter ${of.filter} of ${where}` : `${where}, ${of.filter} ← ${of.input}`;
}

/** What a circuit was measured on: "16 held-out photographs" or, if these were cut, "24 held-out crops". */
export function heldOut(images: number, report: Report | null | undefined): string {
  return plural(images, report?.whole ? "held-out photograph" : "held-out crop");
}

/** What a part of a circuit with a report is worth, in words. */
export function ablationText({ images, before, after }: Ablation, report?: Report | null): string {
  const inside = before.r2_interior !== null;
  const [from, to] = [before, after].map((of) => (inside ? of.r2_interior : of.r2));
  const share = ({ kept }: AblatedFigures) => (kept === null ? "not defined" : `${percent(kept)} of the model's`);
  const less = before.effective_kernels - after.effective_kernels;
  const beside = report ? ` (the whole circuit's controls ${baselines(report, inside).text})` : "";
  return (
    `Measured without it, on ${heldOut(images, report)}: R²${inside ? " on the interior" : ""} ` +
    `${r2Text(to ?? null)} instead of ${r2Text(from ?? null)}${beside}; its highest value ${share(after)} instead of ` +
    `${share(before)}; ${plural(less, "kernel")} fewer on complete paths.`
  );
}

/** A text on a unit in which it is named as in papers, too: "conv3_3:12 (features.14:12)". */
export function asInPapers(text: string, { layer, unit }: CircuitCard, layers: readonly Layer[]): string {
  const alias = layers.find(({ name }) => name === layer)?.alias;
  if (!alias || typeof unit !== "number") return text;
  const own = new RegExp(`${layer.replace(/\W/g, "\\$&")}(#\\d+)?:${unit}(@\\w+(,\\d+)*)?`);
  return text.replace(own, (feature) => `${alias}:${unit} (${feature})`);
}

/** A sentence of the library in the page's spelling. */
export function sentence(text: string): string {
  return plain(text).replace(/\bR2\b/g, "R²");
}

/** A verdict's sentence in the page's spelling, with R² as elsewhere: "−.13", and shares: "50 %". */
export function verdictText(text: string): string {
  return sentence(text)
    .replace(/(?<![\w.:#-])(-?)(\d+)(\.\d+)?(?=[,;)\s]|\.?$)/g, (as, minus: string, whole: string, part?: string) =>
      part || minus ? `${minus && "\u2212"}${part && whole === "0" ? "" : whole}${part ?? ""}` : as,
    )
    .replace(/(\d)%/g, "$1 %");
}

/** The verdict on a division and its reason. */
export function splitText(verdict: string): [found: string, why: string] {
  const [, found = sentence(verdict), why = ""] = /^(.+?\.) (.+)$/.exec(sentence(verdict)) ?? [];
  return [found, why];
}

/** The photographs that circuits were found on, or their sizes or constants chosen on. */
export function usedFor(circuits: readonly CircuitCard[]): Set<string> {
  return new Set(circuits.flatMap(({ report }) => (report ? [...report.found_on, ...report.validated_on] : [])));
}

/** Whether two circuits were measured on the same photographs. */
export function sameHeldOut(a: Report, b: Report): boolean {
  return a.images === b.images && a.whole === b.whole && a.held_out.toSorted().join() === b.held_out.toSorted().join();
}

function placeOf(report: Report, inside: boolean): string {
  if (!inside) return "over all positions";
  return report.figures.interior === "central" ? "on the central positions" : "on the interior";
}

/** R² of a circuit where its verdict is about, and beside it those of what it is compared with: "on the interior:
 *  random circuit −.31, average map .12". */
export function baselines(
  report: Report,
  inside = report.of_interior,
): { own: number | null; where: string; others: string; text: string } {
  const of = (name: string) => figure(report, inside ? `${name}_interior` : name);
  const others = `random circuit ${r2Text(of("r2_random"))}, average map ${r2Text(of("r2_average_map"))}`;
  const where = placeOf(report, inside);
  return { own: of("r2"), where, others, text: `${where}: ${others}` };
}

/** What a verdict was measured on, and what it is compared with: all R² in one sentence are of the same positions. */
export function measuredBeside(report: Report): string {
  const { own, where, others } = baselines(report);
  return `On ${heldOut(report.images, report)} (${where}: this circuit ${r2Text(own)}, ${others}).`;
}

/** Where R² in a list is of, its baselines there, and R² of the other positions that a verdict looks at. */
export function listedBeside(report: Report): string {
  const { text, where } = baselines(report);
  const inside = where === placeOf(report, false); // the others
  const other = figure(report, inside ? "r2_interior" : "r2");
  return text + (other === null ? "" : `; ${placeOf(report, inside)} ${r2Text(other)}`);
}

/** What takes something from the verdict on a circuit: its controls. */
export function controlsText({ report, controls }: CircuitCard): string {
  if (report?.verdict !== "keeps" && report?.verdict !== "keeps in part") return "";
  if (controls === null) return figure(report, "constants") ? "but no controls were fitted" : "";
  if (controls === "found") return "";
  return controls === "not found"
    ? "but not clearly better than its controls"
    : "but not decided whether better than its controls";
}

/** How a circuit was asked for, in brackets. */
export function wanted(of: Record<string, unknown>): string {
  const size =
    typeof of.density === "number"
      ? `density ${of.density}`
      : typeof of.kernels === "number"
        ? plural(of.kernels, "kernel")
        : typeof of.reach_r2 === "number"
          ? `reaching R² ${r2Text(of.reach_r2)}`
          : of.drawable
            ? "that can be drawn whole"
            : "";
  const how = [of.criterion, size].filter(Boolean).join(", ");
  return how && ` (${how})`;
}

/** "conv3_3 unit 12" for a feature as the command takes it. */
export function featureName(feature: string, layers: readonly Layer[]): string {
  const [, layer, unit, position] = /^(.+):(\d+)(?:@(.+))?$/.exec(feature) ?? [];
  if (layer === undefined) return feature;
  const known = layers.find(({ name, alias }) => layer === name || layer === alias);
  return `${layerName(known, layer)} unit ${unit}${position ? `, ${position}` : ""}`;
}

/** A circuit's own name among others. */
export function circuitName(circuit: CircuitCard, layers: readonly Layer[]): string {
  return `${circuitShort(circuit)} of ${featureOf(circuit, layers)}`;
}

export function circuitShort({ criterion, granularity, kept, position, group }: CircuitCard): string {
  const where = position && position !== "all" ? `, ${position}` : "";
  const whose = group ? `, group ${group}` : "";
  return `${criterion || "a circuit"}, ${plural(kept, granularity || "element")}${where}${whose}`;
}

export function featureOf({ layer, unit }: CircuitCard, layers: readonly Layer[]): string {
  const known = layers.find(({ name }) => name === layer);
  const what = unit === null ? "a direction" : Array.isArray(unit) ? `units ${unit.join(", ")}` : `unit ${unit}`;
  return `${layerName(known, layer)} ${what}`;
}

/** A job's part that is done, from 0 to 1; null: unknown. */
export function done(job: Job): number | null {
  return job.state === "running" && job.total ? Math.min(1, job.done / job.total) : null;
}

/** Fewer bins, each the sum of some; the border at zero stays one. */
export function coarse(counts: number[], zero: number, bins: number): { counts: number[]; zero: number } {
  const every = Math.max(1, Math.ceil(counts.length / bins));
  const before = Math.ceil(zero / every);
  const shift = before * every - zero;
  const out = new Array<number>(Math.ceil((counts.length + shift) / every)).fill(0);
  counts.forEach((value, i) => (out[Math.floor((i + shift) / every)]! += value));
  return { counts: out, zero: before };
}

/** A square part of the model's image around a receptive field, in which the field can be told apart, and the field in
 *  shares of it. The square stays on the image where it can. */
export function around(
  box: Box,
  size: number[],
): { part: Box; field: { top: number; left: number; height: number; width: number } } {
  const [top, left, height, width] = box;
  const [rows, columns] = [size[0] ?? height, size[1] ?? width];
  const most = Math.max(height, width);
  const side = Math.max(most, Math.min(Math.max(rows, columns), Math.max(3 * most, Math.round(columns / 3))));
  const begin = (at: number, extent: number, limit: number) => {
    const centered = Math.round(at + extent / 2 - side / 2);
    const [low, high] = [Math.min(0, limit - side), Math.max(0, limit - side)];
    const moved = Math.min(high, Math.max(low, centered));
    return Math.min(at, Math.max(at + extent - side, moved)); // the field is inside
  };
  const [y, x] = [begin(top, height, rows), begin(left, width, columns)];
  return {
    part: [y, x, side, side],
    field: { top: (top - y) / side, left: (left - x) / side, height: height / side, width: width / side },
  };
}

/** The number of positions above 0 and of all, as a histogram counts them. */
export function above({ edges, counts }: Histogram): [number, number] {
  const total = counts.reduce((sum, value) => sum + value, 0);
  return [counts.reduce((sum, value, i) => (edges[i]! >= 0 ? sum + value : sum), 0), total];
}

/** The places of photographs among others by their keys, and how many keys are of none or of several. */
export function withKeys(keys: readonly string[], photos: readonly string[]): [places: number[], others: number] {
  const placeOf = new Map<string, number>();
  const twice = new Set<string>();
  photos.forEach((id, n) => {
    const key = photoKey(id);
    if (placeOf.has(key)) twice.add(key);
    placeOf.set(key, n);
  });
  const known = keys.filter((key) => placeOf.has(key) && !twice.has(key));
  return [known.map((key) => placeOf.get(key)!), keys.length - known.length];
}

/** A photograph's name without its folder and its ending. */
export function photoName(name: string): string {
  return /([^/\\]+?)(?:\.[a-z]{2,5})?$/i.exec(name)?.[1] ?? name;
}

/** A value of a unit, short. */
export function value(number: number): string {
  return Math.abs(number) < 1000 ? decimal(number, 1) : significant(number);
}

export interface Row {
  name: string;
  own?: boolean;
  values: (number | null)[];
}

/** R² of a circuit and of what it is compared with. */
export function r2Rows(report: Report): Row[] {
  const r2 = (...names: string[]) => names.map((name) => (name ? figure(report, name) : null));
  const rows: Row[] = [
    { name: "this circuit", own: true, values: r2("r2", "r2_interior", "r2_rectified") },
    { name: "random circuit of equal size", values: r2("r2_random", "r2_random_interior", "r2_random_rectified") },
    {
      name: "average map, no network",
      values: r2("r2_average_map", "r2_average_map_interior", "r2_average_map_rectified"),
    },
  ];
  if (figure(report, "r2_readout") !== null)
    rows.splice(1, 0, { name: "with scale and offset fitted", values: r2("r2_readout", "", "") });
  return rows;
}

/** Circuits, those whose files were written last first, whoever wrote them. */
export function recent(circuits: readonly CircuitCard[]): CircuitCard[] {
  return circuits.toSorted((a, b) => b.written - a.written);
}
