/** The target on the chosen image: its maps in the full model and in the drawn circuits, on one scale, with their
 *  figures. */

import { heat } from "../core/color.js";
import { decimal, significant } from "../core/format.js";
import { circuitName } from "../core/names.js";
import { plain } from "../core/text.js";
import { brief } from "./brief.js";
import type { OnImage } from "./pictures.js";
import type { Store } from "./store.js";
import { MapPicture } from "./ui.js";

const MAP = 88; // px: three to a row of the panel
const STOPS = 9; // of the scale's colors

export function TargetOnImage({ store }: { store: Store }) {
  const { graph } = store;
  const { image } = store.view.value;
  const images = graph.document.images;
  const found = image === null ? null : onImage(store, image);
  if (image === null || !images || !found) return null;
  const title = `Its map on ${brief(images.names, images.names[image]!).join(", ")}`;
  return (
    <section part="target" aria-label={title}>
      <h2 title={plain(images.names[image]!)}>{title}</h2>
      <div class="pictures">
        <img src={store.pictures.thumbnail(image)} alt="" height={MAP} />
        <TargetMaps store={store} found={found} size={MAP} />
      </div>
      <TargetFigures store={store} found={found} />
      <p class="soft">{explained(store, found)}</p>
      {store.image.value === null && (
        <p class="soft">
          Other maps and effects are only known for{" "}
          {images.variants.length ? "one circuit on its own group" : "the circuit itself"}.
        </p>
      )}
    </section>
  );
}

/** The target's maps and figures in the chosen variant, and in the one that it is compared with. */
export function onImage({ maps, view }: Store, image: number): OnImage | null {
  const { variant, compare } = view.value;
  return maps.target(compare === null ? [variant] : [variant, compare], image);
}

/** The maps side by side, with their common scale. */
export function TargetMaps({ store, found, size }: { store: Store; found: OnImage; size: number }) {
  const { shape, inside } = store.graph.document.images!.target;
  const frame = inside && framed(store) ? inside : null;
  const at = (value: number, of: number) => `${(100 * value) / of}%`;
  return (
    <>
      {found.networks.map(({ variant, map, mean, maximum }) => {
        const name = networkName(store, variant);
        return (
          map && (
            <figure>
              <div class="framed">
                <MapPicture
                  map={map}
                  size={size}
                  label={`map in ${name}: maximum ${significant(maximum)}, mean ${significant(mean)}`}
                />
                {frame && (
                  <i
                    style={{
                      top: at(frame.rows[0], shape[0]),
                      bottom: at(shape[0] - frame.rows[1], shape[0]),
                      left: at(frame.columns[0], shape[1]),
                      right: at(shape[1] - frame.columns[1], shape[1]),
                    }}
                  />
                )}
              </div>
              <figcaption>{name}</figcaption>
            </figure>
          )
        );
      })}
      {found.networks[0]!.map && <Scale found={found} />}
    </>
  );
}

/** The one color scale of the maps, from the least to the highest value in them. */
function Scale({ found: { top, low, high } }: { found: OnImage }) {
  const colors = Array.from({ length: STOPS }, (_, i) =>
    heat(top > 0 ? (low + ((high - low) * i) / (STOPS - 1)) / top : 0),
  );
  const zero = high > low ? -low / (high - low) : 0.5;
  return (
    <div
      class="scale"
      role="img"
      aria-label={`colors from ${significant(low)} to ${significant(high)}, the same in all maps`}
    >
      <i style={{ background: `linear-gradient(to right, ${colors.join(", ")})` }} />
      {low < 0 && <span style={{ left: 0 }}>{significant(low)}</span>}
      {(low === 0 || (zero > 0.2 && zero < 0.8)) && <span style={{ left: `${100 * zero}%` }}>0</span>}
      {high > 0 && <span style={{ left: "100%" }}>{significant(high)}</span>}
    </div>
  );
}

/** The figures, which can be compared without looking at colors. */
export function TargetFigures({ store, found }: { store: Store; found: OnImage }) {
  const one = found.networks[0]!.map === null;
  const inside = framed(store);
  const circuits = found.networks.slice(1);
  return (
    <table class="figures">
      <thead>
        <tr>
          <td />
          <th scope="col">{one ? "value" : "maximum"}</th>
          {!one && <th scope="col">mean</th>}
          {!one && <th scope="col">R²</th>}
          {!one && inside && <th scope="col">in the frame</th>}
        </tr>
      </thead>
      <tbody>
        {[found.networks[0]!, ...circuits].map(({ variant, maximum, mean, r2, r2Inside }) => (
          <tr>
            <th scope="row">{networkName(store, variant)}</th>
            <td>{significant(maximum)}</td>
            {!one && <td>{significant(mean)}</td>}
            {!one && <td>{variant === null ? "" : asR2(r2)}</td>}
            {!one && inside && <td>{variant === null ? "" : asR2(r2Inside)}</td>}
          </tr>
        ))}
      </tbody>
    </table>
  );
}

/** Explains which positions count, and what R² means. */
function explained({ graph }: Store, found: OnImage): string {
  const { positions, shape, inside, fullMap } = graph.document.images!.target;
  const where = `Over ${plain(positions)}.`;
  if (found.networks[0]!.map === null) return where;
  const [, height, width] = fullMap.shape as [number, number, number];
  const averaged = height < shape[0] || width < shape[1] ? ` Maps are averaged, to ${height} \u00d7 ${width}.` : "";
  const frame =
    !inside || whole(shape, inside)
      ? ""
      : inside.exact
        ? " In the frame, no receptive field reaches the padding."
        : " Too few receptive fields lie inside the image, so the frame marks the middle.";
  const undefined_ = found.networks.slice(1).every(({ r2 }) => r2 === null);
  const scale = undefined_ ? "R² is not defined if all of the full model's values are equal." : "";
  return `${where}${frame}${averaged} ${scale}`;
}

/** The same information for screen readers. */
export function spokenTarget(store: Store, image: number): string {
  const found = onImage(store, image);
  if (!found) return "";
  const { positions } = store.graph.document.images!.target;
  const said = found.networks.map(({ variant, maximum, mean, r2, r2Inside, map }) => {
    const values = map === null ? significant(maximum) : `maximum ${significant(maximum)}, mean ${significant(mean)}`;
    const inside = framed(store) && r2Inside !== null ? `, ${decimal(r2Inside)} inside` : "";
    return `in ${networkName(store, variant)} ${values}${r2 === null ? "" : `, R² ${decimal(r2)}${inside}`}`;
  });
  return `${said.join("; ")}; over ${plain(positions)}`;
}

function networkName({ graph, view }: Store, variant: number | null): string {
  return variant === null ? "the full model" : circuitName(graph, variant, view.value);
}

function asR2(value: number | null): string {
  return value === null ? "\u2013" : decimal(value);
}

type Inside = { rows: [number, number]; columns: [number, number] };

function whole([height, width]: [number, number], { rows, columns }: Inside): boolean {
  return rows[1] - rows[0] === height && columns[1] - columns[0] === width;
}

/** Whether some positions are inside and others are not. */
function framed({ graph }: Store): boolean {
  const { shape, inside } = graph.document.images!.target;
  return inside !== null && !whole(shape, inside);
}
