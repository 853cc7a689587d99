/** All that the explorer knows of its server: routes, fields, errors and events. */

import type { Part } from "../app/source.js";
import type { AtlasData, UnitOfAtlas } from "../maps/atlas.js";
import type { TrajectoryData } from "../maps/trajectory.js";

export const ROOT = "/api/v1";

// ---------------------------------------- what is answered

export interface ModelCard {
  state: "starting" | "ready" | "failed";
  problem: string;
  name: string;
  weights: string;
  images: string;
  size: number[]; // height, width; boxes are in these pixels
  normalization: string;
  photographs: number;
  copies: string[];
  left_out: string[];
  index: {
    state: "missing" | "partial" | "complete";
    images: number;
    photographs: number;
    left_out: Record<string, string>;
  } | null;
  read_only: boolean;
  remarks: string[];
  bytes: number;
  version: string;
  classes: number | null; // null: it answers with something else
}

export interface Layer {
  name: string;
  alias: string;
  kind: string;
  units: number;
  map: number[];
  indexed: boolean;
  images: number; // 0: it cannot be looked at yet
  field: number[] | null;
}

/** Statistics of a unit; null: not defined. */
export interface Figures {
  unit: number;
  active: number | null;
  active_images: number | null;
  highest: number | null;
  sparsity: number | null;
  at_border: number | null;
  inside: number | null;
  interior: number | null;
  average_map_r2: number | null;
  rectified_variance: number | null;
  central: boolean;
  dead: boolean;
  allowed: boolean;
}

export type Box = [top: number, left: number, height: number, width: number];

export interface Example {
  photo: string;
  name: string;
  value: number;
  position: number[];
  box: Box;
}

export interface UnitRow {
  figures: Figures;
  top: Example[];
  histogram: number[];
  zero: number;
  label: string;
  star: boolean;
}

export interface UnitPage {
  layer: string;
  images: number;
  complete: boolean;
  total: number;
  offset: number;
  units: UnitRow[];
}

export interface Histogram {
  edges: number[];
  counts: number[];
  every: number;
}

export interface Unit {
  layer: string;
  alias: string;
  unit: number;
  feature: string;
  images: number;
  complete: boolean;
  map: number[];
  field: number[];
  interior: "inside" | "central";
  figures: Figures;
  histogram: Histogram;
  circuits: string[];
  other_circuits: string[]; // of a unit of this name in a model with other weights
  splits: SplitCard[]; // the newest first
  picture: FeaturePicture | null; // null: not made yet
  trajectory: boolean; // whether its photographs were placed
  neighbours: boolean; // whether they are known
}

export interface Examples {
  section: string;
  padding: boolean;
  sampled: boolean;
  pool: number;
  images: number;
  examples: Example[];
}

export interface Photo {
  id: string;
  name: string;
  subject: string;
}

export interface PhotoPage {
  total: number;
  offset: number;
  photographs: Photo[];
}

/** A unit's map on a photograph, row by row. */
export interface UnitMap {
  height: number;
  width: number;
  values: Float32Array;
}

/** A unit at one position of a photograph. */
export interface PointUnit {
  unit: number;
  value: number;
  quantile: number; // share of the positions of the indexed photographs where it is at most this high
  label: string;
  star: boolean;
}

/** The units of a layer at the position whose receptive field is centered closest to a point. */
export interface PointLayer {
  layer: string;
  alias: string;
  position: number[];
  box: Box;
  images: number; // that the quantiles are of
  complete: boolean;
  total: number;
  units: PointUnit[];
}

export interface Point {
  photo: string;
  name: string;
  x: number;
  y: number;
  layers: PointLayer[];
}

export interface Neighbour {
  unit: number;
  correlation: number;
  label: string;
}

export interface Neighbours {
  layer: string;
  unit: number;
  images: number;
  positions: number;
  highest: Neighbour[];
  lowest: Neighbour[];
}

export interface FeaturePicture {
  value: number | null; // null: no picture drives the unit more than noise
  start: number | null;
  steps: number;
}

export interface SplitGroup {
  name: string;
  images: number;
  held_out: number;
  circuits: string[];
}

