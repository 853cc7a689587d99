/** A unit: the photographs that drive it, how often it has which value, its circuits, and the form that finds one. */

import { useEffect, useRef, useState } from "preact/hooks";
import { count, percent, plural, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Box, CRITERIA, type Example, type Examples, SECTIONS, type Unit } from "./api.js";
import { findJob, positioned, SIZES, type Size } from "./ask.js";
import { FeatureSection, NeighbourSection, TrajectorySection } from "./like.js";
import {
  canWrite,
  circuits,
  jobs,
  type Loaded,
  layerOf,
  message,
  missing,
  model,
  pause,
  submit,
  useLoaded,
  useUnit,
  version,
} from "./live.js";
import { go } from "./navigation.js";
import { Notes } from "./note.js";
import { layerPlace, type Place, photoPlace } from "./route.js";
import { SplitSection } from "./split.js";
import {
  above,
  layerName,
  photoName,
  r2Text,
  roughly,
  SECTION_NAMES,
  sentence,
  shareText,
  usedFor,
  value,
} from "./text.js";
import { ofPhotos } from "./there.js";
import { BORDER, Circuits, Context, FindJobs, MapPicture, Problem, Seen, To } from "./ui.js";

type UnitPlace = Extract<Place, { page: "unit" }>;

const SHOWN = 25;

/** The photographs that the page of a unit shows first. */
export const FIRST = { section: "top", padding: false, low: null, high: null, count: SHOWN } as const;

export function UnitPage({ place }: { place: UnitPlace }) {
  const layer = layerOf(place.layer);
  const known = layer !== undefined && place.unit < layer.units;
  const name = layer?.name ?? place.layer;
  const of = `${name}:${place.unit}`;
  const found = useUnit(name, place.unit);
  const examples = useExamples({ ...place, layer: name });
  const why = missing(name, place.unit);
  const unit = found.value;
  const title = layerName(layer, name);
  return (
    <>
      <main id="main">
        <div class="title">
          <h1 tabIndex={-1}>
            <To place={layerPlace(name)}>{plain(title)}</To> · unit {place.unit}
          </h1>
          {unit && <Badges unit={unit} />}
        </div>
        <nav class="line soft" aria-label="units beside it">
          {unit && <span>sees {unit.field.join(" × ")} px</span>}
          {place.unit > 0 && layer && place.unit <= layer.units && (
            <To place={{ ...place, unit: place.unit - 1, photo: null, low: null, high: null, split: null }}>
              ← {place.unit - 1}
            </To>
          )}
          {layer && place.unit + 1 < layer.units && (
            <To place={{ ...place, unit: place.unit + 1, photo: null, low: null, high: null, split: null }}>
              {place.unit + 1} →
            </To>
          )}
          {unit && (
            <span>
              figures of {plural(unit.images, "photograph")}
              {!unit.complete && " so far"}
            </span>
          )}
          {known && (
            <a class="below" href="#find" onClick={toFind}>
              find its circuit
            </a>
          )}
        </nav>
        {why && (known ? <p class="lead">{plain(why)}</p> : <Problem text={why} />)}
        <Problem text={found.error} />
        {unit && <Photographs place={{ ...place, layer: name }} unit={unit} loaded={examples} />}
        {unit && (
          <div class="pair">
            <Values place={{ ...place, layer: name }} unit={unit} />
            <div>
              <NeighbourSection unit={unit} />
              <FeatureSection unit={unit} title="Feature picture" />
            </div>
          </div>
        )}
        {unit && <SplitSection place={{ ...place, layer: name }} unit={unit} key={of} />}
        {unit && <TrajectorySection unit={unit} />}
      </main>
      <aside class="side" aria-label="the unit">
        {place.photo !== null && unit && (
          <OnPhoto
            place={{ ...place, layer: name }}
            photo={place.photo}
            box={examples.value?.examples.find((each) => each.photo === place.photo)?.box ?? null}
          />
        )}
        <section>
          <h2 id="find" tabIndex={-1}>
            Find its circuit
          </h2>
          {known && <Find feature={of} key={of} />}
        </section>
        <section>
          <h2>Circuits</h2>
          {!unit || !circuits.value ? (
            <p class="soft">{found.error || why ? "–" : "Loading …"}</p>
          ) : unit.circuits.length === 0 ? (
            <p class="soft">None of this unit yet.</p>
          ) : (
            <Circuits of={circuits.value.filter(({ id }) => unit.circuits.includes(id))} />
          )}
          {unit && unit.other_circuits.length > 0 && (
            <p class="soft">
              {plural(unit.other_circuits.length, "circuit")} in the project{" "}
              {unit.other_circuits.length > 1 ? "are" : "is"} of this unit's name in a model with other weights.
            </p>
          )}
        </section>
        <section>
          <h2>Label and note</h2>
          {known && <Notes of={{ layer: name, unit: place.unit }} what={`${title} unit ${place.unit}`} />}
        </section>
      </aside>
    </>
  );
}

