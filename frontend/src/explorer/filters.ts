/** What readers write on the filters of a circuit's diagram: the project keeps it, and the page's address only what is
 *  not saved. */

import { formatHash } from "../app/hash.js";
import type { Source } from "../app/source.js";
import { decode } from "../core/decode.js";
import { NodeKind, type Note as Noted, type View } from "../core/types.js";
import { defaultView, viewOf } from "../core/view.js";
import { ApiError, api, CHANGED, EMPTY, filterKey, type Note, type Tagged } from "./api.js";
import { canWrite, model, notes } from "./live.js";

/** Why something that was written is not saved: a sentence, or what another tab wrote meanwhile, or what is saved where
 *  the address has something else. */
export type Trouble = string | Conflict;
type Conflict = {
  name: string;
  addressed: boolean;
  mine: Note;
  theirs: Tagged;
  keep: () => void;
  take: () => void;
};

type Filter = { circuit: string; layer: string; filter: number };

const DRAWN = "input[type=text], textarea"; // what a reader writes in

/** A source whose notes on filters are those of the project.
 *
 *  @param source the source of the document, which has the rest of the view in the page's address
 *  @param tell called with what could not be saved, and with null when that is settled */
export function withNotes(source: Source, circuit: string, tell: (trouble: Trouble | null) => void): Source {
  const graph = decode(JSON.parse(source.document()));
  const filters = Array.from({ length: graph.nodeCount }, (_, node): Filter | null => {
    const layer = graph.document.layers[graph.layer[node]!];
    return layer && graph.kind[node] !== NodeKind.image
      ? { circuit, layer: layer.name, filter: graph.unit[node]! }
      : null;
  });
  const keys = filters.map((of) => of && filterKey(of));
  const drawable = (node: number) => graph.kind[node] !== undefined && graph.kind[node] !== NodeKind.image;
  const base = defaultView(graph);
  /** What the diagram shows of a note: without control characters, and no longer than it has room for. */
  const cleaned = (written: Noted): Noted =>
    viewOf(graph, base, { notes: [written] }).notes[0] ?? nothing(written.node);
  const savedOn = (node: number): Noted => {
    const { label, text: note } = notes.value[keys[node] ?? ""] ?? EMPTY;
    return { node, label, note };
  };
  let shown = new Map<number, Noted>(); // as the diagram has them now
  /** What was written here, or came with the address, and is not saved: it stands in place of what is. */
  const unsaved = new Map<number, Noted>();
  const replaced = new Map<number, Noted>(); // what the reader saw in that place before
  /** The views of addresses that were opened or written here: going back to one brings none of its notes back. */
  const seen = new Set<string>();
  const troubles = new Map<string, Trouble>(); // of filters; the first is told
  let [waiting, queue] = [0, Promise.resolve()];
  let noted = () => {};
  let last: [view: View, base: View, selection: number[]] | null = null;
  let lasting = ""; // what the address had of the last view besides notes
  let addressed = true; // the diagram is about to show what the address says
  let closed = false;

  const here = () => JSON.stringify(source.view());
  const trouble = (of: Filter, what: Trouble | null) => {
    if (what) troubles.set(filterKey(of), what);
    else troubles.delete(filterKey(of));
    if (!closed) tell(troubles.values().next().value ?? null);
  };
  const settle = () => {
    for (const [node, written] of unsaved) if (equal(written, cleaned(savedOn(node)))) unsaved.delete(node);
  };
  const merged = (): Map<number, Noted> => {
    settle();
    const all = new Map<number, Noted>();
    for (const node of keys.keys()) {
      const written = unsaved.get(node) ?? savedOn(node);
      if (written.label || written.note) all.set(node, cleaned(written));
    }
    return all;
  };

  /** Shows what was written elsewhere, but not in place of what the reader is just writing. */
  const look = () => {
    const writing = document.activeElement?.shadowRoot?.activeElement?.matches(DRAWN);
    if (!writing && waiting === 0 && !same(merged(), shown)) noted();
  };
  const set = (written: Noted) => {
    if (!unsaved.has(written.node)) replaced.set(written.node, shown.get(written.node) ?? nothing(written.node));
    unsaved.set(written.node, written);
    if (written.label || written.note) shown.set(written.node, written);
    else shown.delete(written.node);
  };
  const address = (step: boolean) => {
    if (!last) return;
    settle();
    const [view, base, selection] = last;
    const empty: View = { ...base, notes: [] };
    const rest = formatHash({ ...view, notes: [] }, empty);
    source.write({ ...view, notes: [...unsaved.values()] }, empty, selection, step && rest !== lasting);
    seen.add(here());
    lasting = rest;
  };
  const put = async (of: Filter, mine: Note, tag: string) => {
    const { note } = await api.writeNote(of, mine, tag);
    const { [filterKey(of)]: _, ...others } = notes.value;
    notes.value = note.label || note.text || note.star ? { ...others, [filterKey(of)]: note } : others;
    address(false); // without what is saved now
    trouble(of, null);
  };
  const conflict = (of: Filter, mine: Note, theirs: Tagged, addressed = false) => {
    const again = (problem: Error) => failed(of, mine, problem);
    trouble(of, {
      name: `filter ${of.filter} of ${of.layer}`,
      addressed,
      mine,
      theirs,
      keep: () => void put(of, { ...mine, star: theirs.note.star }, theirs.tag).catch(again),
      take: () => {
        for (const node of unsaved.keys()) if (keys[node] === filterKey(of)) unsaved.delete(node);
        address(false);
        trouble(of, null);
        noted();
      },
    });
  };
  const failed = async (of: Filter, mine: Note, problem: Error) => {
    const theirs =
      problem instanceof ApiError && problem.status === CHANGED ? await api.note(of).catch(() => null) : null;
    if (theirs) conflict(of, mine, theirs);
    else
      trouble(
        of,
        `What you wrote on filter ${of.filter} of ${of.layer} is in the page's address, but not saved: ` +
          problem.message,
      );
  };
  /** Says what the address, or the file of a view, has in place of what is saved. */
  const ask = (written: Noted) => {
    const of = filters[written.node];
    if (!of) return; // the panel says that it is in the address alone
    const mine = { label: written.label, star: false, text: written.note };
    queue = queue.then(async () => {
      try {
        const theirs = await api.note(of);
        const { label, text: note } = theirs.note;
        const same = equal(written, cleaned({ node: written.node, label, note }));
        if (same || unsaved.get(written.node) !== written) return;
        if (model.value?.read_only)
          trouble(
            of,
            `The note on filter ${of.filter} of ${of.layer} is from the page's address: nothing can be saved here.`,
          );
        else conflict(of, mine, theirs, true);
      } catch (problem) {
        await failed(of, mine, problem as Error);
      }
    });
  };
  const save = async (of: Filter, mine: Note, before: Note) => {
    try {
      const now = await api.note(of);
      const unseen = now.note.label !== before.label || now.note.text !== before.text;
      if (unseen && (now.note.label || now.note.text)) conflict(of, mine, now);
      else await put(of, { ...mine, star: now.note.star }, now.tag);
    } catch (problem) {
      await failed(of, mine, problem as Error);
    }
    waiting--;
  };
  const note = (raw: Noted) => {
    const written = cleaned(raw);
    const of = filters[written.node];
    settle();
    set(written);
    const { label, note: text } = replaced.get(written.node)!;
    if (!of || !canWrite.value) return; // a sum, say, has no name that a file could hold
    waiting++;
    const mine = { label: written.label, star: false, text: written.note };
    queue = queue.then(() => save(of, mine, { label, star: false, text }));
  };
  return {
    ...source,
    note,
    unkept: (node) =>
      !canWrite.value
        ? "nothing can be saved here"
        : filters[node]
          ? ""
          : "the project keeps notes on filters, and this is none",
    view() {
      const view = source.view();
      const given = addressed ? (view.notes ?? []) : [];
      for (const written of given.filter(({ node }) => drawable(node)).map(cleaned)) {
        unsaved.set(written.node, written);
        replaced.set(written.node, nothing(written.node));
        ask(written);
      }
      if (addressed) seen.add(here());
      addressed = false;
      shown = merged();
      return { ...view, notes: [...shown.values(), ...given.filter(({ node }) => !drawable(node))] };
    },
    write(view, base, selection, step) {
      const now = new Map(view.notes.map((written) => [written.node, written]));
      const gone = [...shown.keys()].filter((node) => !now.has(node)).map(nothing);
      for (const written of [...gone, ...now.values()])
        if (!equal(written, shown.get(written.node))) {
          set(written);
          ask(written);
        }
      last = [view, base, selection];
      address(step);
    },
    onView: (told) =>
      source.onView(() => {
        addressed = !seen.has(here());
        told();
      }),
    onNotes(told) {
      noted = told;
      const later = () => setTimeout(look);
      addEventListener("focusout", later);
      const stop = notes.subscribe(later);
      return () => {
        removeEventListener("focusout", later);
        stop();
        [last, closed] = [null, true]; // the address is another page's from now on
      };
    },
  };
}

function nothing(node: number): Noted {
  return { node, label: "", note: "" };
}

function equal(a: Noted, b: Noted | undefined): boolean {
  return a.label === (b?.label ?? "") && a.note === (b?.note ?? "");
}

function same(a: ReadonlyMap<number, Noted>, b: ReadonlyMap<number, Noted>): boolean {
  return a.size === b.size && [...a.values()].every((written) => equal(written, b.get(written.node)));
}