export interface SplitCard {
  id: string;
  feature: string;
  layer: string;
  unit: number;
  images: number;
  groups: SplitGroup[];
  verdict: string;
  asked: number | null;
}

export interface SplitPhoto {
  photo: string;
  name: string;
  held_out: boolean;
  confidence: number;
  value: number;
  position: number[] | null;
  box: Box | null;
}

/** The circuit of one group on held-out photographs of one group. */
export interface Crossing {
  circuit: string;
  group: string;
  size: number;
  density: number;
  kernels: number;
  images: number;
  error: number | null;
  kept: number | null;
  r2: number | null;
  r2_max: number | null;
}

export interface Selectivity {
  size: number;
  density: number;
  own: number | null;
  others: number | null;
  value: number | null;
  low: number | null;
  high: number | null;
  shuffled: (number | null)[];
  verdict: string;
}

export interface Split extends SplitCard {
  photographs: Record<string, SplitPhoto[]>; // by group; "": those that do not drive the unit
  cross: Crossing[];
  selectivity: Selectivity[];
  chosen: number | null;
  notes: string[];
  seconds: number;
}

export interface CurvePoint {
  circuit: string; // empty: it was not kept
  density: number;
  kernels: number;
  effective_kernels: number;
  constants: number;
  r2: number | null;
  r2_interior: number | null;
  r2_rectified: number | null;
  r2_random: number | null;
  r2_random_interior: number | null;
  verdict: string;
}

/** Circuits of several densities by one recipe, on the same held-out crops. */
export interface Curve {
  criterion: string;
  images: number;
  photographs: number;
  r2_average_map: number | null;
  r2_average_map_interior: number | null;
  points: CurvePoint[]; // the largest first
  note: string;
  seconds: number;
}

/** A circuit as a module of its own, beside the full model up to the feature. */
export interface Module {
  bytes: number;
  difference: number | null; // null: the masked run is 0
  parameters: number;
  macs: number;
  full_parameters: number;
  full_macs: number;
}

export interface Estimate {
  seconds: number | null; // null: not known for this criterion
  sentence: string;
  busy: boolean; // whether a job ran meanwhile, so that it is too high
}

export interface AblatedFigures {
  kernels: number;
  effective_kernels: number;
  r2: number | null;
  r2_interior: number | null;
  r2_rectified: number | null;
  kept: number | null;
}

export interface Ablation {
  images: number;
  before: AblatedFigures;
  after: AblatedFigures;
}

export interface LogitsChange {
  kl: number | null; // null: not finite
  top1: number;
}

/** The model with a unit's map replaced. */
export interface PutBack {
  images: number;
  classes: number;
  by_circuit: LogitsChange;
  by_average_map: LogitsChange;
  by_zero: LogitsChange;
}

/** The filters and kernels of a layer on two photographs, A and B. */
export interface ContrastLayer {
  layer: string;
  alias: string;
  positions: number[]; // that values are means over, on A and on B
  filters: number[];
  outputs: [a: number, b: number][]; // of each filter
  kernels: [filter: number, input: number][];
  added: [a: number, b: number][]; // by each kernel to its filter
}

/** What a circuit does on one photograph and on another, each where its feature is highest. */
export interface Contrast {
  a: string;
  b: string;
  position: number[][] | null;
  boxes: Box[];
  full: number[];
  in_circuit: number[];
  layers: ContrastLayer[];
  notes: string[];
}

/** A unit's photographs, placed layer by layer. */
export interface TrajectoryOfUnit extends Omit<TrajectoryData, "pictures"> {
  layer: string;
  unit: number;
  method: string;
  photos: string[];
  boxes: Box[]; // what the unit sees of each, where it is highest
}

/** Circuits of all units of a layer. */
export interface AtlasCard {
  id: string;
  name: string;
  layer: string;
  units: number;
  criterion: string;
  problem: string;
}

export type AtlasUnit = UnitOfAtlas & { circuit: string | null }; // null: its file is missing
export type Atlas = AtlasData<AtlasUnit>;

