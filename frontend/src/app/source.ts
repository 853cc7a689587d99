/** Where a document and a view come from and go to: a page, or a notebook's widget. */

import type { Note, View } from "../core/types.js";
import { formatHash, parseHash } from "./hash.js";

export interface Source {
  /** A page owns the URL, the tab's colors and the "/" key; a widget shares them with other content. */
  readonly host: "page" | "widget";
  /** The document, as JSON. */
  document(): string;
  /** The host's view, unchecked. */
  view(): Partial<View>;
  /** The nodes that are chosen in the host. */
  selection(): number[];
  /** Tells the host what the reader sees now. `base` is the document's own view. `step` says whether Back leads to what
   *  was seen before, where the host has such a button. */
  write(view: View, base: View, selection: number[], step: boolean): void;
  /** Keeps what the panel shows with what is written next, so that Back leads to it, and returns what was kept. */
  panel?(shows?: string): string;
  /** Call back when the host has another view or another document; return a function that unsubscribes. */
  onView(changed: () => void): () => void;
  onDocument(changed: () => void): () => void;
  /** Call back when only the notes of the host's view are others; return a function that unsubscribes. */
  onNotes?(changed: () => void): () => void;
  /** Call back with the host's theme, now and whenever it is another; return a function that unsubscribes. Without it,
   *  the theme is that of the reader's system. */
  onTheme?(changed: (theme: Theme) => void): () => void;
  /** Call back with two photographs to paint the circuit by, now and whenever they are others; null: none. */
  onContrast?(changed: (contrast: Contrast | null) => void): () => void;
  /** Call back with a picture of the target that the document has not, now and whenever it is another; null: none. */
  onPicture?(changed: (picture: TargetPicture | null) => void): () => void;
  /** Keep what the reader has just written on a node; without it, it is kept in the view alone. */
  note?(written: Note): void;
  /** Say why the host does not keep what is written on a node elsewhere than in its view; "": it does. */
  unkept?(node: number): string;
  /** Measure the circuit without a part of it, and say how far that is, and then what came of it. */
  ablate?(part: Part, say: (text: string) => void): void;
}

/** A filter of a circuit or, of it, the kernel that reads one channel; null: all of its kernels. */
export interface Part {
  layer: string;
  filter: number;
  input: number | null;
}

/** What a part of the circuit does on a photograph, A, and on another, B; null: not measured. */
export type Contrast = (part: Part) => readonly [a: number, b: number] | null;

/** A picture of the target, at an address. */
export interface TargetPicture {
  src: string;
  label: string;
}

export type Theme = "light" | "dark";

/** Calls back with the theme of the reader's system, now and whenever it is another. */
export function onSystemTheme(changed: (theme: Theme) => void): () => void {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const tell = () => changed(dark.matches ? "dark" : "light");
  tell();
  dark.addEventListener("change", tell);
  return () => dark.removeEventListener("change", tell);
}

/** The page's own document, and its URL's hash. A page in a frame adds nothing to the history, which is that of the
 *  page around it. */
export function pageSource(text: string): Source {
  const framed = window.parent !== window;
  const here = () => location.hash.replace(/^#/, "");
  let known = here(); // another one is of a step back, say, of which the diagram is about to hear
  const panels: string[] = []; // the first is the present one; the history may have another diagram's, too
  let [shown, wanted] = ["", ""];
  const kept = () => (panels.includes(history.state) ? history.state : panels[0]);
  return {
    host: "page",
    document: () => text,
    view: () => parseHash(location.hash),
    selection: () => [],
    write(view, base, _selection, step) {
      const hash = formatHash(view, base);
      if (here() !== known || (hash === known && wanted === shown)) return;
      const url = hash === "" ? location.pathname + location.search : `#${hash}`;
      try {
        history[(step || wanted !== shown) && !framed ? "pushState" : "replaceState"](wanted, "", url);
        shown = wanted;
      } catch {
        if (hash !== known) location.replace(`#${hash}`);
      }
      known = here();
    },
    panel(shows) {
      if (shows) {
        wanted = shows;
        panels.push(wanted);
      }
      shown ||= wanted;
      return kept();
    },
    onView(changed) {
      const listener = () => {
        if (here() === known && kept() === shown) return;
        known = here();
        shown = wanted = kept();
        changed();
      };
      addEventListener("popstate", listener);
      return () => removeEventListener("popstate", listener);
    },
    onDocument: () => () => {},
  };
}

/** The model that anywidget passes to `render`. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  on(event: string, callback: () => void): void;
  off(event: string, callback: () => void): void;
}

/** A notebook's widget. The traits `kernels` and `image` say the same as `view` does, and are read first. */
export function widgetSource(model: Model): Source {
  let writing = false;
  return {
    host: "widget",
    document: () => String(model.get("document") ?? ""),
    view: () => ({
      ...((model.get("view") as Partial<View> | null) ?? {}),
      kernels: (model.get("kernels") as number | null) ?? null,
      image: (model.get("image") as number | null) ?? null,
    }),
    selection: () => ((model.get("selection") as number[] | null) ?? []).slice(),
    write(view, _base, selection) {
      const now: Record<string, unknown> = { view, kernels: view.kernels, image: view.image, selection };
      const changed = Object.keys(now).filter((name) => JSON.stringify(model.get(name)) !== JSON.stringify(now[name]));
      if (changed.length === 0) return;
      // Setting a trait calls its listeners at once: ignore our own changes.
      writing = true;
      for (const name of changed) model.set(name, now[name]);
      writing = false;
      model.save_changes();
    },
    onView(changed) {
      const listener = () => {
        if (!writing) changed();
      };
      const events = ["change:view", "change:kernels", "change:image", "change:selection"];
      for (const event of events) model.on(event, listener);
      return () => events.forEach((event) => model.off(event, listener));
    },
    onDocument(changed) {
      model.on("change:document", changed);
      return () => model.off("change:document", changed);
    },
  };
}
