/** Whether what an address names is there: an answer that says no would be an error in the browser's console, too. */

import { api, type Circuit } from "./api.js";
import { circuits } from "./live.js";

const [MOST, PAGES] = [1000, 10]; // photographs of an answer, and answers that are looked through

/** The photographs that lists have named, and whether there may be others. */
const known = new Set<string>();
let others = false;
let reading: Promise<void> | null = null;

async function read(): Promise<void> {
  for (let page = 0; page < PAGES; page++) {
    const { photographs, total } = await api.photos(page * MOST, MOST);
    for (const { id } of photographs) known.add(id);
    others = total > (page + 1) * MOST;
    if (!others) return;
  }
}

/** Asks for something of photographs, once lists have named them. Throws an error with a sentence if they do not. */
export async function ofPhotos<T>(ids: readonly string[], ask: () => Promise<T>): Promise<T> {
  if (ids.some((id) => !known.has(id))) {
    reading ??= read().finally(() => {
      reading = null;
    });
    await reading;
  }
  const missing = others ? undefined : ids.find((id) => !known.has(id));
  if (missing) throw new Error(`There is no photograph ${missing} here.`);
  return ask();
}

/** A circuit, once the list has it; null: there is no list yet. */
export async function circuitOf(id: string, signal: AbortSignal): Promise<Circuit | null> {
  const has = (all: readonly { id: string }[]) => all.some((each) => each.id === id);
  if (!circuits.value) return null;
  if (!has(circuits.value) && !has(await api.circuits(signal))) throw new Error(`The project has no circuit ${id}.`);
  return api.circuit(id, signal);
}