/** Shows the form, which is below everything else where there is one column. The address stays, as its hash is a
 *  view's. */
function toFind(event: Event): void {
  event.preventDefault();
  const title = document.getElementById("find");
  title?.focus({ preventScroll: true });
  title?.scrollIntoView();
}

function Badges({ unit: { figures } }: { unit: Unit }) {
  return (
    <>
      {figures.dead && <b class="badge">dead: never above 0</b>}
      <b class="badge" title="share of all positions of all indexed photographs where it is above 0">
        active on {shareText(figures.active)}
      </b>
      <b
        class={`badge ${(figures.at_border ?? 0) > BORDER ? "partly" : ""}`}
        title="share of the photographs on which it is highest where it sees padding"
      >
        border share {shareText(figures.at_border)}
      </b>
      <b class="badge" title="R² of the average map of the other photographs: what needs no network">
        average map R² {r2Text(figures.average_map_r2)}
      </b>
    </>
  );
}

// ---------------------------------------- photographs

const EXPLAINED: Record<string, string> = {
  top: "where it is highest",
  median: "whose highest value is nearest to the median",
  bottom: "whose highest value is lowest",
  near_zero: "whose highest value is nearest to 0",
  range: "whose highest value lies in the range",
};

/** The photographs of a section, which are asked for together with the unit. */
function useExamples({ layer, unit, section, padding, low, high }: UnitPlace): Loaded<Examples> {
  const there = missing(layer, unit) === "";
  const asked = { section, padding, low, high, count: SHOWN };
  return useLoaded(JSON.stringify([layer, unit, asked, there]), version.index.value, async (signal) =>
    there ? api.examples(layer, unit, asked, signal) : null,
  );
}

function Photographs(of: { place: UnitPlace; unit: Unit; loaded: Loaded<Examples> }) {
  const { place, unit } = of;
  const { section, padding, low, high } = place;
  const { value: found, error } = of.loaded;
  const sections = SECTIONS.filter((each) => each !== "range" || section === "range");
  const used = usedFor((circuits.value ?? []).filter(({ id }) => unit.circuits.includes(id)));
  const marked = found?.examples.some(({ photo }) => used.has(photo));
  return (
    <section aria-label="photographs">
      <div class="tools">
        <div class="tabs" role="tablist" aria-label="photographs">
          {sections.map((each) => (
            <button
              type="button"
              role="tab"
              key={each}
              id={`tab-${each}`}
              aria-controls="examples"
              aria-selected={each === section}
              tabIndex={each === section ? 0 : -1}
              onClick={() => go({ ...place, section: each, padding: false, low: null, high: null })}
              onKeyDown={(event) => {
                const step = event.key === "ArrowRight" ? 1 : event.key === "ArrowLeft" ? -1 : 0;
                const next = sections[sections.indexOf(each) + step];
                if (!step || !next) return;
                event.preventDefault();
                document.getElementById(`tab-${next}`)?.focus();
                document.getElementById(`tab-${next}`)?.click();
              }}
            >
              {SECTION_NAMES[each]}
              {each === "range" && ` ${significant(low ?? -Infinity)} and ${significant(high ?? Infinity)}`}
            </button>
          ))}
        </div>
        {section === "top" && (
          <button
            type="button"
            class="push second-button"
            aria-pressed={padding}
            onClick={() => go({ ...place, padding: !padding })}
            title="also positions whose receptive field extends beyond the image"
          >
            include padding
          </button>
        )}
      </div>
      <div id="examples" role="tabpanel" aria-labelledby={`tab-${section}`}>
        <Problem text={error} />
        {found && found.examples.length === 0 && (
          <p class="soft">
            Of {plural(found.images, "photograph")}, there is none {EXPLAINED[section]}.
          </p>
        )}
        <ul class="examples">
          {found?.examples.map((example) => (
            <li key={`${example.photo} ${example.position}`}>
              <Crop example={example} place={place} used={used.has(example.photo)} />
            </li>
          ))}
        </ul>
        {found && found.examples.length > 0 && (
          <p class="soft">
            {found.examples.length} of {plural(found.images, "photograph")}
            {found.sampled && `, chosen among ${count(found.pool)} that were drawn at random`}, {EXPLAINED[section]}
            {section === "top" &&
              !padding &&
              (unit.interior === "central" ? ", at a central position" : ", away from the border")}
            ; one position of each. The frame is what the unit sees.
            {marked && " “found on”: a circuit of this unit was found on it, so it is no test of that circuit."}
          </p>
        )}
      </div>
    </section>
  );
}

