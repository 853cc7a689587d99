/** A photograph as the model sees it, and the units that are strongest at a point of it. */

import { useEffect, useRef, useState } from "preact/hooks";
import { plural, significant } from "../core/format.js";
import { plain } from "../core/text.js";
import { api, type Point, type PointLayer } from "./api.js";
import { circuits, layers, message, model, useLoaded, version } from "./live.js";
import { go } from "./navigation.js";
import { Notes } from "./note.js";
import { type Place, unitPlace } from "./route.js";
import { photoName, topText, value } from "./text.js";
import { ofPhotos } from "./there.js";
import { Circuits, MapCanvas, Picture, Problem, Seen, To } from "./ui.js";

type PhotoPlace = Extract<Place, { page: "photo" }>;

const SHOWN = 6; // units of a layer
const STEP = 1 / 16; // of the image, that an arrow key moves the point

/** A coordinate of a point of the image, which an address may have outside it. */
function inside<T extends number | null>(at: T, end: number): T {
  return (at === null ? at : Number(Math.min(end - 0.5, Math.max(0.5, at)).toFixed(1))) as T;
}

/** A unit that the pointer or the keyboard is on. */
interface Looked {
  layer: PointLayer;
  unit: number;
  tapped?: boolean; // by a finger, which points at nothing: it stays until something else is tapped
}

export function PhotoPage({ place }: { place: PhotoPlace }) {
  const { id } = place;
  const [height, width] = model.value!.size as [number, number];
  const [x, y] = [inside(place.x, width), inside(place.y, height)];
  const { value: photo, error } = useLoaded(id, 0, (signal) => ofPhotos([id], () => api.photoAhead(id, signal)));
  const chosen = x !== null && y !== null;
  const indexed = layers.value.some(({ images }) => images > 0);
  const point = useLoaded(`${id} ${x} ${y} ${indexed}`, version.index.value + version.notes.value, async (signal) =>
    chosen && indexed ? ofPhotos([id], () => api.point(id, x, y, SHOWN, signal)) : null,
  );
  const [looked, look] = useState<Looked | null>(null);
  useEffect(() => look(null), [id, x, y]);
  useEffect(() => {
    if (point.value) message.value = "the units that are strongest at this point are listed";
  }, [point.value]);
  const name = plain(photo?.name ?? "");
  return (
    <>
      <main id="main">
        <h1 tabIndex={-1}>{photoName(name) || "Photograph"}</h1>
        {photoName(name) !== name && <p class="soft">{name}</p>}
        <Problem text={error} />
        {photo && (
          <div class="at-point">
            <figure>
              <Pointed place={{ ...place, x, y }} name={name} looked={looked} />
              <figcaption>
                {looked ? <Looking looked={looked} photo={id} /> : "What the model sees of it. Click a point."}
                {looked?.tapped && <Leads looked={looked} photo={id} />}
              </figcaption>
            </figure>
            <section aria-label="units at the point">
              {!chosen ? (
                <p class="lead">
                  Click a point of the photograph, or move it with the arrow keys, to see which units are strongest
                  there.
                </p>
              ) : point.value ? (
                <AtPoint point={point.value} looked={looked} look={look} />
              ) : (
                !point.error && (
                  <p class="soft">
                    {indexed || layers.value.length === 0 ? "Loading …" : "No layer has been indexed yet."}
                  </p>
                )
              )}
              <Problem text={point.error} />
            </section>
          </div>
        )}
        {looked?.tapped && <Sheet looked={looked} photo={id} close={() => look(null)} />}
      </main>
      <aside class="side" aria-label="the photograph">
        {photo && (
          <>
            <section>
              <h2>The whole photograph</h2>
              <Picture src={api.thumb(id, 640)} alt={name} class="whole" />
            </section>
            <section>
              <h2>Circuits</h2>
              <Uses photo={id} />
            </section>
            <section>
              <h2>Label and note</h2>
              <Notes of={{ photo: id }} what={name} />
            </section>
          </>
        )}
      </aside>
    </>
  );
}

