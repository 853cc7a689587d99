/** A map of a layer's units by what their circuits share, and the kernels that many, or few, of them keep. */

import { type Signal, useSignal } from "@preact/signals";
import type { ComponentChildren } from "preact";
import { useMemo } from "preact/hooks";
import type { Theme } from "../app/source.js";
import { count, decimal, plural } from "../core/format.js";
import { plain } from "../core/text.js";
import { GROUPS, INKS, rampColor } from "./color.js";
import { extent, type Point, placed } from "./geometry.js";
import { Plot, walked } from "./plot.js";
import { type AtlasView, type Change, UNIT_COLORS, type UnitColors } from "./views.js";

type Measures = Record<Exclude<UnitColors, "family">, number | null>;

export interface UnitOfAtlas extends Measures {
  unit: number;
  place: Point;
  family: number; // its number; -1: none
  alike: readonly (readonly [unit: number, overlap: number | null])[];
  kernels: number;
  effective_kernels: number;
  density: number;
  positive: number | null;
  r2_average_map_interior: number | null;
  r2_random_interior: number | null;
  pearson: number | null;
  verdict: string;
}

export interface AtlasData<Row extends UnitOfAtlas = UnitOfAtlas> {
  layer: string;
  method: string;
  asked: {
    criterion: string;
    size: Record<string, unknown>;
    images: { count: number };
    held_out: { count: number };
  };
  units: readonly Row[];
  families: readonly { units: readonly number[]; overlap: number | null }[]; // the largest first
  hubs: readonly Kernel[]; // more circuits keep them than would by chance
  rare?: readonly Kernel[]; // fewer do; not known of atlases that were drawn before it was
  layers: readonly {
    layer: string;
    kept: number;
    density: number | null;
    used: number | null;
    overlap: number | null;
  }[];
  problems: Record<string, string>;
  notes: readonly string[];
}

export interface Kernel {
  layer: string;
  filter: number;
  channel: number;
  units: number;
  expected: number;
  users: readonly number[];
}

const NAMES: Record<UnitColors, string> = {
  family: "family",
  r2_interior: "R² on the interior",
  r2: "R²",
  r2_rectified: "R² of the rectified map",
  r2_random: "R² of a random circuit",
  r2_average_map: "R² of the average map",
};
const PLACINGS: Record<string, string> = { pca: "the two principal axes", umap: "a UMAP" };
const MANY = 40; // units, whose numbers hide each other
const FAMILY = 0.8; // a larger share of the units tells nothing by its color
const LITTLE = 0.4; // an R² below which a circuit does not keep its unit, not even in part

const number = (value: number | null) => (value === null ? "–" : decimal(value));
const share = (value: number | null) => (value === null ? "–" : `${decimal(100 * value, 1)} %`);

/** A mean number of things. */
const mean = (value: number) => (value >= 1000 ? count(value) : decimal(value, 1));

/** A kernel as the address has it: "features.5[3,1]". */
export const kernelName = ({ layer, filter, channel }: Kernel) => `${layer}[${filter},${channel}]`;

/** The map, and how it is looked at. */
export interface Atlas<Row extends UnitOfAtlas> {
  data: AtlasData<Row>;
  theme: Theme;
  colors: UnitColors;
  unit: number | null; // that is chosen
  kernel: string | null;
  byUnit: ReadonlyMap<number, Row>;
  hovered: Signal<number>; // the place among the units of the one that is pointed at; -1: none
  change: Change<AtlasView>;
  called(layer: string): string; // as papers call it
}

export function useAtlas<Row extends UnitOfAtlas>(
  data: AtlasData<Row>,
  view: AtlasView,
  change: Change<AtlasView>,
  theme: Theme,
  called: (layer: string) => string,
): Atlas<Row> {
  const hovered = useSignal(-1);
  const byUnit = useMemo(() => new Map(data.units.map((row) => [row.unit, row])), [data]);
  const { families, units } = data;
  const divided = families.length > 1 && families[0]!.units.length < FAMILY * units.length;
  const colors = view.colors === "family" && !families.length ? null : view.colors;
  return {
    data,
    theme,
    colors: colors ?? (divided ? "family" : "r2_interior"),
    unit: view.unit,
    kernel: view.kernel,
    byUnit,
    hovered,
    change,
    called: (layer) => plain(called(layer)),
  };
}