function Crop({ example, place, used }: { example: Example; place: UnitPlace; used: boolean }) {
  const chosen = place.photo === example.photo;
  const name = plain(example.name);
  return (
    <button
      type="button"
      class="crop"
      aria-pressed={chosen}
      title={`${name}: show the photograph and the unit's map`}
      onClick={() => go({ ...place, photo: chosen ? null : example.photo })}
    >
      <Context example={example} />
      <span class="line">
        <span class="of">{photoName(name)}</span>
        <span class="soft">{value(example.value)}</span>
      </span>
      {used && (
        <span class="badge" title="used to find a circuit of this unit, or to choose its size or constants">
          found on
        </span>
      )}
    </button>
  );
}

/** The unit's map beside a photograph, framed where the example of it is, if one is shown. */
function OnPhoto({ place, photo, box }: { place: UnitPlace; photo: string; box: Box | null }) {
  const { layer, unit } = place;
  const about = useLoaded(photo, 0, (signal) => ofPhotos([photo], () => api.photo(photo, signal)));
  const map = useLoaded(`${layer} ${unit} ${photo}`, 0, (signal) =>
    ofPhotos([photo], () => api.map(layer, unit, photo, signal)),
  );
  const name = plain(about.value?.name ?? "");
  const own = useRef<HTMLElement>(null);
  useEffect(() => {
    own.current?.scrollIntoView({ block: "nearest" }); // the panel may have been scrolled
    document.querySelector('.crop[aria-pressed="true"]')?.scrollIntoView({ block: "nearest" }); // not behind the sheet
    message.value = "the photograph and the unit's map on it are shown";
  }, [photo]);
  return (
    <section class="sheet" ref={own} aria-label="the unit on the photograph">
      <div class="line">
        <h2 class="of">On {photoName(name) || "this photograph"}</h2>
        <button type="button" class="plain" onClick={() => go({ ...place, photo: null })}>
          close
        </button>
      </div>
      {about.error ? (
        <Problem text={about.error} />
      ) : (
        <>
          <div class="views">
            {about.value && <Seen photo={photo} box={box} alt={`${name}, as the model sees it`} />}
            {map.value ? (
              <MapPicture map={map.value} alt={`the unit's map on ${name}`} />
            ) : (
              <p class="soft">{map.error ? "" : "The map is being computed …"}</p>
            )}
          </div>
          <Problem text={map.error} />
          <p>
            <To place={photoPlace(photo)}>all units on this photograph</To>
          </p>
        </>
      )}
    </section>
  );
}

// ---------------------------------------- values

const [WIDTH, HEIGHT] = [520, 130];

