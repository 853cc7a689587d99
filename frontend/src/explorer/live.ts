/** What the explorer knows of the server, kept up to date by its events. */

import { computed, signal } from "@preact/signals";
import { useLayoutEffect, useState } from "preact/hooks";
import {
  ApiError,
  api,
  type CircuitCard,
  type Job,
  type JobRequest,
  type Layer,
  type Listening,
  listen,
  type ModelCard,
  type Note,
  type Unit,
} from "./api.js";

export const model = signal<ModelCard | null>(null);
export const layers = signal<Layer[]>([]);
export const circuits = signal<CircuitCard[] | null>(null);
export const jobs = signal<Job[] | null>(null);
export const notes = signal<Record<string, Note>>({});
/** Why the server cannot be heard; empty if it can. */
export const lost = signal("");
/** Whether the server answers but refuses its events, so that the page may be behind. */
export const unheard = signal(false);
/** The layer of the atlas that is shown, which its address does not say; empty: it is not known. */
export const layerOfAtlas = signal("");
/** What a screen reader is told. */
export const message = signal("");

/** Numbers of the states that others may fetch again: of the index, of circuits and their figures, of notes. */
export const version = { index: signal(0), circuits: signal(0), notes: signal(0) };

export const indexing = computed(
  () => jobs.value?.find((job) => job.kind === "index" && (job.state === "running" || job.state === "queued")) ?? null,
);
export const working = computed(() =>
  (jobs.value ?? []).filter((job) => job.state === "running" || job.state === "queued"),
);
export const canWrite = computed(() => model.value?.state === "ready" && !model.value.read_only);

/** Jobs with another state of one of them. */
export function withJob(all: readonly Job[], job: Job): Job[] {
  const at = all.findIndex(({ id }) => id === job.id);
  return at < 0 ? [job, ...all] : all.with(at, job);
}

/** For each answer that is waited for, the jobs that events have told of since it was asked for. */
const told = new Set<Job[]>();

/** Takes a job as an event has it. Events come in order, so what one says replaces what was known. */
export function hear(job: Job): void {
  jobs.value = withJob(jobs.value ?? [], job);
  for (const since of told) since.push(job);
}

/** Jobs as an answer has them, or as events do that came meanwhile: the answer may be older than these. */
export async function answered(asked: Promise<Job[]>): Promise<Job[]> {
  const since: Job[] = [];
  told.add(since);
  try {
    return since.reduce(withJob, await asked);
  } finally {
    told.delete(since);
  }
}

/** Takes the job of an answer. */
async function take(asked: Promise<Job>): Promise<Job> {
  const job = (await answered(asked.then((job) => [job]))).at(-1) as Job; // others are added before it
  jobs.value = withJob(jobs.value ?? [], job);
  return job;
}

/** Fetches the latest of something, of several calls in a row only once more. */
function latest<T>(fetch: () => Promise<T>, put: (value: T) => void): () => void {
  let [busy, again] = [false, false];
  const run = async () => {
    if (busy) {
      again = true;
      return;
    }
    busy = true;
    do {
      again = false;
      try {
        put(await fetch());
        lost.value = "";
      } catch (error) {
        if (isBusy(error)) {
          await pause(500);
          again = true;
        } else lost.value = (error as Error).message;
      }
    } while (again);
    busy = false;
  };
  return () => void run();
}

/** Whether the server may have the answer in a moment. */
function isBusy(error: unknown): boolean {
  return error instanceof ApiError && error.status === 503 && model.value?.state !== "failed";
}

export const pause = (ms: number) => new Promise((done) => setTimeout(done, ms));

const fetchModel = latest(api.model, (value) => {
  const started = value.state === "ready" && model.value?.state !== "ready";
  model.value = value;
  if (started) fetchOthers();
});
const fetchLayers = latest(api.layers, (value) => {
  layers.value = value;
});
const fetchCircuits = latest(api.circuits, (value) => {
  circuits.value = value;
  version.circuits.value++;
});
const fetchJobs = latest(
  () => answered(api.jobs()),
  (value) => {
    jobs.value = value;
  },
);
const fetchNotes = latest(api.allNotes, (value) => {
  notes.value = value;
});

