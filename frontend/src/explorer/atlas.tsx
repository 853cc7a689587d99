/** An atlas of a layer: a map of its units by what their circuits share. */

import { useEffect } from "preact/hooks";
import { plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { AtlasCard, AtlasMap, AtlasTables, useAtlas } from "../maps/atlas.js";
import { type Atlas, type AtlasUnit, api } from "./api.js";
import { layerOf, layerOfAtlas, useLoaded, version } from "./live.js";
import { go } from "./navigation.js";
import { type AtlasPlace, circuitPlace, layerPlace, unitPlace } from "./route.js";
import { layerName } from "./text.js";
import { theme } from "./theme.js";
import { Problem, To } from "./ui.js";

const called = (layer: string) => layerName(layerOf(layer), layer);

export function AtlasPage({ place }: { place: AtlasPlace }) {
  const { id } = place;
  const { value: atlas, error } = useLoaded(id, version.circuits.value, async (signal) => {
    const all = await api.atlases(signal);
    if (!all.some((each) => each.id === id)) throw new Error(`There is no atlas ${id} here.`);
    return api.atlas(id, signal);
  });
  useEffect(() => {
    layerOfAtlas.value = atlas?.layer ?? "";
  }, [atlas]);
  if (atlas) return <Shown place={place} atlas={atlas} key={id} />;
  return (
    <main id="main" class="wide">
      <h1 tabIndex={-1}>Atlas</h1>
      {error ? <Problem text={error} /> : <p class="lead">It is being read …</p>}
    </main>
  );
}

function Shown({ place, atlas }: { place: AtlasPlace; atlas: Atlas }) {
  const of = useAtlas(atlas, place, (part, instead) => go({ ...place, ...part }, instead), theme.value, called);
  const leads = ({ unit, circuit }: AtlasUnit) => (
    <p>
      <To place={unitPlace(atlas.layer, unit)}>the unit</To>,{" "}
      {circuit ? (
        <To place={circuitPlace(circuit)}>its circuit</To>
      ) : (
        <span class="soft">its circuit's file is missing</span>
      )}
    </p>
  );
  return (
    <>
      <main id="main">
        <h1 tabIndex={-1}>
          <To place={layerPlace(atlas.layer)}>{plain(called(atlas.layer))}</To> · atlas of{" "}
          {plural(atlas.units.length, "unit")}
        </h1>
        <p class="soft">near each other where their circuits share kernels</p>
        <AtlasMap of={of} />
        <AtlasTables of={of} />
      </main>
      <aside class="side" aria-label="the units">
        <section aria-live="polite">
          <AtlasCard of={of} leads={leads} />
        </section>
      </aside>
    </>
  );
}