function Values({ place, unit }: { place: UnitPlace; unit: Unit }) {
  const { edges, counts, every } = unit.histogram;
  const { figures } = unit;
  const plot = useRef<SVGSVGElement>(null);
  const [drag, put] = useState<[number, number] | null>(null);
  if (counts.length === 0) return null;
  const most = Math.max(...counts);
  const [lowest, highest] = [edges[0]!, edges.at(-1)!];
  const x = (at: number) => (WIDTH * (at - lowest)) / (highest - lowest);
  const at = (event: PointerEvent) => {
    const { left, width } = plot.current!.getBoundingClientRect();
    return lowest + ((highest - lowest) * Math.min(width, Math.max(0, event.clientX - left))) / width;
  };
  const show = (low: number | null, high: number | null) =>
    go({ ...place, section: "range", padding: false, low, high, photo: null });
  const range = drag ?? (place.section === "range" ? [place.low ?? lowest, place.high ?? highest] : null);
  const [positive, all] = above(unit.histogram);
  return (
    <section class="values">
      <h2>How often it responds</h2>
      <svg
        ref={plot}
        viewBox={`0 -12 ${WIDTH} ${HEIGHT + 28}`}
        role="img"
        aria-label={
          `histogram of its values from ${significant(lowest)} to ${significant(highest)}; ` +
          `${percent(positive / all)} are above 0`
        }
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          put([at(event), at(event)]);
        }}
        onPointerMove={(event) => drag && put([drag[0], at(event)])}
        onPointerUp={() => {
          if (drag && Math.abs(drag[0] - drag[1]) > (highest - lowest) / 100)
            show(rounded(Math.min(...drag)), rounded(Math.max(...drag)));
          put(null);
        }}
      >
        {range && (
          <rect
            class="brush"
            x={x(Math.max(lowest, Math.min(...range)))}
            y={-12}
            width={Math.max(1, x(Math.min(highest, Math.max(...range))) - x(Math.max(lowest, Math.min(...range))))}
            height={HEIGHT + 12}
          />
        )}
        {counts.map((many, i) => {
          const height = many ? Math.max(0.8, (HEIGHT * many) / most) : 0;
          const [left, right] = [x(edges[i]!), x(edges[i + 1]!)];
          return (
            <rect
              key={edges[i]}
              class={edges[i]! >= 0 ? "above" : "below"}
              x={left}
              y={HEIGHT - height}
              width={Math.max(0.5, right - left - Math.min(1, (right - left) / 4))}
              height={height}
            />
          );
        })}
        {lowest < 0 && highest > 0 && (
          <>
            <path class="zero" d={`M${x(0)} -10V${HEIGHT}`} />
            <text x={x(0) + 4} y={-2}>
              0
            </text>
          </>
        )}
        <text x={0} y={HEIGHT + 14}>
          {significant(lowest)}
        </text>
        <text x={WIDTH} y={HEIGHT + 14} text-anchor="end">
          {significant(highest)}
        </text>
      </svg>
      <p class="soft">
        Bars count positions. A range chooses photographs by their highest value alone, whatever their other positions.
      </p>
      <form
        class="tools"
        onSubmit={(event) => {
          event.preventDefault();
          const given = new FormData(event.currentTarget);
          const number = (name: string) => (given.get(name) === "" ? null : Number(given.get(name)));
          show(number("low"), number("high"));
        }}
      >
        <span class="soft">photographs whose highest value lies between</span>
        <input
          type="number"
          name="low"
          step="any"
          aria-label="lowest value"
          value={place.low ?? ""}
          key={`l${place.low}`}
        />
        <span class="soft">and</span>
        <input
          type="number"
          name="high"
          step="any"
          aria-label="highest value"
          value={place.high ?? ""}
          key={`h${place.high}`}
        />
        <button type="submit">show</button>
      </form>
      <dl class="facts">
        <dt>above 0</dt>
        <dd>
          {shareText(figures.active)} of the positions, on {shareText(figures.active_images)} of the photographs
        </dd>
        <dt>border share</dt>
        <dd>
          {figures.at_border === null
            ? "not measured"
            : `on ${percent(figures.at_border)} of the photographs it is highest where it sees padding`}
        </dd>
        <dt>average map R²</dt>
        <dd>
          {r2Text(figures.average_map_r2)}: what the mean of the other photographs' maps explains, without a network
        </dd>
        <dt>sparsity</dt>
        <dd>{shareText(figures.sparsity)}</dd>
        <dt>counted</dt>
        <dd>
          {plural(unit.images, "photograph")}
          {every > 1
            ? `, and in the histogram only every ${ordinal(every)} row and column of a map`
            : ", all positions"}
        </dd>
      </dl>
    </section>
  );
}