function fetchOthers(): void {
  for (const fetch of [fetchLayers, fetchCircuits, fetchJobs, fetchNotes]) fetch();
}

/** Listens while the page is seen: browsers open few connections to one server, and each stream holds one. */
export function live(): () => void {
  let listening: Listening | null = null;
  const heard = {
    all() {
      fetchModel();
      if (model.value?.state === "ready") fetchOthers();
      version.index.value++;
      version.notes.value++;
    },
    job: hear,
    index() {
      fetchModel();
      fetchLayers();
      version.index.value++;
    },
    changed() {
      fetchModel();
      fetchCircuits();
    },
    note() {
      fetchNotes();
      version.notes.value++;
    },
    model: fetchModel,
    found() {
      unheard.value = false;
    },
    lost(refused: boolean) {
      unheard.value = refused;
      fetchModel(); // which says what is wrong
    },
  };
  const turn = () => {
    if (document.visibilityState === "hidden") {
      listening?.stop();
      listening = null;
    } else listening ??= listen(heard);
  };
  const look = () => {
    listening?.again();
    if (model.value?.state === "ready") fetchCircuits(); // the command may have written some, which no event tells
  };
  turn();
  document.addEventListener("visibilitychange", turn);
  addEventListener("focus", look);
  return () => {
    removeEventListener("focus", look);
    document.removeEventListener("visibilitychange", turn);
    listening?.stop();
  };
}

/** Asks for a job, and knows it at once. */
export function submit(request: JobRequest): Promise<Job> {
  return take(api.submit(request));
}

export async function cancel(job: Job): Promise<void> {
  try {
    await take(api.cancel(job.id));
  } catch (error) {
    message.value = (error as Error).message;
  }
}

/** A layer by its name or its alias. */
export function layerOf(name: string): Layer | undefined {
  return layers.value.find((layer) => name === layer.name || (layer.alias && name === layer.alias));
}

/** Why there is nothing to show of a layer or of a unit of it: empty if there is, null if that is not known yet. */
export function missing(name: string, unit = 0): string | null {
  if (layers.value.length === 0) return null;
  const layer = layerOf(name);
  if (!layer) return `There is no layer ${name}.`;
  if (unit >= layer.units) return `${layer.name} has ${layer.units} units; there is no unit ${unit}.`;
  if (layer.images > 0) return "";
  const known = model.value?.index?.left_out[layer.name];
  if (known) return known;
  return layer.indexed ? "This layer has not been indexed yet." : "This layer is no convolution, so it is not indexed.";
}

export interface Loaded<T> {
  value: T | null;
  error: string;
}

/** A unit, if there is something to show of it. */
export function useUnit(layer: string, unit: number): Loaded<Unit> {
  const there = missing(layer, unit) === "";
  const state = version.index.value + version.circuits.value;
  return useLoaded(`${layer}:${unit} ${there}`, state, async (signal) =>
    there ? api.unit(layer, unit, signal) : null,
  );
}

/** Fetches something, again whenever its version is another one. What is shown of another object is dropped at once. */
export function useLoaded<T>(of: string, state: number, load: (signal: AbortSignal) => Promise<T | null>): Loaded<T> {
  const [found, put] = useState<Loaded<T> & { of: string }>({ of, value: null, error: "" });
  // Asked for before the page is drawn without it.
  useLayoutEffect(() => {
    const control = new AbortController();
    (async () => {
      while (!control.signal.aborted) {
        try {
          const value = await load(control.signal);
          if (!control.signal.aborted) put({ of, value, error: "" });
          return;
        } catch (error) {
          if (control.signal.aborted) return;
          put({ of, value: null, error: (error as Error).message });
          if (!isBusy(error)) return;
          await pause(1000);
        }
      }
    })();
    return () => control.abort();
  }, [of, state]);
  return found.of === of ? found : { value: null, error: "" };
}