export interface Report {
  images: number;
  whole: boolean; // whole photographs; else crops
  found_on: string[];
  found_on_verified: boolean; // if not, the circuit's file only names them
  validated_on: string[];
  held_out: string[];
  verdict: string;
  verdict_sentence: string;
  of_interior: boolean; // whether it is about R² there, not over all positions
  figures: Record<string, unknown>;
  seconds: number;
  sent: boolean; // came in a bundle: not measured here
}

export interface CircuitCard {
  id: string;
  file: string;
  problem: string;
  written: number; // in seconds since 1970
  feature: string;
  layer: string;
  unit: number | number[] | null;
  position: string;
  criterion: string;
  granularity: string;
  kept: number;
  relevant: number;
  density: number;
  report: Report | null; // null: not measured, nor sent
  diagram: boolean;
  controls: "found" | "not found" | "not decided" | null; // null: none were fitted
  same_weights: boolean | null; // null: not known
  group: string; // of photographs that it was found on, if a division made it
}

export interface Circuit extends CircuitCard {
  provenance: Record<string, unknown>;
  command?: string;
  python?: string;
  curve: Curve | null;
  module: Module | null;
}

export interface Note {
  label: string;
  star: boolean;
  text: string;
}

export const EMPTY: Note = { label: "", star: false, text: "" };

export interface Job {
  id: string;
  kind: JobRequest["kind"];
  parameters: Record<string, unknown>;
  state: "queued" | "running" | "done" | "failed" | "cancelled";
  phase: string;
  done: number;
  total: number | null;
  since: number | null; // when the phase began
  rate: number | null;
  left: number | null;
  error: string;
  result: Record<string, unknown> | null;
  created: number;
  ended: number | null;
}

// ---------------------------------------- what is asked

export const MEASURES = [
  "unit",
  "active",
  "sparsity",
  "at_border",
  "average_map_r2",
  "rectified_variance",
  "highest",
] as const;
export type Measure = (typeof MEASURES)[number];

export const SECTIONS = ["top", "median", "bottom", "near_zero", "range"] as const;
export type Section = (typeof SECTIONS)[number];

export const CRITERIA = [
  "progressive",
  "learned",
  "gauss_newton",
  "actgrad",
  "snip",
  "force",
  "magnitude",
  "random",
  "layer_random",
] as const;

export type JobRequest =
  | { kind: "index" }
  | {
      kind: "find";
      feature: string;
      criterion?: string;
      density?: number;
      kernels?: number;
      reach_r2?: number;
      drawable?: boolean;
      count?: number;
      granularity?: string;
      photographs?: string[];
      refit?: string;
      options?: string[];
      held_out?: number;
      seed?: number;
    }
  | { kind: "evaluate" | "sweep" | "extract" | "put_back"; circuit: string }
  | { kind: "diagram"; circuit: string; controls: boolean }
  | ({ kind: "ablate"; circuit: string } & Part)
  | { kind: "compare"; a: string; b: string }
  | { kind: "split"; feature: string; groups?: number }
  | { kind: "trajectory"; layer: string; unit: number; split?: string }
  | { kind: "visualise"; layer: string; unit: number }
  | { kind: "neighbours"; layer: string };

/** An answer that is an error. `message` is a sentence. */
export class ApiError extends Error {
  constructor(
    message: string,
    readonly status: number, // 0: there was no answer
  ) {
    super(message);
  }
}

const GONE = "The explorer does not answer; it was perhaps ended in its terminal.";

async function ask(path: string, init: RequestInit = {}): Promise<Response> {
  let response: Response;
  try {
    response = await fetch(ROOT + path, { ...init, redirect: "error" });
  } catch (error) {
    if ((error as Error).name === "AbortError") throw error;
    throw new ApiError(GONE, 0);
  }
  if (response.ok) return response;
  throw new ApiError(sentence(await response.text(), response.status), response.status);
}

/** The sentence in the body of an error, or one about its status. */
export function sentence(body: string, status: number): string {
  try {
    const { error } = JSON.parse(body) as { error?: unknown };
    if (typeof error === "string" && error) return error;
  } catch {
    // it is no JSON
  }
  return `The explorer answered with the status ${status}.`;
}

const signalled = (signal?: AbortSignal) => (signal ? { signal } : {});