// ---------------------------------------- the map

export function AtlasMap<Row extends UnitOfAtlas>({ of }: { of: Atlas<Row> }) {
  const { data, theme, colors, unit, kernel, byUnit, hovered, change } = of;
  const { units, families } = data;
  const inks = INKS[theme];
  const most = useMemo(() => extent(units.map(({ place }) => place)), [data]);
  const shown = units[hovered.value] ?? (unit === null ? undefined : byUnit.get(unit));
  const known = [...data.hubs, ...(data.rare ?? [])].find((one) => kernelName(one) === kernel);
  const users = known && new Set(known.users);

  const familyColor = ({ family }: Row) =>
    family >= 0 && families[family]!.units.length > 1 ? GROUPS[family] : undefined;
  const colorOf = (row: Row) => {
    if (colors === "family") return familyColor(row) ?? inks.none;
    const value = row[colors];
    return value === null ? inks.none : rampColor(theme, value); // below 0 is no better than the mean
  };

  const paint = (pen: CanvasRenderingContext2D, points: readonly Point[]) => {
    const placeOf = new Map(units.map((row, n) => [row.unit, points[n]!]));
    for (const [other, overlap] of shown?.alike ?? []) {
      const to = placeOf.get(other);
      if (!overlap || overlap <= 0 || !to) continue;
      pen.beginPath();
      pen.moveTo(...placeOf.get(shown!.unit)!);
      pen.lineTo(...to);
      pen.globalAlpha = Math.min(1, 0.2 + overlap);
      pen.lineWidth = 1 + 3 * overlap;
      pen.strokeStyle = inks.soft;
      pen.stroke();
    }
    units.forEach((row, n) => {
      const [x, y] = points[n]!;
      const marked = row === shown;
      pen.globalAlpha = users && !users.has(row.unit) ? 0.2 : 1;
      pen.beginPath();
      pen.arc(x, y, marked ? 9 : 6, 0, 7);
      pen.fillStyle = colorOf(row);
      pen.fill();
      pen.lineWidth = marked ? 1.5 : 0.75;
      pen.strokeStyle = marked ? inks.ink : inks.ground;
      pen.stroke();
      if (marked || units.length <= MANY) {
        pen.fillStyle = inks.ink;
        pen.font = "11px system-ui, sans-serif";
        pen.fillText(String(row.unit), x + 9, y - 6);
      }
    });
    pen.globalAlpha = 1;
  };

  const choose = (n: number, instead = false) => {
    hovered.value = -1;
    change({ unit: units[n]?.unit ?? null }, instead);
  };
  return (
    <>
      <div class="tools">
        <label class="field">
          color by
          <select
            part="colors"
            value={colors}
            onChange={(event) => change({ colors: event.currentTarget.value as UnitColors })}
          >
            {UNIT_COLORS.filter((each) => each !== "family" || families.length > 0).map((each) => (
              <option key={each} value={each}>
                {NAMES[each]}
              </option>
            ))}
          </select>
        </label>
        <label class="field">
          unit
          <select
            part="unit"
            value={shown === undefined || unit === null ? "" : String(unit)}
            onChange={(event) => {
              const { value } = event.currentTarget;
              change({ unit: value === "" ? null : Number(value) });
            }}
          >
            <option value="">none</option>
            {units.map((row) => (
              <option key={row.unit}>{row.unit}</option>
            ))}
          </select>
        </label>
        <div class="legend">
          {colors === "family" ? (
            <>
              {families.slice(0, GROUPS.length).map(
                (family, n) =>
                  family.units.length > 1 && (
                    <span key={family.units[0]}>
                      <i style={{ background: GROUPS[n] }} />
                      {count(family.units.length)} units
                    </span>
                  ),
              )}
              {units.some((row) => !familyColor(row)) && (
                <span>
                  <i style={{ background: inks.none }} />
                  others
                </span>
              )}
            </>
          ) : (
            <>
              0 or less
              <i class="ramp" style={{ background: `linear-gradient(to right, ${inks.ramp.join()})` }} />1
            </>
          )}
        </div>
      </div>
      <Plot
        label="Map of the units. Arrow keys walk through them, Escape chooses none."
        theme={theme}
        reach={14}
        hovered={hovered}
        place={(width, height) => units.map(({ place }) => placed(place, most, width, height))}
        paint={paint}
        pick={(n) => choose(n)}
        press={(key) => {
          const from = unit === null ? -1 : units.findIndex((row) => row.unit === unit);
          const to = key === "Escape" ? -1 : walked(key, from, units.length);
          if (to !== null) choose(to, true);
          return to !== null;
        }}
      />
    </>
  );
}

