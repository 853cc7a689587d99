/** The maps of a unit's photographs: near each other are those on which a layer's kernels compute it alike. */

import type { ComponentChildren } from "preact";
import { useMemo, useState } from "preact/hooks";
import { count, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { Chosen, FEWEST, Pointed, TrajectoryMap, useTrajectory } from "../maps/trajectory.js";
import type { TrajectoryView } from "../maps/views.js";
import { api, type JobRequest, type TrajectoryOfUnit, type Unit } from "./api.js";
import { canWrite, jobs, layerOf, missing, model, submit, useLoaded, useUnit, version } from "./live.js";
import { go } from "./navigation.js";
import { layerPlace, photoKey, photoPlace, type TrajectoryPlace, unitPlace } from "./route.js";
import { layerName, withKeys } from "./text.js";
import { theme } from "./theme.js";
import { FindJobs, Picture, Problem, To } from "./ui.js";
import { Work } from "./work.js";

const PICTURE = 96; // px
const METHODS: Record<string, string> = { pca: "principal components", umap: "UMAP" };
const SIZES = [0.2, 0.1, 0.05, 0.02]; // densities

export function TrajectoryPage({ place }: { place: TrajectoryPlace }) {
  const layer = layerOf(place.layer);
  const name = layer?.name ?? place.layer;
  const known = layer !== undefined && place.unit < layer.units;
  const why = missing(name, place.unit);
  const { value: unit, error } = useUnit(name, place.unit);
  const of = `${name}:${place.unit}`;
  const found = useLoaded(`${of} ${unit?.trajectory}`, version.circuits.value, async (signal) =>
    unit?.trajectory ? api.trajectory(name, place.unit, signal) : null,
  );
  const title = (
    <>
      <h1 tabIndex={-1}>
        <To place={layerPlace(name)}>{plain(layerName(layer, name))}</To> ·{" "}
        <To place={unitPlace(name, place.unit)}>unit {place.unit}</To> · its photographs
      </h1>
      {why && (known ? <p class="lead">{plain(why)}</p> : <Problem text={why} />)}
      <Problem text={error || found.error} />
    </>
  );
  if (found.value) return <Placed place={{ ...place, layer: name }} found={found.value} title={title} key={of} />;
  return (
    <main id="main" class="wide">
      {title}
      {unit && !unit.trajectory && (
        <>
          <p class="lead">They have not been placed yet. {ABOUT}</p>
          <PlaceWork unit={unit} />
        </>
      )}
    </main>
  );
}

/** What the maps are. */
export const ABOUT =
  "A map of the photographs for each layer: near each other are those on which its kernels compute the unit alike.";

/** The button that places a unit's photographs, colored by its newest division. */
export function PlaceWork({ unit }: { unit: Unit }) {
  const { layer, splits, trajectory } = unit;
  const request = {
    kind: "trajectory",
    layer,
    unit: unit.unit,
    ...(splits[0] ? { split: splits[0].id } : {}),
  } as const;
  return <Work request={request} label={trajectory ? "Place them again" : "Place the photographs"} quiet />;
}

function Placed(given: { place: TrajectoryPlace; found: TrajectoryOfUnit; title: ComponentChildren }) {
  const { place, found, title } = given;
  const { photos, boxes, names } = found;
  const data = useMemo(
    () => ({ ...found, pictures: photos.map((photo, n) => api.thumb(photo, PICTURE, boxes[n]!)) }),
    [found],
  );
  const [chosen, others] = withKeys(place.chosen, photos);
  const change = (part: Partial<TrajectoryView>, instead = false) => {
    const { chosen: some, ...view } = part;
    go({ ...place, ...view, ...(some && { chosen: some.map((n) => photoKey(photos[n]!)) }) }, instead);
  };
  const of = useTrajectory(data, { ...place, chosen }, change, theme.value);
  const thumb = (n: number) => (
    <To place={photoPlace(photos[n]!)}>
      <Picture src={data.pictures[n]!} alt={plain(names[n]!)} />
    </To>
  );
  return (
    <>
      <main id="main">
        {title}
        <p class="soft">
          {plural(photos.length, "photograph")} by {METHODS[found.method] ?? plain(found.method)}: near each other where
          a layer computes the unit alike
        </p>
        <TrajectoryMap of={of} />
      </main>
      <aside class="side" aria-label="the photographs">
        <section>
          <Pointed of={of} thumb={thumb} />
        </section>
        <section>
          <Chosen of={of} thumb={thumb}>
            {others > 0 && (
              <Problem
                text={`${plural(others, "photograph")} of this link ${others === 1 ? "is" : "are"} not on the map.`}
              />
            )}
          </Chosen>
        </section>
        <section>
          <h2>A circuit for them</h2>
          <Find feature={`${place.layer}:${place.unit}@max`} photographs={chosen.map((n) => photos[n]!)} />
        </section>
      </aside>
    </>
  );
}

/** The form that finds a circuit for photographs. */
function Find({ feature, photographs }: { feature: string; photographs: string[] }) {
  const [density, setDensity] = useState(0.05);
  const [error, say] = useState("");
  const [waiting, wait] = useState(false);
  const own = (jobs.value ?? []).filter(
    ({ kind, parameters }) => kind === "find" && parameters.feature === feature && parameters.photographs,
  );
  const find = async () => {
    wait(true);
    const request: JobRequest = { kind: "find", feature, density, photographs: photographs.toSorted() };
    await submit(request).then(
      () => say(""),
      (problem: Error) => say(problem.message),
    );
    wait(false);
  };
  return (
    <>
      {canWrite.value ? (
        <form
          class="line"
          onSubmit={(event) => {
            event.preventDefault();
            find();
          }}
        >
          <select
            aria-label="kernels to keep"
            value={density}
            onChange={(event) => setDensity(Number(event.currentTarget.value))}
          >
            {SIZES.map((each) => (
              <option key={each} value={each}>
                {count(100 * each)} % of kernels
              </option>
            ))}
          </select>
          <button type="submit" class="main-button small" disabled={waiting || photographs.length < FEWEST}>
            Find a circuit for them
          </button>
          <p class="soft">
            Where the unit is highest; found on 60 % of them and measured on the others, each as a whole.
          </p>
        </form>
      ) : (
        <p class="soft">
          {model.value?.read_only && "This explorer was started with --read-only, so it finds nothing."}
        </p>
      )}
      <Problem text={error} />
      <FindJobs of={own} />
    </>
  );
}