/** The photograph, its point, and the map and the receptive field of the unit that is looked at. */
function Pointed({ place, name, looked }: { place: PhotoPlace; name: string; looked: Looked | null }) {
  const frame = useRef<HTMLButtonElement>(null);
  const [height, width] = model.value!.size as [number, number];
  const { id, x, y } = place;
  const put = (x: number, y: number, instead: boolean) => {
    go({ ...place, x: inside(x, width), y: inside(y, height) }, instead);
  };
  return (
    <button
      type="button"
      ref={frame}
      class="pointed"
      part="photo"
      aria-label={`${name}: choose a point; the arrow keys move it`}
      onClick={(event) => {
        if (event.detail === 0) {
          put(x ?? width / 2, y ?? height / 2, false); // Enter or Space
          return;
        }
        const box = frame.current!.getBoundingClientRect();
        put(
          (width * (event.clientX - box.left)) / box.width,
          (height * (event.clientY - box.top)) / box.height,
          x !== null,
        );
      }}
      onKeyDown={(event) => {
        const [right, down] = ARROWS[event.key] ?? [0, 0];
        if ((!right && !down) || event.ctrlKey || event.metaKey || event.altKey) return;
        event.preventDefault();
        put((x ?? width / 2) + right * STEP * width, (y ?? height / 2) + down * STEP * height, x !== null);
      }}
    >
      <Seen photo={id} box={looked?.layer.box ?? null} alt="" />
      {looked && <Overlaid looked={looked} photo={id} />}
      {x !== null && y !== null && (
        <i class="pin" style={{ left: `${(100 * x) / width}%`, top: `${(100 * y) / height}%` }} />
      )}
    </button>
  );
}

const ARROWS: Record<string, [number, number]> = {
  ArrowLeft: [-1, 0],
  ArrowRight: [1, 0],
  ArrowUp: [0, -1],
  ArrowDown: [0, 1],
};

function useMap({ layer, unit }: Looked, photo: string) {
  return useLoaded(`${layer.layer} ${unit} ${photo}`, 0, (signal) => api.map(layer.layer, unit, photo, signal));
}

function Overlaid({ looked, photo }: { looked: Looked; photo: string }) {
  const { value: map } = useMap(looked, photo);
  return map && <MapCanvas map={map} alt="" />;
}

/** What is drawn over the photograph, in words. */
function Looking({ looked, photo }: { looked: Looked; photo: string }) {
  const { value: map, error } = useMap(looked, photo);
  const name = `${plain(looked.layer.alias || looked.layer.layer)} unit ${looked.unit}`;
  if (error) return <>{plain(error)}</>;
  if (!map) return <>{name} …</>;
  const values = [...map.values];
  return (
    <>
      The map of {name}, from {significant(Math.min(...values))} to {significant(Math.max(...values))}: orange above 0,
      purple below. The frame is what the unit sees there.
    </>
  );
}

/** The page of a unit, with the photograph. */
const on = ({ layer, unit }: Looked, photo: string) => ({ ...unitPlace(layer.layer, unit), photo }) as Place;

/** A link to a unit that was tapped. */
function Leads({ looked, photo }: { looked: Looked; photo: string }) {
  return (
    <p class="leads">
      <To place={on(looked, photo)}>open unit {looked.unit}</To>
    </p>
  );
}

/** A unit that was tapped, where the photograph is not beside the units. */
function Sheet({ looked, photo, close }: { looked: Looked; photo: string; close: () => void }) {
  useEffect(() => document.querySelector(".chip[aria-current]")?.scrollIntoView({ block: "nearest" }), [looked]);
  return (
    <section class="sheet tapped" aria-label="the unit on the photograph">
      <div class="line">
        <h2 class="of">
          {plain(looked.layer.alias || looked.layer.layer)} unit {looked.unit}
        </h2>
        <button type="button" class="plain" onClick={close}>
          close
        </button>
      </div>
      <div class="views">
        <div class="pointed">
          <Seen photo={photo} box={looked.layer.box} alt="" />
          <Overlaid looked={looked} photo={photo} />
        </div>
        <div class="soft">
          <Leads looked={looked} photo={photo} />
          <p>
            <Looking looked={looked} photo={photo} />
          </p>
        </div>
      </div>
    </section>
  );
}

