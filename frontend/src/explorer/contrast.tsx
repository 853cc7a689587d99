/** What a circuit does on one photograph and not on another: A minus B of its filters and kernels. */

import { useEffect, useState } from "preact/hooks";
import { count, plural, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Circuit, type Contrast, type ContrastLayer } from "./api.js";
import { contrasted, differing, paintOf } from "./contrasted.js";
import { layers, useLoaded, version } from "./live.js";
import { go } from "./navigation.js";
import type { CircuitPlace } from "./route.js";
import { value } from "./text.js";
import { ofPhotos } from "./there.js";
import { Problem, Seen } from "./ui.js";

const SHOWN = 12; // filters and kernels of a layer
const TOP = 12; // photographs of each kind that are offered first
const MOST = 1000; // photographs that are offered

type Named = { id: string; name: string };

export function ContrastSection({ circuit, place }: { circuit: Circuit; place: CircuitPlace }) {
  const { a, b } = place;
  const { id } = circuit;
  const both = a !== null && b !== null;
  const found = useLoaded(`${id} ${a} ${b}`, 0, async (signal) =>
    both ? ofPhotos([a, b], () => api.contrast(id, a, b, signal)) : null,
  );
  useEffect(() => {
    contrasted.value = found.value && { of: id, value: paintOf(found.value) };
    return () => {
      contrasted.value = null;
    };
  }, [id, found.value]);
  return (
    <section class="contrast">
      <h2>One photograph beside another</h2>
      <Choice circuit={circuit} place={place} />
      {both && !found.value && !found.error && <p class="soft">Running the circuit on both …</p>}
      <Problem text={found.error} />
      {found.value && <Found found={found.value} />}
    </section>
  );
}

/** The two photographs, to choose: those that drive the unit first. */
function Choice({ circuit, place }: { circuit: Circuit; place: CircuitPlace }) {
  const { layer, unit } = circuit;
  const indexed = layers.value.some((each) => each.name === layer && each.images > 0);
  const every = useLoaded("", 0, (signal) => api.photos(0, MOST, signal)).value;
  const some = (section: "top" | "near_zero") =>
    useLoaded(`${layer} ${unit} ${section} ${indexed}`, version.index.value, async (signal): Promise<Named[]> => {
      if (typeof unit !== "number" || !indexed) return [];
      const asked = { section, padding: false, low: null, high: null, count: TOP };
      const { examples } = await api.examples(layer, unit, asked, signal);
      return examples.map(({ photo, name }) => ({ id: photo, name }));
    }).value;
  const kinds = [
    ["drive the unit most", some("top")],
    ["near zero", some("near_zero")],
    ["all photographs", every?.photographs],
  ] as const;
  return (
    <div class="tools">
      {(["a", "b"] as const).map((side) => (
        <label class="field" key={side}>
          {side.toUpperCase()}
          <select
            part={`photo-${side}`}
            value={place[side] ?? ""}
            onChange={(event) => go({ ...place, [side]: event.currentTarget.value || null })}
          >
            <option value="">choose a photograph</option>
            {kinds.map(([kind, photos]) => (
              <optgroup key={kind} label={kind}>
                {(photos ?? []).map(({ id, name }) => (
                  <option key={id} value={id}>
                    {plain(name)}
                  </option>
                ))}
              </optgroup>
            ))}
          </select>
        </label>
      ))}
      {every && every.total > MOST && <span class="soft">the first {count(MOST)} photographs are offered</span>}
      {place.a !== null && place.b !== null && (
        <button type="button" onClick={() => go({ ...place, a: place.b, b: place.a })}>
          swap
        </button>
      )}
    </div>
  );
}

function Found({ found }: { found: Contrast }) {
  const { layers, boxes, full, in_circuit, position, notes } = found;
  const [chosen, choose] = useState("");
  const layer = layers.find((each) => each.layer === chosen) ?? layers.at(-1);
  return (
    <>
      <div class="two">
        {([found.a, found.b] as const).map((photo, i) => (
          <figure key={i}>
            <Seen photo={photo} box={boxes[i]!} alt={`photograph ${"AB"[i]}, with what the unit sees`} />
            <figcaption>
              <b>{"AB"[i]}</b>: {value(full[i]!)} in the model, {value(in_circuit[i]!)} in the circuit
              {position && ` (row ${position[i]![0]}, column ${position[i]![1]})`}
            </figcaption>
          </figure>
        ))}
        <div>
          <p>
            <b>A − B of the unit: {value(full[0]! - full[1]!)} in the model, </b>
            <b>{value(in_circuit[0]! - in_circuit[1]!)} in the circuit.</b> Each is on the whole photograph as the model
            sees it, where the model is highest of the positions that the circuit was found for.
          </p>
          <p class="soft">
            Measured in the circuit's own run, nothing is estimated. A value is a mean over the layer's positions that
            the unit sees there, in the unit of the layer's output before what follows it (BatchNorm, ReLU). Layers have
            no common unit, so each is ranked by itself. What kernels add differs by what their filter differs. It says
            what is otherwise, not what would be without it: measure that in the diagram, which is painted by A − B.
          </p>
          {notes.map((note) => (
            <p class="soft" key={note}>
              {plain(note)}
            </p>
          ))}
        </div>
      </div>
      <div class="tabs" role="group" aria-label="layer">
        {layers.map((each) => (
          <button
            type="button"
            key={each.layer}
            aria-pressed={each === layer}
            title={each.layer}
            onClick={() => choose(each.layer)}
          >
            {plain(each.alias || each.layer)}
          </button>
        ))}
      </div>
      {layer && (
        <div class="pair">
          <Ranked layer={layer} name="filter" pairs={layer.outputs} of={(i) => String(layer.filters[i])} />
          <Ranked
            layer={layer}
            name="kernel"
            pairs={layer.added}
            of={(i) => `${layer.kernels[i]![0]} ← ${layer.kernels[i]![1]}`}
          />
        </div>
      )}
    </>
  );
}

interface Rows {
  layer: ContrastLayer;
  name: "filter" | "kernel";
  pairs: readonly (readonly [number, number])[];
  of: (row: number) => string;
}

/** The filters or kernels of a layer that differ most. */
function Ranked({ layer, name, pairs, of }: Rows) {
  const rows = differing(pairs, SHOWN);
  const most = Math.abs(rows.length ? pairs[rows[0]!]![0] - pairs[rows[0]!]![1] : 0) || 1;
  const [a, b] = layer.positions;
  const where = a === b ? plural(a!, "position") : `${a} and ${plural(b!, "position")}`;
  return (
    <section>
      <table class="figures differing">
        <caption class="soft">
          {name === "filter" ? "Output of filters" : "What kernels add (filter ← input channel)"}, mean over {where}
          {pairs.length > rows.length && `; ${rows.length} of ${count(pairs.length)}, those that differ most`}
        </caption>
        <thead>
          <tr>
            <th scope="col">{name}</th>
            <th scope="col">A</th>
            <th scope="col">B</th>
            <th scope="col">A − B</th>
            <td />
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => {
            const [own, other] = pairs[row]!;
            const share = (own - other) / most;
            return (
              <tr key={row}>
                <th scope="row">{of(row)}</th>
                <td>{significant(own)}</td>
                <td>{significant(other)}</td>
                <td>{significant(own - other)}</td>
                <td class="share" aria-hidden="true">
                  <i class={share < 0 ? "less" : "more"} style={{ width: `${50 * Math.abs(share)}%` }} />
                </td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </section>
  );
}