// ---------------------------------------- beside the map

/** The unit that is pointed at or chosen; otherwise, what the map shows. */
export function AtlasCard<Row extends UnitOfAtlas>({
  of,
  leads,
}: {
  of: Atlas<Row>;
  leads: (row: Row) => ComponentChildren;
}) {
  const { data, unit, byUnit, hovered } = of;
  const row = data.units[hovered.value] ?? (unit === null ? undefined : byUnit.get(unit));
  if (row) return <Described of={of} row={row} leads={leads} />;
  return (
    <>
      {unit !== null && <p class="problem">Unit {unit} has no circuit here.</p>}
      <Overview data={data} />
    </>
  );
}

function Described<Row extends UnitOfAtlas>(given: {
  of: Atlas<Row>;
  row: Row;
  leads: (row: Row) => ComponentChildren;
}) {
  const { of, row } = given;
  const { data, change, called } = of;
  const goTo = (unit: number) => (
    <button type="button" key={unit} onClick={() => change({ unit })}>
      {unit}
    </button>
  );
  const rows: [string, ...(number | null)[]][] = [
    ["R²", row.r2, row.r2_average_map, row.r2_random],
    ["R², interior", row.r2_interior, row.r2_average_map_interior, row.r2_random_interior],
    ["R², rectified", row.r2_rectified],
    ["Pearson r", row.pearson],
  ];
  const family = row.family < 0 ? null : data.families[row.family]!;
  const [effective, active] = [count(row.effective_kernels), share(row.positive)];
  return (
    <div class="unit-card">
      <h2>
        {called(data.layer)}:{row.unit}
      </h2>
      <p>
        Its circuit: {plain(row.verdict)}.
        {row.verdict.startsWith("keeps") && row.r2_rectified !== null && row.r2_rectified < LITTLE && (
          <>
            {" "}
            Little is kept of what lies above 0, which the next layer reads if a ReLU follows: R² of the rectified map
            is {number(row.r2_rectified)}.
          </>
        )}
      </p>
      <table class="figures">
        <thead>
          <tr>
            {["", "circuit", "average map", "random"].map((text) => (
              <th key={text} scope="col">
                {text || <span class="hidden">figure</span>}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map(([name, ...values]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              {[0, 1, 2].map((n) => (
                <td key={n}>{n < values.length ? number(values[n]!) : ""}</td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
      <p class="soft">
        {plural(row.kernels, "kernel")} ({share(row.density)}), {effective} effective; above 0 at {active} of the
        positions.
      </p>
      {given.leads(row)}
      <h2>Units alike</h2>
      <ul class="units">
        {row.alike.map(([unit, overlap]) => (
          <li key={unit}>
            {goTo(unit)} <span class="soft">overlap {number(overlap)}</span>
          </li>
        ))}
      </ul>
      {family && family.units.length > 1 && (
        <>
          <h2>
            Its family, {family.units.length} units, mean overlap {number(family.overlap)}
          </h2>
          <div class="units">{family.units.map(goTo)}</div>
        </>
      )}
    </div>
  );
}

function Overview({ data }: { data: AtlasData }) {
  const { asked, problems } = data;
  const size = Object.entries(asked.size)
    .map(([name, value]) => `${name} ${value}`)
    .join(", ");
  const without = Object.entries(problems);
  const [found, measured] = [asked.images, asked.held_out].map((images) => count(images.count));
  return (
    <>
      <p>Point at a unit, or walk through them with the arrow keys. Lines lead to the units alike.</p>
      <p class="soft">
        Circuits by {plain(asked.criterion)}, {plain(size)}, found on {found} images and measured on {measured} others.
        Overlap is the share of kernels in both circuits among those in either, corrected for chance: 0 is that of
        random circuits with as many kernels in each layer, 1 that of equal ones. Units are placed by{" "}
        {PLACINGS[data.method] ?? plain(data.method)} of the overlaps.
      </p>
      {data.notes.map((note) => (
        <p class="soft" key={note}>
          {plain(note)}
        </p>
      ))}
      {without.length > 0 && (
        <details>
          <summary>
            {plural(without.length, "unit")} {without.length === 1 ? "has" : "have"} no circuit
          </summary>
          {without.map(([unit, why]) => (
            <p key={unit}>
              {unit}: {plain(why)}
            </p>
          ))}
        </details>
      )}
    </>
  );
}

// ---------------------------------------- below the map

/** The kernels that many units share, those that few do, and the layers. */
export function AtlasTables<Row extends UnitOfAtlas>({ of }: { of: Atlas<Row> }) {
  const { data, called } = of;
  return (
    <div class="tables">
      <section>
        <h2>Kernels that serve many units, above chance</h2>
        <Kernels of={of} id="hubs" rows={data.hubs} />
      </section>
      {data.rare && (
        <section>
          <h2>Kernels that serve few units, below chance</h2>
          <Kernels of={of} id="rare" rows={data.rare} />
        </section>
      )}
      <section>
        <h2>Layers: mean kernels of a circuit, and mean overlap of two</h2>
        <div class="scroll" tabIndex={0} role="group" aria-label="layers">
          <table>
            <Head texts={["layer", "kept", "density", "used by any", "overlap"]} />
            <tbody>
              {data.layers.map((row) => (
                <tr key={row.layer}>
                  <th scope="row">{called(row.layer)}</th>
                  <td>{mean(row.kept)}</td>
                  <td>{share(row.density)}</td>
                  <td>{share(row.used)}</td>
                  <td>{number(row.overlap)}</td>
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </section>
    </div>
  );
}

/** A table of kernels; a click shows on the map which units use one. */
function Kernels<Row extends UnitOfAtlas>({ of, id, rows }: { of: Atlas<Row>; id: string; rows: readonly Kernel[] }) {
  const { kernel, change, called } = of;
  if (!rows.length) return <p class="soft">There are none.</p>;
  return (
    <div class="scroll">
      <table id={id}>
        <Head texts={["kernel [filter, channel]", "units", "by chance"]} />
        <tbody>
          {rows.map((row) => {
            const name = kernelName(row);
            return (
              <tr key={name} data-chosen={name === kernel}>
                <th scope="row">
                  <button
                    type="button"
                    aria-pressed={name === kernel}
                    onClick={() => change({ kernel: name === kernel ? null : name })}
                  >
                    {called(row.layer)} [{row.filter}, {row.channel}]
                  </button>
                </th>
                <td>{count(row.units)}</td>
                <td>{mean(row.expected)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

function Head({ texts }: { texts: readonly string[] }) {
  return (
    <thead>
      <tr>
        {texts.map((text) => (
          <th key={text} scope="col">
            {text}
          </th>
        ))}
      </tr>
    </thead>
  );
}