interface AtPointOf {
  point: Point;
  looked: Looked | null;
  look: (looked: Looked | null) => void;
}

/** The strongest units of each layer. A mouse that is on one or the keyboard's focus shows its map; a finger does by
 *  its first tap, and its second one opens the unit. */
function AtPoint({ point, looked, look }: AtPointOf) {
  const finger = useRef(false);
  const ready = useRef(false); // whether the unit that a finger is put on is shown already
  const left = ({ pointerType, type }: PointerEvent) => {
    if (pointerType !== "touch") look(null);
    else if (type === "pointercancel") finger.current = false; // it scrolls
  };
  const isShown = (layer: PointLayer, unit: number) => looked?.unit === unit && looked.layer.layer === layer.layer;
  const images = point.layers[0]?.images ?? 0;
  const so = point.layers.some(({ complete }) => !complete);
  return (
    <>
      <h2>Strongest at the point</h2>
      <table class="strongest" onPointerLeave={left} onPointerCancel={left}>
        <tbody>
          {point.layers.map((layer) => (
            <tr key={layer.layer}>
              <th scope="row">{plain(layer.alias || layer.layer)}</th>
              <td>
                {layer.units.length === 0 && <span class="soft">no unit is above 0 here</span>}
                {layer.units.slice(0, SHOWN).map(({ unit, value: at, quantile, label, star }) => (
                  <To
                    key={unit}
                    place={on({ layer, unit }, point.photo)}
                    class="chip"
                    title={`${value(at)}; higher on ${topText(quantile)} of its positions`}
                    aria-current={looked?.tapped && isShown(layer, unit) ? "true" : undefined}
                    onPointerEnter={(event) => event.pointerType !== "touch" && look({ layer, unit })}
                    onPointerDown={(event) => {
                      finger.current = event.pointerType === "touch";
                      ready.current = isShown(layer, unit);
                    }}
                    onClick={(event) => {
                      const tapped = finger.current && event.detail > 0; // else Enter
                      finger.current = false;
                      if (!tapped || ready.current) return;
                      event.preventDefault();
                      look({ layer, unit, tapped: true });
                    }}
                    onFocus={() => finger.current || look({ layer, unit })}
                    onBlur={() => looked?.tapped || look(null)}
                  >
                    <b>
                      {star && "★ "}
                      {unit}
                    </b>{" "}
                    {label && <span>{plain(label)} </span>}
                    <span class="soft">top {topText(quantile)}</span>
                  </To>
                ))}
              </td>
            </tr>
          ))}
        </tbody>
      </table>
      <p class="soft">
        At most {SHOWN} of each layer, those whose value here is rarest first: “top 1 %” means that a unit is higher on
        1 % of its positions on {plural(images, "photograph")}
        {so && " so far"}.
      </p>
    </>
  );
}

const USES = [
  ["Found on it", "found_on"],
  ["Size or constants chosen on it", "validated_on"],
  ["Measured on it", "held_out"],
] as const;

/** The circuits that the photograph was used for, by what it was used for. */
function Uses({ photo }: { photo: string }) {
  const of = USES.map(
    ([name, role]) => [name, (circuits.value ?? []).filter(({ report }) => report?.[role].includes(photo))] as const,
  ).filter(([, some]) => some.length > 0);
  if (of.length === 0) return <p class="soft">{circuits.value ? "It was used for none yet." : "Loading …"}</p>;
  return (
    <>
      {of.map(([name, some]) => (
        <div key={name}>
          <h3>{name}</h3>
          <Circuits of={some} named />
        </div>
      ))}
    </>
  );
}
