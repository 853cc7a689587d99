/** What every page has: the layers at the left, and what concerns the whole explorer. */

import { useSignal } from "@preact/signals";
import { useEffect } from "preact/hooks";
import { Copied } from "../app/copied.js";
import { count, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { AtlasPage } from "./atlas.js";
import { CircuitPage } from "./circuit.js";
import { ComparePage } from "./compare.js";
import { Home } from "./home.js";
import { JobsPage } from "./jobs.js";
import { LayerPage } from "./layer.js";
import { circuits, indexing, layerOfAtlas, layers, live, lost, message, model, unheard, working } from "./live.js";
import { route } from "./navigation.js";
import { PhotoPage } from "./photo.js";
import { formatRoute, layerPlace, type Place } from "./route.js";
import { done, featureOf, layerName } from "./text.js";
import { chosen, THEMES, theme } from "./theme.js";
import { TrajectoryPage } from "./trajectory.js";
import { Bar, Problem, To } from "./ui.js";
import { UnitPage } from "./unit.js";

export function Shell() {
  useEffect(() => live(), []);
  const card = model.value;
  const place = route.value;
  const ready = card?.state === "ready" || (card?.state === "failed" && card.name !== "");
  useEffect(() => {
    document.title = [titleOf(place), card?.name, "convcircuits"].filter(Boolean).join(" · ");
  });
  return (
    <div class="app explorer" data-theme={theme.value} data-ready={ready}>
      <a class="skip" href="#main">
        skip to the content
      </a>
      <Layers />
      {!ready ? (
        <main id="main" class="wide">
          <h1 tabIndex={-1}>{card?.state === "failed" ? "The model cannot be used" : "Loading the model …"}</h1>
          {card?.state === "failed" && <Problem text={card.problem} />}
          {card?.state !== "failed" && !lost.value && <p class="lead">Its units can be looked at in a moment.</p>}
          <Problem text={lost.value} />
        </main>
      ) : (
        <Page place={place} />
      )}
      <Banner />
      <div class="hidden" role="status" aria-live="polite">
        {message.value}
      </div>
    </div>
  );
}

function Page({ place }: { place: Place }) {
  switch (place.page) {
    case "home":
      return <Home />;
    case "layer":
      return <LayerPage place={place} />;
    case "unit":
      return <UnitPage place={place} />;
    case "trajectory":
      return <TrajectoryPage place={place} />;
    case "atlas":
      return <AtlasPage place={place} />;
    case "circuit":
      return <CircuitPage place={place} />;
    case "photo":
      return <PhotoPage place={place} />;
    case "compare":
      return <ComparePage place={place} />;
    case "jobs":
      return <JobsPage />;
    case "nowhere":
      return (
        <main id="main" class="wide">
          <h1 tabIndex={-1}>There is no such page</h1>
          <p class="lead">
            Nothing is at {plain(place.path)}. <To place={{ page: "home" }}>Go to the model.</To>
          </p>
        </main>
      );
  }
}

function titleOf(place: Place): string {
  const named = (name: string) =>
    plain(
      layerName(
        layers.value.find((layer) => layer.name === name),
        name,
      ),
    );
  if (place.page === "layer") return named(place.layer);
  if (place.page === "unit") return `${named(place.layer)} unit ${place.unit}`;
  if (place.page === "trajectory") return `photographs of ${named(place.layer)} unit ${place.unit}`;
  if (place.page === "atlas") return layerOfAtlas.value ? `atlas of ${named(layerOfAtlas.value)}` : "atlas";
  if (place.page === "jobs") return "jobs";
  if (place.page === "photo") return "photograph";
  if (place.page === "compare") return "comparison";
  if (place.page !== "circuit") return "";
  const circuit = circuits.value?.find(({ id }) => id === place.id);
  return circuit && !circuit.problem ? `circuit of ${plain(featureOf(circuit, layers.value))}` : "circuit";
}

const UNHEARD =
  "This page does not hear what changes, perhaps because many pages of this explorer are open; it asks again soon.";

/** What must be known on every page. */
function Banner() {
  const card = model.value;
  const { weights } = route.value;
  const others = weights && card?.weights && !card.weights.startsWith(weights);
  const missed = lost.value || (unheard.value ? UNHEARD : "");
  if (!others && !(missed && card) && !(card?.state === "failed" && card.name)) return null;
  return (
    <div class="banner">
      {others && (
        <p role="alert">
          This link was made on other weights ({weights}); the model here has {card.weights.slice(0, weights.length)}.
          Figures and circuits may differ.
        </p>
      )}
      {card && <Problem text={missed} />}
      {card?.state === "failed" && <Problem text={card.problem} />}
    </div>
  );
}

function Layers() {
  const open = useSignal(false); // where there is little room
  const place = route.value;
  const card = model.value;
  const busy = working.value.length;
  const indexed = layers.value.filter((layer) => layer.indexed);
  const at = "layer" in place ? place.layer : place.page === "atlas" ? layerOfAtlas.value : null;
  const ready = indexed.filter((layer) => layer.images > 0).length;
  const job = indexing.value;
  useEffect(() => {
    open.value = false;
  }, [formatRoute(place)]);
  return (
    <nav class="layers" aria-label="layers" data-open={open.value}>
      <div class="brand">
        <To place={{ page: "home" }} aria-current={place.page === "home" ? "page" : undefined}>
          {plain(card?.name || "convcircuits")}
        </To>
        <button
          type="button"
          class="burger"
          aria-expanded={open.value}
          onClick={() => {
            open.value = !open.value;
          }}
        >
          layers
        </button>
      </div>
      <ul>
        {indexed.map((layer) => (
          <li key={layer.name}>
            {layer.images > 0 ? (
              <To
                place={layerPlace(layer.name)}
                title={layer.name}
                aria-current={at === layer.name || (layer.alias && at === layer.alias) ? "page" : undefined}
              >
                <span class="of">{plain(layerName(layer, layer.name))}</span>
                <span class="soft">{layer.units}</span>
              </To>
            ) : (
              <span class="off" title={card?.index?.left_out[layer.name] ?? "not indexed yet"}>
                <span class="of">{plain(layerName(layer, layer.name))}</span>
                <span>{layer.units}</span>
              </span>
            )}
          </li>
        ))}
      </ul>
      {card?.index && (
        <div class="index">
          <p>
            {plural(card.photographs, "photograph")}, {count(card.index.images)} indexed
            <br />
            {ready} of {plural(indexed.length, "layer")}
          </p>
          {card.index.state !== "complete" && (
            <Bar
              label="index"
              part={(job && done(job)) ?? (card.photographs ? card.index.images / card.photographs : null)}
            />
          )}
        </div>
      )}
      <div class="links">
        <To place={{ page: "jobs" }} aria-current={place.page === "jobs" ? "page" : undefined}>
          jobs{busy > 0 && ` (${busy})`}
        </To>
        <select
          class="quiet"
          aria-label="colors"
          value={chosen.value}
          onChange={(event) => {
            chosen.value = event.currentTarget.value as (typeof THEMES)[number];
          }}
        >
          {THEMES.map((each) => (
            <option key={each} value={each}>
              {each === "system" ? "auto" : each}
            </option>
          ))}
        </select>
        {card?.weights && (
          <Copied
            text={() => location.origin + formatRoute(place, card.weights.slice(0, 8)) + location.hash}
            label="copy link"
          />
        )}
      </div>
    </nav>
  );
}
