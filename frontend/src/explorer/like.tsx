/** What drives a unit most, made; and the units of its layer with maps like its own. */

import { count, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Neighbour, type Unit } from "./api.js";
import { useLoaded, version } from "./live.js";
import { trajectoryPlace, unitPlace } from "./route.js";
import { r2Text, value } from "./text.js";
import { ABOUT, PlaceWork } from "./trajectory.js";
import { Picture, Problem, To } from "./ui.js";
import { Work } from "./work.js";

const SHOWN = 5; // neighbors of each side
const CROP = 128; // px

export function FeatureSection({ unit, title }: { unit: Unit; title: string }) {
  const { layer, picture } = unit;
  return (
    <section>
      <h2>{title}</h2>
      {picture && picture.value !== null ? (
        <figure class="feature">
          <Picture src={api.picture(layer, unit.unit)} alt="the picture that drives it most" />
          <figcaption>
            Made by {plural(picture.steps, "step")} of gradient ascent from noise. The unit's value is{" "}
            {value(picture.value)} on it and {picture.start === null ? "not measured" : value(picture.start)} on the
            noise
            {unit.figures.highest !== null && `; the highest on photographs is ${value(unit.figures.highest)}`}.
          </figcaption>
        </figure>
      ) : (
        <>
          <p class="soft">
            {picture
              ? `No picture was found that drives it more than noise, in ${plural(picture.steps, "step")}.`
              : "Not made yet."}
          </p>
          {!picture && <Work request={{ kind: "visualise", layer, unit: unit.unit }} label="Make it" quiet />}
        </>
      )}
    </section>
  );
}

export function TrajectorySection({ unit }: { unit: Unit }) {
  return (
    <section>
      <h2>Photographs by how it is computed on them</h2>
      <p class="soft">{ABOUT} Drag around some to find a circuit for them.</p>
      {unit.trajectory && (
        <p>
          <To place={trajectoryPlace(unit.layer, unit.unit)}>Open the maps</To>
        </p>
      )}
      <PlaceWork unit={unit} />
    </section>
  );
}

export function NeighbourSection({ unit }: { unit: Unit }) {
  const { layer } = unit;
  const found = useLoaded(
    `${layer} ${unit.unit} ${unit.neighbours}`,
    version.index.value + version.notes.value,
    async (signal) => (unit.neighbours ? api.neighbours(layer, unit.unit, signal) : null),
  );
  return (
    <section>
      <h2>Neighbors by their maps</h2>
      {!unit.neighbours && (
        <>
          <p class="soft">Not measured in this layer yet.</p>
          <Work request={{ kind: "neighbours", layer }} label="Correlate the maps of this layer" quiet />
        </>
      )}
      <Problem text={found.error} />
      {found.value && (
        <>
          <Row layer={layer} of={found.value.highest} />
          {found.value.lowest.some(({ correlation }) => correlation < 0) && (
            <>
              <h3>Opposites</h3>
              <Row layer={layer} of={found.value.lowest.filter(({ correlation }) => correlation < 0)} />
            </>
          )}
          <p class="soft">
            Correlation over {count(found.value.positions * found.value.images)} positions of{" "}
            {plural(found.value.images, "photograph")}.
          </p>
        </>
      )}
    </section>
  );
}

function Row({ layer, of }: { layer: string; of: Neighbour[] }) {
  return (
    <ul class="row">
      {of.slice(0, SHOWN).map(({ unit, correlation, label }) => (
        <li key={unit}>
          <To place={unitPlace(layer, unit)} title={plain(label)}>
            <Crop layer={layer} unit={unit} />
            <span>
              <b>
                <span class="hidden">unit </span>
                {unit}
              </b>{" "}
              <span class="soft">
                <span class="hidden">correlation </span>
                {r2Text(correlation)}
              </span>
            </span>
          </To>
        </li>
      ))}
    </ul>
  );
}

/** What drives a unit most. */
function Crop({ layer, unit }: { layer: string; unit: number }) {
  const asked = { section: "top", padding: false, low: null, high: null, count: 1 } as const;
  const { value: found } = useLoaded(`${layer} ${unit}`, version.index.value, (signal) =>
    api.examples(layer, unit, asked, signal),
  );
  const top = found?.examples[0];
  return top ? <Picture src={api.thumb(top.photo, CROP, top.box)} alt="" side={62} /> : <span class="nothing" />;
}
