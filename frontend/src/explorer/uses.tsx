/** What else can be measured of a circuit, and taken away with it. */

import { useState } from "preact/hooks";
import { Copied } from "../app/copied.js";
import { parseHash } from "../app/hash.js";
import { count, percent, significant } from "../core/format.js";
import { api, type Circuit, type Download, type PutBack } from "./api.js";
import { jobs, model } from "./live.js";
import { circuitPlace, formatRoute } from "./route.js";
import { bytes, heldOut } from "./text.js";
import { Fact, Problem } from "./ui.js";
import { jobOf, Work } from "./work.js";

/** The circuit's map in place of the unit's, in the whole model. */
export function InTheModel({ circuit }: { circuit: Circuit }) {
  if (model.value?.classes === null)
    return (
      <p class="soft">
        This model's answer is no logits of classes, so there is no answer that the circuit's map could change.
      </p>
    );
  const request = { kind: "put_back", circuit: circuit.id } as const;
  const job = jobOf(jobs.value ?? [], request);
  const found = job?.state === "done" ? (job.result as unknown as PutBack) : null;
  if (!found)
    return (
      <>
        <p class="soft">Not measured: what the model answers with the circuit's map in place of the unit's.</p>
        <Work request={request} label="Put its map back" quiet />
      </>
    );
  const rows = [
    ["the circuit's map", found.by_circuit],
    ["average map", found.by_average_map],
    ["0", found.by_zero],
  ] as const;
  return (
    <>
      <table class="figures">
        <caption class="soft">
          The model on {heldOut(found.images, circuit.report)}, {count(found.classes)} classes
        </caption>
        <thead>
          <tr>
            <th scope="col">in place of its map</th>
            <th scope="col">KL, nats</th>
            <th scope="col">same top class</th>
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, { kl, top1 }], i) => (
            <tr key={name} class={i === 0 ? "own" : undefined}>
              <th scope="row">{name}</th>
              <td>{kl === null ? "not finite" : significant(kl)}</td>
              <td>{percent(top1)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="soft">KL: how far the answers move; 0 is the model's own answer.</p>
    </>
  );
}

/** The circuit as a module of its own. */
export function AsModule({ circuit }: { circuit: Circuit }) {
  const { module, id } = circuit;
  if (!module)
    return (
      <>
        <p class="soft">A small network that computes this circuit alone.</p>
        <Work request={{ kind: "extract", circuit: id }} label="Extract it" quiet />
      </>
    );
  const of = (own: number, full: number) => `${count(own)} of ${count(full)} (${percent(own / Math.max(1, full))})`;
  const { difference } = module;
  const differs =
    difference === null ? "where the circuit is 0" : `${difference.toExponential(0)} of its largest value`;
  return (
    <dl>
      <Fact name="parameters" value={of(module.parameters, module.full_parameters)} />
      <Fact name="operations" value={of(module.macs, module.full_macs)} />
      <Fact name="differs by" value={differs} />
      <Fact
        name="file"
        value={
          <a href={api.moduleFile(id)} download>
            {bytes(module.bytes)}, safetensors
          </a>
        }
      />
    </dl>
  );
}

/** The circuit for others: a link, or a file with all that is known of it. */
export function Share({ circuit: { id, diagram } }: { circuit: Circuit }) {
  const bundle = () => api.bundle(id, photographs);
  const link = () => {
    const weights = model.value?.weights.slice(0, 8) ?? null;
    return location.origin + formatRoute(circuitPlace(id), weights) + location.hash; // the diagram as it is seen
  };
  const [photographs, include] = useState(false);
  const [error, say] = useState("");
  const [busy, wait] = useState(false);
  const save = async (get: () => Promise<Download>) => {
    wait(true);
    try {
      const { file, name } = await get();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(file);
      link.download = name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      say("");
    } catch (problem) {
      say((problem as Error).message);
    }
    wait(false);
  };
  return (
    <>
      <p class="soft">
        One page with the diagram as you see it, with the photographs in it, the unit's feature picture, if it was made,
        and the notes on this circuit, its filters and its unit. It opens in a browser, without a network.
      </p>
      <div class="line work">
        <button
          type="button"
          class="second-button"
          part="page"
          disabled={busy || !diagram}
          title={diagram ? "" : "It is not drawn yet."}
          onClick={() => save(() => api.page(id, parseHash(location.hash)))}
        >
          Download the page
        </button>
      </div>
      <p class="soft">
        Or one file with the circuit, its figures, diagram, note and commands:{" "}
        <code>convcircuits explore --bundle FILE</code> checks and opens it.
      </p>
      <label class="field">
        <input
          type="checkbox"
          part="photographs"
          checked={photographs}
          onChange={(event) => include(event.currentTarget.checked)}
        />
        with the photographs it was found and measured on
      </label>
      <p class="soft">
        Without them, its diagram shows parts of photographs, and only the circuit's file has their names.
      </p>
      <div class="line work">
        <button type="button" class="second-button" part="bundle" disabled={busy} onClick={() => save(bundle)}>
          Download the bundle
        </button>
        <Copied text={link} label="copy link" />
      </div>
      <Problem text={error} />
    </>
  );
}