const FRESH = 5000; // ms in which nothing that events do not tell will have changed

/** What was asked for ahead, and when. */
const early = new Map<string, { answer: Promise<unknown>; asked: number }>();

/** Forgets what was asked for ahead, as it may have changed. */
export const forget = () => early.clear();

async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  const known = early.get(path);
  early.delete(path);
  if (known && performance.now() - known.asked < FRESH) {
    const answer = await known.answer.catch(() => null); // a failure is asked for again
    signal?.throwIfAborted();
    if (answer !== null) return answer as T;
  }
  return (await ask(path, signalled(signal))).json() as Promise<T>;
}

const write = (method: string, body: unknown, headers: Record<string, string> = {}): RequestInit => ({
  method,
  headers: { "content-type": "application/json", ...headers },
  body: JSON.stringify(body),
});

/** A query, without what is null. */
export function query(of: Record<string, string | number | boolean | null>): string {
  const given = Object.entries(of).flatMap(([name, value]) => (value === null ? [] : [[name, String(value)]]));
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

export interface Download {
  file: Blob;
  name: string;
}

/** A file, and the name that the server gives it. */
async function download(path: string, otherwise: string): Promise<Download> {
  const answer = await ask(path);
  const named = /filename="([^"]+)"/.exec(answer.headers.get("content-disposition") ?? "");
  return { file: await answer.blob(), name: named?.[1] ?? otherwise };
}

const unitPath = (layer: string, unit: number) => `${encodeURIComponent(layer)}/${unit}`;
const unitAt = (layer: string, unit: number) => `/layers/${encodeURIComponent(layer)}/units/${unit}`;
const examplesAt = (layer: string, unit: number, of: ExamplesOf) =>
  `${unitAt(layer, unit)}/examples${query({ ...of })}`;

/** Which photographs of a unit. */
export interface ExamplesOf {
  section: Section;
  padding: boolean;
  low: number | null;
  high: number | null;
  count: number;
}

/** How photographs are prepared, from the model card. It is part of every picture's address: browsers keep pictures for
 *  good, and another explorer at this address may show another part of a photograph in the same box. */
let prepared = "";