function ordinal(of: number): string {
  return of === 2 ? "second" : of === 3 ? "third" : `${of}th`;
}

function rounded(of: number): number {
  return Number(of.toPrecision(3));
}

// ---------------------------------------- find

/** About how long finding takes, from one batch that is timed. */
function About(of: { feature: string; criterion: string; size: Size; position: string; crops: string }) {
  const { feature, criterion, size, position, crops } = of;
  const count = Number(crops);
  const valid = Number.isInteger(count) && count >= 1;
  const asked = { feature: positioned(feature, position), criterion, reach_r2: size === "reach_r2", count };
  const { value: estimate } = useLoaded(JSON.stringify(asked), 0, async (signal) => {
    await pause(600); // until the reader has chosen
    return valid && !signal.aborted ? api.estimate(asked, signal) : null;
  });
  if (!estimate) return null;
  const text =
    estimate.seconds === null
      ? "the time is not known"
      : `about ${roughly(estimate.seconds)}${estimate.busy ? ", less when no other job runs" : ""}`;
  return (
    <span class="soft" title={sentence(estimate.sentence)} part="estimate">
      {text}
    </span>
  );
}

function Find({ feature }: { feature: string }) {
  const [criterion, setCriterion] = useState<string>(CRITERIA[0]);
  const [size, setSize] = useState<Size>("density");
  const [number, setNumber] = useState<string>(SIZES.density.start);
  const [position, setPosition] = useState("all");
  const [crops, setCrops] = useState("24");
  const [error, say] = useState("");
  const [waiting, wait] = useState(false);
  const own = (jobs.value ?? []).filter(
    ({ kind, parameters }) =>
      kind === "find" && (parameters.feature === feature || String(parameters.feature).startsWith(`${feature}@`)),
  );
  const find = async () => {
    const asked = findJob(feature, { criterion, size, number, position, count: crops });
    if (typeof asked === "string") {
      say(asked);
      return;
    }
    wait(true);
    try {
      await submit(asked);
      say("");
    } catch (problem) {
      say((problem as Error).message);
    }
    wait(false);
  };
  return (
    <>
      {canWrite.value ? (
        <form
          class="find"
          noValidate
          onSubmit={(event) => {
            event.preventDefault();
            find();
          }}
        >
          <label>
            criterion
            <select part="criterion" value={criterion} onChange={(event) => setCriterion(event.currentTarget.value)}>
              {CRITERIA.map((each) => (
                <option key={each}>{each}</option>
              ))}
            </select>
          </label>
          <label>
            size
            <select
              part="size"
              value={size}
              onChange={(event) => {
                const next = event.currentTarget.value as Size;
                setSize(next);
                setNumber(SIZES[next].start);
              }}
            >
              {Object.entries(SIZES).map(([each, { name }]) => (
                <option key={each} value={each}>
                  {name}
                </option>
              ))}
            </select>
          </label>
          {size !== "drawable" && (
            <label>
              {SIZES[size].name}
              <input
                type="text"
                inputMode="decimal"
                part="number"
                value={number}
                onInput={(event) => setNumber(event.currentTarget.value)}
              />
            </label>
          )}
          <label>
            positions
            <select part="position" value={position} onChange={(event) => setPosition(event.currentTarget.value)}>
              <option value="all">all</option>
              <option value="interior">interior</option>
              <option value="max">max</option>
            </select>
          </label>
          <label>
            crops
            <input
              type="text"
              inputMode="numeric"
              part="crops"
              value={crops}
              onInput={(event) => setCrops(event.currentTarget.value)}
            />
          </label>
          <div class="line both-columns">
            <button type="submit" class="main-button" part="find" disabled={waiting}>
              Find
            </button>
            <About feature={feature} criterion={criterion} size={size} position={position} crops={crops} />
          </div>
          <p class="soft">
            Found on {crops || "–"} crops of some photographs and measured on {crops || "–"} of the others: of{" "}
            {count(model.value?.photographs ?? 0)}, 40 % are held out.
          </p>
        </form>
      ) : (
        <p class="soft">This explorer was started with --read-only, so it finds nothing.</p>
      )}
      <Problem text={error} />
      <FindJobs of={own} />
    </>
  );
}
