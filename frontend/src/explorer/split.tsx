/** Whether a unit is several things: a division of its photographs by how the network computes it on them. */

import { useState } from "preact/hooks";
import { decimal, percent, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type JobRequest, type Split, type SplitGroup, type SplitPhoto, type Unit } from "./api.js";
import { canWrite, circuits, jobs, useLoaded } from "./live.js";
import { go } from "./navigation.js";
import { circuitPlace, type Place, photoPlace } from "./route.js";
import { circuitShort, photoName, r2Text, sentence, splitText, value } from "./text.js";
import { Picture, Problem, Progress, To } from "./ui.js";
import { Work } from "./work.js";

const SHOWN = 10; // photographs of a group
const CROP = 144; // px

export function SplitSection({ place, unit }: { place: Extract<Place, { page: "unit" }>; unit: Unit }) {
  const [groups, ask] = useState("");
  const { splits, feature } = unit;
  const card = splits.find(({ id }) => id === place.split) ?? splits[0];
  const request: JobRequest = { kind: "split", feature, ...(groups ? { groups: Number(groups) } : {}) };
  const other = (jobs.value ?? []).filter(
    ({ kind, parameters, state }) => kind === "split" && parameters.feature === feature && state === "running",
  );
  return (
    <section class="split">
      <h2>Is it several things?</h2>
      {splits.length > 1 && (
        <div class="tools">
          {splits.map((each) => (
            <button
              type="button"
              key={each.id}
              aria-pressed={each.id === card?.id}
              onClick={() => go({ ...place, split: each.id })}
            >
              {plural(each.groups.length, "group")}, {plural(each.images, "photograph")}
              {each.asked !== null && ", as asked"}
            </button>
          ))}
        </div>
      )}
      {card ? <Shown id={card.id} /> : <p class="soft">Not measured.</p>}
      {canWrite.value && (
        <div class="tools">
          <label class="field">
            groups
            <select part="groups" value={groups} onChange={(event) => ask(event.currentTarget.value)}>
              <option value="">as many as the tests find</option>
              {[2, 3, 4].map((each) => (
                <option key={each} value={each}>
                  {each}
                </option>
              ))}
            </select>
          </label>
          {other.length > 0 && groups ? (
            other.map((job) => <Progress key={job.id} job={job} />)
          ) : (
            <Work request={request} label={card ? "Split it again" : "Split it"} quiet />
          )}
        </div>
      )}
    </section>
  );
}

function Shown({ id }: { id: string }) {
  const { value: split, error } = useLoaded(id, 0, (signal) => api.split(id, signal));
  if (!split) return error ? <Problem text={error} /> : <p class="soft">Loading …</p>;
  const [verdict, why] = splitText(split.verdict);
  const out = split.photographs[""]?.length ?? 0;
  return (
    <>
      <p class="lead" part="split-verdict">
        <b>{verdict}</b> {why}{" "}
        <span class="soft">
          {plural(split.images, "photograph")} {split.images === 1 ? "was" : "were"} looked at
          {out > 0 && `, of which ${out} ${out === 1 ? "does" : "do"} not drive it`}.
        </span>
      </p>
      {split.groups.map((group) => (
        <Group key={group.name} group={group} photographs={split.photographs[group.name] ?? []} />
      ))}
      {split.cross.length > 0 && <Cross split={split} />}
      {split.notes.map((note) => (
        <p class="soft" key={note}>
          {sentence(note)}
        </p>
      ))}
    </>
  );
}

function Group({ group, photographs }: { group: SplitGroup; photographs: SplitPhoto[] }) {
  return (
    <div class="group">
      <h3>
        {plain(group.name)}: {plural(group.images, "photograph")}, {group.held_out} held out
        {photographs.length > SHOWN && `; the ${SHOWN} surest`}
      </h3>
      <ul class="row">
        {photographs.slice(0, SHOWN).map(({ photo, name, held_out, value: at, box, confidence }) => (
          <li key={photo}>
            <To
              place={photoPlace(photo)}
              title={`${plain(name)}: ${value(at)}, confidence ${percent(confidence)}${held_out ? ", held out" : ""}`}
            >
              <Picture src={api.thumb(photo, CROP, box)} alt={photoName(plain(name))} side={72} />
              <span class="soft">{held_out ? "held out" : "\u00a0"}</span>
            </To>
          </li>
        ))}
      </ul>
      {group.circuits.length > 0 && (
        <p>
          Its circuits:{" "}
          {group.circuits.map((id, i) => {
            const circuit = circuits.value?.find((each) => each.id === id);
            return (
              <span key={id}>
                {i > 0 && ", "}
                <To place={circuitPlace(id)}>{circuit ? plain(circuitShort(circuit)) : id.slice(0, 6)}</To>
              </span>
            );
          })}
        </p>
      )}
    </div>
  );
}

/** How far each group's circuit answers for the others' photographs. */
function Cross({ split }: { split: Split }) {
  const sizes = [...new Map(split.cross.map(({ size, density }) => [size, density]))].sort(([a], [b]) => a - b);
  const [size, choose] = useState(split.chosen ?? sizes.at(-1)?.[0] ?? 0);
  const names = split.groups.map(({ name }) => name);
  const at = (circuit: string, group: string) =>
    split.cross.find((each) => each.size === size && each.circuit === circuit && each.group === group);
  const found = split.selectivity.find((each) => each.size === size);
  const decided = split.selectivity.find((each) => each.size === split.chosen);
  return (
    <>
      <div class="tools">
        <h3>Circuits on held-out photographs of each group</h3>
        {sizes.length > 1 &&
          sizes.map(([each, density]) => (
            <button type="button" key={each} aria-pressed={each === size} onClick={() => choose(each)}>
              {percent(density)}
            </button>
          ))}
      </div>
      <div class="scroll" role="region" aria-label="cross-test" tabIndex={0}>
        <table class="cross">
          <thead>
            <tr>
              <td />
              {names.map((name) => (
                <th scope="col" key={name}>
                  {plain(name)}: {plural(at(names[0]!, name)?.images ?? 0, "photograph")}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {names.map((circuit) => (
              <tr key={circuit}>
                <th scope="row">circuit of {plain(circuit)}</th>
                {names.map((group) => {
                  const cell = at(circuit, group);
                  return (
                    <td key={group} class={circuit === group ? "own" : undefined}>
                      error <b>{r2Text(cell?.error ?? null)}</b>
                    </td>
                  );
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      <p class="soft">
        Error at each photograph's maximum: 0 is the full model's answer, 1 that of a circuit that answers 0.
        {found && found.value !== null && (
          <>
            {" "}
            It is {decimal(found.value)} higher on other groups
            {found.low !== null && found.high !== null && ` (95 %: ${decimal(found.low)} to ${decimal(found.high)})`}
            {decided === undefined || decided === found
              ? `${shuffled(found.shuffled)}: ${sentence(found.verdict)}.`
              : `; the verdict and its control are about the circuits of ${percent(decided.density)}.`}
          </>
        )}
      </p>
    </>
  );
}

function shuffled(of: (number | null)[]): string {
  const known = of.filter((each) => each !== null);
  return known.length ? `, with groups dealt at random ${known.map((each) => decimal(each)).join(", ")}` : "";
}