export const api = {
  async model(signal?: AbortSignal): Promise<ModelCard> {
    const card = await get<ModelCard>("/model", signal);
    if (card.images) prepared = card.images.slice(0, 8); // there is none while the model is being loaded
    return card;
  },
  atlases: (signal?: AbortSignal) => get<AtlasCard[]>("/atlases", signal),
  atlas: (id: string, signal?: AbortSignal) => get<Atlas>(`/atlases/${id}`, signal),
  layers: (signal?: AbortSignal) => get<Layer[]>("/layers", signal),
  units: (
    layer: string,
    of: { sort: Measure; lowest_first: boolean; offset: number; limit: number },
    signal?: AbortSignal,
  ) => get<UnitPage>(`/layers/${encodeURIComponent(layer)}/units${query(of)}`, signal),
  unit: (layer: string, unit: number, signal?: AbortSignal) => get<Unit>(unitAt(layer, unit), signal),
  examples: (layer: string, unit: number, of: ExamplesOf, signal?: AbortSignal) =>
    get<Examples>(examplesAt(layer, unit, of), signal),
  /** A unit that is pointed at: if its page is opened in a moment, its figures and examples are there. */
  unitAhead(layer: string, unit: number, of: ExamplesOf): void {
    forget();
    for (const path of [unitAt(layer, unit), examplesAt(layer, unit, of)]) {
      const answer = get(path);
      answer.catch(() => {}); // nobody may wait for it
      early.set(path, { answer, asked: performance.now() });
    }
  },
  photos: (offset: number, limit: number, signal?: AbortSignal) =>
    get<PhotoPage>(`/photos${query({ offset, limit })}`, signal),
  photo: (id: string, signal?: AbortSignal) => get<Photo>(`/photos/${id}`, signal),
  /** A photograph that will be clicked: the server prepares for that. */
  photoAhead: (id: string, signal?: AbortSignal) => get<Photo>(`/photos/${id}?ahead=true`, signal),
  async map(layer: string, unit: number, photo: string, signal?: AbortSignal): Promise<UnitMap> {
    const said = await get<{ shape: number[]; values: string }>(`/map/${unitPath(layer, unit)}/${photo}`, signal);
    return { height: said.shape[0] ?? 1, width: said.shape[1] ?? 1, values: floats(said.values) };
  },
  point: (photo: string, x: number, y: number, count: number, signal?: AbortSignal) =>
    get<Point>(`/photos/${photo}/point${query({ x, y, count })}`, signal),
  neighbours: (layer: string, unit: number, signal?: AbortSignal) =>
    get<Neighbours>(`/layers/${encodeURIComponent(layer)}/units/${unit}/neighbours`, signal),
  trajectory: (layer: string, unit: number, signal?: AbortSignal) =>
    get<TrajectoryOfUnit>(`/layers/${encodeURIComponent(layer)}/units/${unit}/trajectory`, signal),
  picture: (layer: string, unit: number) => `${ROOT}/layers/${encodeURIComponent(layer)}/units/${unit}/picture`,
  split: (id: string, signal?: AbortSignal) => get<Split>(`/splits/${id}`, signal),
  estimate: (of: { feature: string; criterion: string; reach_r2: boolean; count: number }, signal?: AbortSignal) =>
    get<Estimate>(`/estimate${query(of)}`, signal),
  /** The document of two circuits, which shows both. */
  async compared(a: string, b: string, signal?: AbortSignal): Promise<string> {
    const document = await get<{ view?: object }>(`/compare${query({ a, b })}`, signal);
    return JSON.stringify({ ...document, view: { ...document.view, compare: 1 } });
  },
  /** The circuit with all that is known of it, as one file, and the file's name. */
  bundle(id: string, photographs: boolean): Promise<Download> {
    return download(`/circuits/${id}/bundle${query({ photographs })}`, `${id}.zip`);
  },
  /** The diagram in a view as one page, with the notes on the circuit, its filters and its unit. */
  page: (id: string, view: object) =>
    download(`/circuits/${id}/page${query({ view: JSON.stringify(view) })}`, `${id}.html`),
  contrast: (id: string, a: string, b: string, signal?: AbortSignal) =>
    get<Contrast>(`/circuits/${id}/contrast${query({ a, b })}`, signal),
  moduleFile: (id: string) => `${ROOT}/circuits/${id}/module`,
  circuits: (signal?: AbortSignal) => get<CircuitCard[]>("/circuits", signal),
  circuit: (id: string, signal?: AbortSignal) => get<Circuit>(`/circuits/${id}`, signal),
  diagram: async (id: string, signal?: AbortSignal) => (await ask(`/circuits/${id}/diagram`, signalled(signal))).text(),
  circuitFile: (id: string) => `${ROOT}/circuits/${id}/file`,
  /** A photograph or, as a square, a part of it. */
  thumb: (photo: string, width: number, box: Box | null = null) =>
    `${ROOT}/thumb/${photo}?w=${width}${box ? `&box=${box.join()}` : ""}${prepared && `&of=${prepared}`}`,
  jobs: (signal?: AbortSignal) => get<Job[]>("/jobs", signal),
  submit: async (job: JobRequest): Promise<Job> => (await ask("/jobs", write("POST", job))).json(),
  cancel: async (id: string): Promise<Job> => (await ask(`/jobs/${id}`, { method: "DELETE" })).json(),
  allNotes: (signal?: AbortSignal) => get<Record<string, Note>>("/notes", signal),
  /** A note, and the tag of its state. */
  async note(of: NoteOf, signal?: AbortSignal): Promise<Tagged> {
    return tagged(await ask(`/notes/${notePath(of)}`, signalled(signal)));
  },
  /** Replaces a note. Throws an error with the status CHANGED if it is no longer the one with this tag. */
  async writeNote(of: NoteOf, note: Note, tag: string): Promise<Tagged> {
    return tagged(await ask(`/notes/${notePath(of)}`, write("PUT", note, { "if-match": tag })));
  },
};

export const CHANGED = 412;

export type NoteOf =
  | { layer: string; unit: number }
  | { circuit: string }
  | { circuit: string; layer: string; filter: number } // in its diagram
  | { photo: string };

