/** The first page: the model, the state of its index, the latest circuits, and what was labeled. */

import { count, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Note, otherNotes, unitNotes } from "./api.js";
import { canWrite, circuits, indexing, layers, message, model, notes, submit, useLoaded } from "./live.js";
import { circuitPlace, layerPlace, photoPlace, unitPlace } from "./route.js";
import { bytes, circuitShort, featureOf, layerName, photoName, recent } from "./text.js";
import { ofPhotos } from "./there.js";
import { Circuits, Fact, Progress, To } from "./ui.js";

const LATEST = 12;

export function Home() {
  const card = model.value!;
  const indexed = layers.value.filter((layer) => layer.indexed);
  const labeled = unitNotes(notes.value, card.weights);
  const others = otherNotes(notes.value);
  const ready = indexed.filter((layer) => layer.images > 0);
  return (
    <>
      <main id="main">
        <h1 tabIndex={-1}>{plain(card.name)}</h1>
        <p class="lead">
          {plural(indexed.length, "convolution")} with {count(indexed.reduce((sum, { units }) => sum + units, 0))}{" "}
          units, and {plural(card.photographs, "photograph")}.{" "}
          {ready.length > 0
            ? "Choose a layer to see what drives its units; choose a unit to find its circuit."
            : "Units can be looked at as soon as photographs are indexed."}
        </p>
        <section>
          <h2>Circuits</h2>
          {circuits.value === null ? (
            <p class="soft">Loading …</p>
          ) : circuits.value.length === 0 ? (
            <p class="soft">
              None yet. Open a unit and press “Find”, or put files that the command wrote in the project's folder.
            </p>
          ) : (
            <>
              <Circuits of={recent(circuits.value).slice(0, LATEST)} named />
              {circuits.value.length > LATEST && (
                <p class="soft">
                  The {LATEST} latest of {count(circuits.value.length)}; each unit's page has its own.
                </p>
              )}
            </>
          )}
        </section>
        {labeled.length + others.length > 0 && (
          <section>
            <h2>Labels</h2>
            <ul class="circuits">
              {labeled.map(({ layer, unit, note }) => (
                <li key={`${layer} ${unit}`}>
                  <To place={unitPlace(layer, unit)}>
                    <b>
                      {plain(
                        layerName(
                          layers.value.find(({ name }) => name === layer),
                          layer,
                        ),
                      )}{" "}
                      unit {unit}
                    </b>
                  </To>{" "}
                  <Said note={note} />
                </li>
              ))}
              {others.map(({ kind, id, note }) => (
                <li key={id}>
                  {kind === "circuit" ? <OfCircuit id={id} /> : <OfPhoto id={id} />} <Said note={note} />
                </li>
              ))}
            </ul>
          </section>
        )}
        {ready.length > 0 && (
          <section>
            <h2>Layers</h2>
            <div class="scroll" role="region" aria-label="layers" tabIndex={0}>
              <table class="all-layers">
                <thead>
                  <tr>
                    <th scope="col">layer</th>
                    <th scope="col">module</th>
                    <th scope="col">units</th>
                    <th scope="col">map</th>
                    <th scope="col">sees</th>
                    <th scope="col">photographs</th>
                  </tr>
                </thead>
                <tbody>
                  {indexed.map((layer) => (
                    <tr key={layer.name}>
                      <th scope="row">
                        {layer.images ? (
                          <To place={layerPlace(layer.name)}>{plain(layerName(layer, layer.name))}</To>
                        ) : (
                          plain(layerName(layer, layer.name))
                        )}
                      </th>
                      <td>{plain(layer.name)}</td>
                      <td>{layer.units}</td>
                      <td>{layer.map.join(" × ")}</td>
                      <td>{layer.field ? `${layer.field.join(" × ")} px` : "–"}</td>
                      <td>{layer.images || "not indexed yet"}</td>
                    </tr>
                  ))}
                </tbody>
              </table>
            </div>
          </section>
        )}
      </main>
      <aside class="side" aria-label="the model">
        <section>
          <h2>Index</h2>
          <Index />
        </section>
        <section>
          <h2>Model</h2>
          <dl>
            <Fact name="weights" value={<code>{card.weights.slice(0, 8)}</code>} />
            <Fact name="images" value={`${card.size.join(" × ")} px`} />
            <Fact name="photographs" value={count(card.photographs)} />
            {card.copies.length > 0 && (
              <Fact name="copies" value={`${plural(card.copies.length, "copy").replace("copys", "copies")} left out`} />
            )}
            {card.left_out.length > 0 && (
              <Fact name="no pictures" value={`${plural(card.left_out.length, "file")} left out`} />
            )}
            <Fact name="project" value={bytes(card.bytes)} />
            <Fact name="version" value={card.version} />
          </dl>
          <p class="soft">{plain(card.normalization)}</p>
        </section>
        {card.remarks.length > 0 && (
          <section>
            <h2>Remarks</h2>
            {card.remarks.map((text) => (
              <p key={text}>{plain(text)}</p>
            ))}
          </section>
        )}
      </aside>
    </>
  );
}

function Said({ note }: { note: Note }) {
  return (
    <>
      {note.star && "★ "}
      {plain(note.label)} <span class="soft">{plain(note.text)}</span>
    </>
  );
}

function OfCircuit({ id }: { id: string }) {
  const circuit = circuits.value?.find((each) => each.id === id);
  if (!circuit)
    return (
      <b>
        circuit {id.slice(0, 6)}
        {circuits.value && ", which is not in the project"}
      </b>
    );
  return (
    <To place={circuitPlace(id)}>
      <b>{plain(circuit.problem ? circuit.file : `${featureOf(circuit, layers.value)} ${circuitShort(circuit)}`)}</b>
    </To>
  );
}

/** A photograph by its name, if it is among these. */
function OfPhoto({ id }: { id: string }) {
  const { value: photo, error } = useLoaded(id, 0, (signal) => ofPhotos([id], () => api.photo(id, signal)));
  if (error) return <b>photograph {id.slice(0, 6)}, which is not here</b>;
  return (
    <To place={photoPlace(id)}>
      <b>photograph {photo ? photoName(plain(photo.name)) : id.slice(0, 6)}</b>
    </To>
  );
}

/** How far the index is, and a way to go on with it. */
export function Index() {
  const index = model.value?.index;
  if (!index) return null;
  const job = indexing.value;
  const out = Object.values(index.left_out);
  return (
    <>
      <p>
        {index.state === "complete"
          ? index.images < index.photographs
            ? `Complete: ${count(index.images)} of ${plural(index.photographs, "photograph")} could be read.`
            : `Complete: ${plural(index.photographs, "photograph")}.`
          : `${count(index.images)} of ${plural(index.photographs, "photograph")} indexed. ` +
            "Figures are of these until all are."}
      </p>
      {job && <Progress job={job} />}
      {!job && index.state !== "complete" && canWrite.value && (
        <button
          type="button"
          onClick={() => submit({ kind: "index" }).catch((error: Error) => (message.value = error.message))}
        >
          Go on
        </button>
      )}
      {out.map((why) => (
        <p class="soft" key={why}>
          {plain(why)}
        </p>
      ))}
    </>
  );
}
