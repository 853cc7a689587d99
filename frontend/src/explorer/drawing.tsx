/** The diagram of a document of the API, in a page. */

import { signal } from "@preact/signals";
import { useEffect, useRef, useState } from "preact/hooks";
import { type Part, pageSource, type Source, type TargetPicture } from "../app/source.js";
import { plain } from "../core/text.js";
import type { Ablation, JobRequest } from "./api.js";
import { contrasted } from "./contrasted.js";
import { type Trouble, withNotes } from "./filters.js";
import { canWrite, circuits } from "./live.js";
import { Both } from "./note.js";
import { ablationText, progress } from "./text.js";
import { theme } from "./theme.js";
import { Problem } from "./ui.js";
import { ended, Work } from "./work.js";

/** The feature picture of a circuit's unit, which its diagram shows too; null: there is none. */
export const pictured = signal<{ of: string; value: TargetPicture } | null>(null);

/** The document of the API, with the view in the page's hash. The page around owns the keys and the colors.
 *
 *  @param circuit the only circuit of the document, of which parts can be taken out and whose filters have notes; null:
 *    there are several
 *  @param tell called with a note that could not be saved, and with null when that is settled */
export function explorerSource(text: string, circuit: string | null, tell: (trouble: Trouble | null) => void): Source {
  const own: Source = { ...pageSource(text), host: "widget", onTheme: (changed) => theme.subscribe(changed) };
  if (circuit === null)
    return { ...own, unkept: () => "the project keeps notes on a filter with its circuit, and here are two" };
  const source = withNotes(own, circuit, tell);
  source.onContrast = (changed) => contrasted.subscribe((found) => changed(found?.of === circuit ? found.value : null));
  source.onPicture = (changed) => pictured.subscribe((found) => changed(found?.of === circuit ? found.value : null));
  return canWrite.value ? { ...source, ablate: (part, say) => ablate(circuit, part, say) } : source;
}

async function ablate(circuit: string, part: Part, say: (text: string) => void): Promise<void> {
  say("waiting …");
  try {
    const job = await ended({ kind: "ablate", circuit, ...part }, (job) => say(plain(progress(job))));
    const card = circuits.value?.find(({ id }) => id === circuit);
    say(ablationText(job.result as unknown as Ablation, card?.report));
  } catch (problem) {
    say((problem as Error).message);
  }
}

/** What the diagram is without in this page, which has its title; controls in one row, and a stage that fits the window
 *  beside the rest. */
const FITTED = `
.heading h1 { display: none; }
@container (min-width: 800px) {
  .app[data-host="widget"] .stage-frame { height: clamp(320px, calc(100vh - 306px), 560px); }
  .app[data-host="widget"] .side { max-height: none; height: 0; min-height: 100%; }
  header { padding: 8px 16px 0; }
  [part="verdict"] { font-size: var(--verdict, 14px); line-height: 1.3; max-width: none; }
  .bar { column-gap: 12px; }
  input[type="range"] { width: 90px; }
}
@container (min-width: 800px) and (max-width: 1150px) {
  .hint { display: none; }
}`;

function fitted(root: ShadowRoot): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(FITTED);
  root.adoptedStyleSheets = [...root.adoptedStyleSheets, sheet];
}

type Diagram = { mount(el: HTMLElement, source: Source): () => void };
const DIAGRAM = "/static/diagram.js"; // the bundle that pages of their own have too

/** A diagram, or the job that draws it.
 *
 *  @param text the document; null: there is none yet
 *  @param of what it is of: another diagram has another view */
export function Drawing(props: { of: string; text: string | null; request: JobRequest; circuit: string | null }) {
  const { of, text, request, circuit } = props;
  const frame = useRef<HTMLDivElement>(null);
  const [error, say] = useState("");
  const [trouble, tell] = useState<Trouble | null>(null);
  useEffect(() => {
    if (text === null) return;
    let [gone, unmount] = [false, null as (() => void) | null];
    say("");
    (import(DIAGRAM) as Promise<{ default: Diagram }>).then(
      (bundle) => {
        if (gone || !frame.current) return;
        unmount = bundle.default.mount(frame.current, explorerSource(text, circuit, tell));
        fitted(frame.current.shadowRoot!);
      },
      (problem: Error) => say(problem.message),
    );
    return () => {
      gone = true;
      tell(null);
      unmount?.();
    };
  }, [of, text]);
  return (
    <section class={circuit === null ? "drawing of-two" : "drawing"} aria-label="the diagram">
      {text !== null ? (
        <div ref={frame} key={of} part="diagram" />
      ) : (
        <div class="undrawn">
          <p>It is not drawn yet.</p>
          <Work request={request} label="Draw it" />
        </div>
      )}
      <Problem text={error || (typeof trouble === "string" ? trouble : "")} />
      {trouble && typeof trouble !== "string" && <Both {...trouble} on={trouble.name} theirs={trouble.theirs.note} />}
    </section>
  );
}