export interface Tagged {
  note: Note;
  tag: string;
}

async function tagged(response: Response): Promise<Tagged> {
  return { note: (await response.json()) as Note, tag: response.headers.get("etag") ?? "" };
}

function notePath(of: NoteOf): string {
  if ("filter" in of) return `circuits/${of.circuit}/filters/${unitPath(of.layer, of.filter)}`;
  if ("circuit" in of) return `circuits/${of.circuit}`;
  if ("photo" in of) return `photos/${of.photo}`;
  return `units/${unitPath(of.layer, of.unit)}`;
}

/** The units among all notes, of the model with these weights. */
export function unitNotes(notes: Record<string, Note>, weights: string): { layer: string; unit: number; note: Note }[] {
  return Object.entries(notes).flatMap(([of, note]) => {
    const [, layer, unit, hash] = /^unit (.+):(\d+) of weights (\w+)$/.exec(of) ?? [];
    return layer && hash && weights.startsWith(hash) ? [{ layer, unit: Number(unit), note }] : [];
  });
}

/** What else is noted among all notes: circuits and photographs, by their ids. */
export function otherNotes(notes: Record<string, Note>): { kind: "circuit" | "photo"; id: string; note: Note }[] {
  return Object.entries(notes).flatMap(([of, note]) => {
    const [, kind, id] = /^(circuit|photo) ([0-9a-f]{16})$/.exec(of) ?? [];
    return kind && id ? [{ kind: kind as "circuit" | "photo", id, note }] : [];
  });
}

/** The key of a note on a filter in a circuit's diagram, among all notes. */
export function filterKey(of: { circuit: string; layer: string; filter: number }): string {
  return `filter ${of.layer}:${of.filter} of circuit ${of.circuit}`;
}

/** Float32 numbers from base64, little-endian. */
export function floats(text: string): Float32Array {
  const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  return Float32Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

// ---------------------------------------- events

export interface Heard {
  /** Everything may be another: the stream has begun, or events are missing. */
  all(): void;
  job(job: Job): void;
  index(): void;
  /** A job is done or a file was damaged, so there are other circuits or figures. */
  changed(): void;
  note(): void;
  model(): void;
  /** The stream has begun. */
  found(): void;
  /** The stream broke off. If it was `refused`, the browser asks no more; `listen` does, after some seconds. */
  lost(refused: boolean): void;
}

export interface Listening {
  /** Asks at once, if the server refused the stream. */
  again(): void;
  stop(): void;
}

const [SOONEST, LATEST] = [2000, 30_000]; // ms until a stream that was refused is asked for again

/** Listens to the server's events. The browser reconnects with Last-Event-ID, but no more once it got another answer
 *  than a stream: of a server that was started anew and whose link was not opened yet, or to which too many listen. */
export function listen(heard: Heard): Listening {
  let source: EventSource;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let wait = SOONEST;
  const begin = () => {
    clearTimeout(timer);
    source = new EventSource(`${ROOT}/events`);
    const on = (name: string, act: (data: string) => void) =>
      source.addEventListener(name, (event) => act((event as MessageEvent<string>).data));
    on("job", (data) => heard.job(JSON.parse(data) as Job));
    const onChange = (name: string, act: () => void) =>
      on(name, () => {
        forget();
        act();
      });
    onChange("hello", heard.all);
    onChange("reset", heard.all);
    onChange("index", heard.index);
    onChange("changed", heard.changed);
    onChange("note", heard.note);
    onChange("model", heard.model);
    onChange("remark", heard.changed); // a damaged file is one that is no longer there
    source.addEventListener("open", () => {
      wait = SOONEST;
      heard.found();
      heard.model();
    });
    source.addEventListener("error", () => {
      const refused = source.readyState === EventSource.CLOSED;
      if (refused) {
        timer = setTimeout(begin, wait);
        wait = Math.min(LATEST, 2 * wait);
      }
      heard.lost(refused);
    });
  };
  begin();
  return {
    again() {
      if (source.readyState === EventSource.CLOSED) begin();
    },
    stop() {
      clearTimeout(timer);
      source.close();
    },
  };
}
